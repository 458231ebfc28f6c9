"""Tuning: at which precision a member computes and what makes it fast; what a device cannot do is refused with the reason."""

from .acceleration import ACCELERATIONS
from .choices import Choice
from .precision import PRECISIONS
from .refusal import Refused
from .samples import ProbeSamples
from .tuner import Trial, Tuned, Tuner

__all__ = ["ACCELERATIONS", "PRECISIONS", "Choice", "ProbeSamples", "Refused", "Trial", "Tuned", "Tuner"]
