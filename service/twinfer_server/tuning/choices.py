"""Choices: a precision and an acceleration, and what `auto` keeps of its own for the next start."""

from collections.abc import Mapping

from pydantic.dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Choice:
    """A precision and an acceleration, by their names."""

    precision: str = "fp32"
    acceleration: str = "eager"

    def __str__(self) -> str:
        """Write it as tables show it."""
        return f"{self.precision} {self.acceleration}"


@dataclass(frozen=True, slots=True)
class KeptChoice:
    """What `auto` chose, how many times as fast it was, and by its name why every other one was not taken."""

    choice: Choice
    speed_up: float
    refused: Mapping[str, str]
