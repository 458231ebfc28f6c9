"""What a start has found out, kept in a file of the cache, so that the next one need not find it out again."""

import hashlib
import json
import logging
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Generic, TypeVar

import torch
from pydantic import TypeAdapter, ValidationError

logger = logging.getLogger(__name__)

T = TypeVar("T")


class KeptFile(Generic[T]):
    """One finding as JSON, in a file that is named after all that the finding depends on."""

    def __init__(self, cache: Path, kind: str, finding: type[T], parts: Sequence[object]) -> None:
        """Name it by its kind and a digest of the `parts`, beside which it depends on the versions of twinfer and torch."""
        text = json.dumps([metadata.version("twinfer"), torch.__version__, *parts])
        self._path = cache / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"
        self._finding = TypeAdapter(finding)

    def read(self) -> T | None:
        """Read what an earlier start found; None where there is nothing of use."""
        try:
            return self._finding.validate_json(self._path.read_bytes()) if self._path.is_file() else None
        except (OSError, ValidationError) as error:
            logger.warning("%s cannot be used, and what it kept is found out again: %s", self._path, error)
            return None

    def write(self, finding: T) -> None:
        """Keep what this start found; where that cannot be written, the next one finds it out again."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # Written aside and renamed: a server that starts meanwhile reads the old file or the new one, never half.
            half = self._path.with_suffix(f".{id(finding)}.part")
            half.write_bytes(self._finding.dump_json(finding))
            half.replace(self._path)
        except OSError as error:
            logger.warning("%s cannot be kept: %s", self._path, error)
