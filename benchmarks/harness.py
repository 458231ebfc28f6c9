"""What every benchmark shares: the machine's description, result files, processes on cores of their own, a real server."""

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

import psutil
import torch

from twinfer_server.demo import read_address

ROOT = Path(__file__).resolve().parents[1]
DIGITS = ROOT / "ensembles" / "digits"
PACKAGES = ("twinfer", "torch", "grpcio", "protobuf", "numpy", "uvloop")


@dataclass(frozen=True, slots=True)
class Cores:
    """The cores on which the two sides run; empty: any."""

    server: frozenset[int]
    load: frozenset[int]

    @classmethod
    def choose(cls, pin: bool | None) -> "Cores":
        """Give each side one core of its own; `pin` None does so where there are two, False leaves both free.

        Raises RuntimeError where `pin` is True and there is one core only.
        """
        cores = sorted(os.sched_getaffinity(0))
        if pin and len(cores) < 2:
            raise RuntimeError(f"cannot pin: found {len(cores)} core; needed: 2")
        if pin is False or len(cores) < 2:
            return cls(frozenset(), frozenset())
        return cls(frozenset(cores[:1]), frozenset(cores[1:2]))

    def __str__(self) -> str:
        if not self.server:
            return "nothing is pinned: server, load generator and everything else share the cores"
        return f"the server and the in-process reference are pinned to core {min(self.server)}, the load to core {min(self.load)}"


def pin(cores: frozenset[int]) -> None:
    """Keep the calling process on `cores`; no cores: wherever it likes."""
    if cores:
        os.sched_setaffinity(0, cores)


def worker(cores: frozenset[int]) -> ProcessPoolExecutor:
    """Make a process of its own, on `cores`, that runs what is submitted, one thing after the other."""
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_settle, initargs=(cores,))


def _settle(cores: frozenset[int]) -> None:
    pin(cores)
    if cores:  # torch has counted those of the machine, and on fewer its threads wait for each other: a minute for 256 small rows
        torch.set_num_threads(len(cores))


@dataclass(frozen=True, slots=True)
class Server:
    """A running `twinfer serve`."""

    address: str
    pid: int


@contextmanager
def serving(folder: Path, cores: frozenset[int], arguments: Sequence[str] = ()) -> Iterator[Server]:
    """Run `twinfer serve FOLDER` on a free port, on `cores`; give it when it is ready, and stop it with SIGTERM afterwards."""
    command = [sys.executable, "-c", "from twinfer.cli import main; main()", "serve", str(folder), "--listen", "127.0.0.1:0"]
    command += ["--set", "log_level=warning", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=lambda: pin(cores)) as process:
        try:
            yield Server(read_address(process), process.pid)
        finally:
            process.terminate()
    if process.returncode:
        raise RuntimeError(f"the server did not stop cleanly: exit code {process.returncode}")


def cpu_seconds(pid: int) -> float:
    """Give the CPU time that a process has used so far, its own and the kernel's for it, over all threads."""
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def describe_machine() -> dict[str, object]:
    """Say what the figures were measured on."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "load_average_before": [round(value, 2) for value in os.getloadavg()],
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def describe_versions() -> dict[str, str]:
    """Say what the figures were measured with."""
    return {"python": platform.python_version()} | {package: version(package) for package in PACKAGES}


def write_result(
    path: Path, module: str, machine: Mapping[str, object], setup: Mapping[str, object], figures: Sequence[Mapping[str, object]]
) -> None:  # fmt: skip
    """Write a result file: what was measured, on what, with what, by which command, when."""
    result = {
        "command": shlex.join(["python", "-m", module, *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine,
        "versions": describe_versions(),
        "setup": setup,
        "figures": figures,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
