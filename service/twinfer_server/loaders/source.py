"""What every loader is given: the member's spec, its files, its device, and what the operator trusts."""

import hashlib
import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import InvalidEnsemble, outline, quote
from ..spec import MemberSpec, find_file
from ..trust import Trust

TEXT = ("input_ids", "attention_mask", "token_type_ids")
"""What text models call the tensors of a text, as many as there are."""


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """A model to load. `key` is the member's path in the ensemble's file ("members.vision"); errors begin with it."""

    key: str
    spec: MemberSpec
    folder: Path
    device: torch.device
    trust: Trust

    def find_file(self, name: str = "", key: str = "model") -> Path:
        """Return the path of a file, by default the one that `model` names; raises InvalidEnsemble where the folder has none."""
        try:
            return find_file(self.folder, name or self.spec.model)
        except ValueError as error:
            raise InvalidEnsemble(f"{self.key}.{key}: {error}") from None

    def read_program(self) -> tuple[bytes, str]:
        """Return the content and the digest of a file that is a program; raises UntrustedCode before it is parsed.

        It is read once: what is hashed is what is loaded.
        """
        path = self.find_file()
        with self.reading("which cannot be read", "a file that the server may read"):
            content = path.read_bytes()
        return content, self.trust.admit_bytes(f"{self.key}.model", path, content)

    @contextmanager
    def holding(self, paths: Sequence[Path]) -> Iterator[None]:
        """Refuse files that change while the body loads and hashes them: what is hashed is what is loaded."""
        before = [_stamp(path) for path in paths]
        yield
        changed = [path.name for path, stamp in zip(paths, before, strict=True) if _stamp(path) != stamp]
        if changed:
            raise self.refuse(f"whose file {quote(changed[0])} changed while it was loaded", "files that stay as they are")

    def refuse(self, found: str, allowed: str, key: str = "model") -> InvalidEnsemble:
        """Make the error for a source that cannot be loaded: `found` says what about it."""
        return InvalidEnsemble(f"{self.key}.{key}: found {quote(getattr(self.spec, key))}, {found}; allowed: {allowed}")

    @contextmanager
    def reading(self, found: str, allowed: str, key: str = "model") -> Iterator[None]:
        """Refuse the source, of which `found` is true, where the body raises: libraries raise anything that a file makes them."""
        try:
            yield
        except Exception as error:
            raise self.refuse(f"{found} ({type(error).__name__}: {outline(error)})", allowed, key) from error

    def import_extra(self, module: str, extra: str) -> Any:
        """Import a package that only some loaders need; raises InvalidEnsemble with the command that installs it."""
        try:
            return importlib.import_module(module)
        except ImportError as error:
            raise InvalidEnsemble(
                f"{self.key}.model: {quote(self.spec.model)} needs {module}, which cannot be imported ({error}); "
                f"to install it: pip install 'twinfer[{extra}]'"
            ) from None


def hash_files(folder: Path, paths: Sequence[Path]) -> str:
    """Return one sha256 for some files of a folder and their names, in the order of these."""
    lines = [f"{hash_file(path)}  {path.relative_to(folder)}\n" for path in sorted({*paths})]
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


def _stamp(path: Path) -> tuple[int, ...]:
    """Return what changes with a file's content or with the file behind its name."""
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def hash_file(path: Path) -> str:
    """Return the sha256 of a file that may be too large to hold in memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
