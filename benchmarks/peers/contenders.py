"""Who is measured: how each server is started, and by which ways it is asked."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile

import psutil

from benchmarks.harness import ROOT, pin
from benchmarks.loop import Way, ask_first

ENVIRONMENTS = ROOT / "build" / "peers"
TWINFER, BARE, LEAN, MOSEC, TRITON = "twinfer", "bare", "lean", "Mosec", "Triton"
"""`bare` is plain grpc.aio on asyncio that calls the models request by request; `lean` is on uvloop, with a lean batcher."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A server: its command, with places for the pair, its ensemble folder and free ports, and the ways of asking it."""

    name: str
    ways: tuple[str, ...]
    arguments: tuple[str, ...]
    python: Path = Path(sys.executable)
    """The interpreter that runs it, in an environment of its own or in the one that everything else is in."""
    package: str = ""
    """What that environment is there for."""
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def version(self) -> str:
        """The version of its package; empty where it has none of its own."""
        question = f"from importlib.metadata import version; print(version({self.package!r}))"
        if not self.package or self.why_not:
            return ""
        return subprocess.run([self.python, "-c", question], capture_output=True, text=True, check=True).stdout.strip()

    @property
    def why_not(self) -> str:
        """Why it cannot be measured; empty where it can."""
        return "" if self.python.exists() else f"{self.python.relative_to(ROOT)} is not there; `make peers` makes it"


QUIETLY = ("--set", "log_level=warning", "--set", "metrics_listen=127.0.0.1:{second_port}")
SERVE = ("-c", "from twinfer.cli import main; main()", "serve", "{folder}", "--listen", "127.0.0.1:{port}", "--trust-code")
PLAIN = ("-m", "benchmarks.peers.plain", "{pair}", "{port}")
EXPERIMENTS = {"GRPC_EXPERIMENTS": "-event_engine_listener"}
MOSEC_SERVER = ("-m", "benchmarks.peers.mosec_server", "{pair}", "--address=127.0.0.1", "--port={port}", "--log-level=warning")
TRITON_SERVER = ("-m", "benchmarks.peers.triton_server", "{pair}", "{port}", "{second_port}", "{folder}/triton")
CONTENDERS = (
    Contender(TWINFER, ("Infer", "InferStream", "BatchInfer", "ModelInfer"), (*SERVE, *QUIETLY)),
    Contender(BARE, ("Infer",), (*PLAIN, "--bare"), variables=EXPERIMENTS),
    Contender(LEAN, ("Infer",), (*PLAIN, "--lean"), variables=EXPERIMENTS),
    Contender(MOSEC, ("HTTP",), MOSEC_SERVER, ENVIRONMENTS / "mosec/bin/python", "mosec"),
    Contender(TRITON, ("ModelInfer",), TRITON_SERVER, ENVIRONMENTS / "triton/bin/python", "nvidia-pytriton"),
)


@dataclass(frozen=True, slots=True)
class Running:
    """A server under way, which has answered."""

    contender: Contender
    address: str
    pid: int
    first_answer_seconds: float
    """From the begin of its process."""

    @property
    def peak_mib(self) -> float:
        """The most memory that its processes have ever had resident, added up: an upper bound."""
        process = psutil.Process(self.pid)
        return sum(_peak_mib(each.pid) for each in (process, *process.children(recursive=True)))


@contextmanager
def answering(
    contender: Contender, pair: str, folder: Path, cores: frozenset[int], loader: Executor, make: Callable[[], Way]
) -> Iterator[Running]:
    """Run a server on `cores` until the body ends, which begins when `loader` has had the first right answer.

    Raises RuntimeError with what the server has printed where there is none.
    """
    port, second_port = _find_ports(2)
    arguments = [argument.format(pair=pair, folder=folder, port=port, second_port=second_port) for argument in contender.arguments]
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "clients" / "python", ROOT / "service")))
    address, began = f"127.0.0.1:{port}", time.perf_counter()
    with TemporaryFile() as log, subprocess.Popen(
        [contender.python, *arguments], stdout=log, stderr=log, cwd=ROOT,
        env={**os.environ, **contender.variables, "PYTHONPATH": paths}, preexec_fn=lambda: pin(cores),
    ) as process:  # fmt: skip
        try:
            try:
                loader.submit(ask_first, make, address, process.pid).result()
            except RuntimeError as error:
                log.seek(0)
                said = log.read().decode(errors="replace").split()
                raise RuntimeError(f"{contender.name}: {error}; it said {' '.join(said[-30:])}") from error
            yield Running(contender, address, process.pid, time.perf_counter() - began)
        finally:
            _stop(process)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """End a server and whatever it has started, softly first."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    process.send_signal(signal.SIGTERM)
    for left in psutil.wait_procs(family, timeout=10)[1]:
        left.kill()


def _find_ports(count: int) -> Sequence[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _peak_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    (kibibytes,) = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return int(kibibytes) / 1024
