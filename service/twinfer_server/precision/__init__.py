"""Precision: the numbers a member computes in, and what accelerates it; refused with the reason where a device or model cannot."""

from .conversion import OWN_PRECISIONS, Converted, convert
from .precisions import ACCELERATIONS, PRECISIONS, CalibrationSamples

__all__ = ["ACCELERATIONS", "OWN_PRECISIONS", "PRECISIONS", "CalibrationSamples", "Converted", "convert"]
