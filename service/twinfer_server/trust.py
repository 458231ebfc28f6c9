"""Which programs may run: those whose sha256 the operator has listed, or any, with `--trust-code`.

A model file that can hold a pickle, and every Python module, is a program: reading it is running it. Digests are of the
bytes that are then loaded, so a file that changes in between does not slip through.

`python -m twinfer_server.trust FILE...` prints a trust list of the files.
"""

import hashlib
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from .errors import InvalidEnsemble, UntrustedCode, quote
from .spec import read_file

PACKAGED_LIST = Path(__file__).with_name("trusted.txt")
"""The digests of the models that come with twinfer."""
HEAD = "# sha256 of programs that may run; written by `python -m twinfer_server.trust FILE...`"


@dataclass(frozen=True, slots=True)
class Trust:
    """What the operator lets run."""

    runs_any_code: bool = False
    digests: frozenset[str] = frozenset()

    @classmethod
    def read(cls, runs_any_code: bool, lists: Iterable[Path]) -> Self:
        """Read the operator's trust lists and the packaged one; raises InvalidEnsemble for a line that is no digest."""
        return cls(runs_any_code, frozenset().union(*map(read_trust_list, (PACKAGED_LIST, *lists))))

    def admit_bytes(self, key: str, path: Path, content: bytes) -> str:
        """Return the digest of a file's bytes if they may run; raises UntrustedCode."""
        digest = hashlib.sha256(content).hexdigest()
        if not self.runs_any_code and digest not in self.digests:
            remedy = "add that digest to a file given with --trust-list, or start with --trust-code to let any program run"
            raise UntrustedCode(f"{key}: {path} is a program that is not trusted, of sha256 {digest}; if you trust it, {remedy}")
        return digest

    def admit_module(self, key: str, source: str) -> None:
        """Let Python be imported; raises UntrustedCode. A module brings others along, so no digest can speak for it."""
        if not self.runs_any_code:
            remedy = "if you trust it, start with --trust-code (a trust list cannot admit it)"
            raise UntrustedCode(f"{key}: {quote(source)} is Python code that is not trusted; {remedy}")


def read_trust_list(path: Path) -> frozenset[str]:
    """Read sha256 digests, one a line, `#` begins a comment; raises InvalidEnsemble naming the line."""
    try:
        lines = read_file(path).decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidEnsemble(f"trust list {path}: cannot be read: {error}") from error
    digests = [line.partition("#")[0].strip().lower() for line in lines]
    for number, digest in enumerate(digests, start=1):
        if not re.fullmatch("([0-9a-f]{64})?", digest):
            allowed = "a sha256 as 64 hex digits, or a # comment"
            raise InvalidEnsemble(f"trust list {path}, line {number}: found {quote(digest)}; allowed: {allowed}")
    return frozenset(filter(None, digests))


def format_trust_list(paths: Iterable[Path]) -> str:
    """Write the trust list of some files, in the order of their names."""
    files = sorted((path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in paths)
    return "\n".join([HEAD, *(f"{digest}  # {name}" for name, digest in files), ""])


if __name__ == "__main__":
    sys.stdout.write(format_trust_list(map(Path, sys.argv[1:])))
