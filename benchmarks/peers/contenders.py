"""Who is measured: how each server is started, and by which ways it is asked."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness import ROOT, pin
from benchmarks.peers.load import Load, ask_first
from benchmarks.peers.pairs import Pair
from twinfer_server.demo import read_address

TWINFER, BARE, BATCHER = "twinfer", "bare", "batcher"
"""The second is plain grpc.aio that calls the models row by row; the third the same with a simple batcher of 2 ms."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A server: its command for a pair and the pair's ensemble folder, and its ways of being asked, the plain one first."""

    name: str
    ways: tuple[str, ...]
    python: str
    arguments: tuple[str, ...]

    def command(self, pair: Pair, folder: Path) -> list[str]:
        """Give the command that serves a pair."""
        return [self.python, *(argument.format(pair=pair.name, folder=folder) for argument in self.arguments)]


@dataclass(frozen=True, slots=True)
class Running:
    """A server that has answered its first row, so many seconds after it was started."""

    contender: Contender
    address: str
    pid: int
    first_answer_seconds: float

    @property
    def peak_mib(self) -> float:
        """The most memory that the process has ever had resident."""
        lines = Path(f"/proc/{self.pid}/status").read_text(encoding="utf-8").splitlines()
        (kibibytes,) = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
        return int(kibibytes) / 1024


QUIETLY = ("--set", "log_level=warning", "--set", "cache_dir=")
SERVE = "from twinfer.cli import main; main()"
CONTENDERS = (
    Contender(
        TWINFER, ("Infer", "InferStream", "BatchInfer"), sys.executable,
        ("-c", SERVE, "serve", "{folder}", "--listen", "127.0.0.1:0", "--trust-code", *QUIETLY),
    ),
    Contender(BARE, ("Infer",), sys.executable, ("-m", "benchmarks.peers.plain", "{pair}")),
    Contender(BATCHER, ("Infer",), sys.executable, ("-m", "benchmarks.peers.plain", "{pair}", "--batching")),
)  # fmt: skip


@contextmanager
def started(contender: Contender, pair: Pair, folder: Path, load: Load, cores: frozenset[int]) -> Iterator[Running]:
    """Run a server on `cores` until the body ends; it has answered a row when the body begins."""
    began = time.perf_counter()
    command = contender.command(pair, folder)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, preexec_fn=lambda: pin(cores)) as process:
        try:
            address = read_address(process)
            ask_first(address, load)
            yield Running(contender, address, process.pid, time.perf_counter() - began)
        finally:
            process.terminate()
