"""Precision: the numbers a member computes in, and what accelerates it; refused with the reason where a device or model cannot."""

from .accelerations import ACCELERATIONS
from .conversion import CalibrationSamples, Converted, convert
from .precisions import PRECISIONS

__all__ = ["ACCELERATIONS", "PRECISIONS", "CalibrationSamples", "Converted", "convert"]
