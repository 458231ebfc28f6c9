"""Choices: a precision and an acceleration; what `auto` chose is kept in a file for the next start."""

import hashlib
import json
import logging
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from ..spec import MemberSpec

logger = logging.getLogger(__name__)


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


_KEPT = TypeAdapter(KeptChoice)


class ChoiceFile:
    """The file of one member's choice, named after all that the choice depends on."""

    def __init__(self, cache: Path, fingerprint: str, spec: MemberSpec, digest: str, counts: tuple[int, ...]) -> None:
        """Name it; `digest` is that of the model's file."""
        parts = [metadata.version("twinfer"), torch.__version__, fingerprint, digest, spec.model_dump_json(), counts]
        self._path = cache / f"choice-{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]}.json"

    def read(self) -> KeptChoice | None:
        """Read what an earlier start chose; None where there is nothing of use."""
        try:
            return _KEPT.validate_json(self._path.read_bytes()) if self._path.is_file() else None
        except (OSError, ValidationError) as error:
            logger.warning("the choice in %s cannot be used and is made again: %s", self._path, error)
            return None

    def write(self, kept: KeptChoice) -> None:
        """Keep a choice; where that cannot be written, the next start chooses again."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            half = self._path.with_suffix(f".{id(kept)}.part")
            half.write_bytes(_KEPT.dump_json(kept))
            half.replace(self._path)
        except OSError as error:
            logger.warning("the choice cannot be kept in %s: %s", self._path, error)
