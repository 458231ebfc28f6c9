"""Comparisons with a model's own library: made-up inputs go through both, at every load, and a difference is not served."""

from .images import compare_images
from .texts import compare_texts

__all__ = ["compare_images", "compare_texts"]
