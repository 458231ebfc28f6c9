"""An attention for transformers' models that never looks into the mask on the host.

transformers leaves the mask out where nothing is padded, and to see that it waits for the device: on a GPU that holds the launch
thread up and cannot be captured. Here the mask is always used.
"""

import importlib
from typing import Any

NAME = "sdpa_without_looking"


def read_no_masks(model: Any) -> None:
    """Give a model that computes torch's attention (sdpa) the one that never waits; others keep theirs."""
    if model.config._attn_implementation != "sdpa":
        return
    transformers = importlib.import_module("transformers")
    masking = importlib.import_module("transformers.masking_utils")
    attention = importlib.import_module("transformers.integrations.sdpa_attention")

    def make_mask(*arguments: Any, **options: Any) -> Any:
        looks = {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
        return masking.sdpa_mask(*arguments, **options | looks)

    transformers.AttentionMaskInterface.register(NAME, make_mask)
    transformers.AttentionInterface.register(NAME, attention.sdpa_attention_forward)
    model.set_attn_implementation(NAME)
