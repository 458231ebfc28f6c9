"""`twinfer` as an operator runs it: in a process of its own, with its output and its exit code."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.calls import PATIENCE_SECONDS

COMMAND = [sys.executable, "-c", "from twinfer.cli import main; main()"]


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Give this process's environment without settings of twinfer, and `more`."""
    return {name: value for name, value in os.environ.items() if not name.startswith("TWINFER_")} | dict(more or {})


def run(*arguments: str, env: Mapping[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    """Run a command that ends by itself."""
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, env=environment(env), timeout=4 * PATIENCE_SECONDS, check=False
    )


@dataclass(slots=True)
class ServerProcess:
    """A `twinfer serve` that listens."""

    process: "subprocess.Popen[str]"
    log: Path
    address: str = ""
    admin_address: str = ""
    said: list[str] = field(default_factory=list)

    def read_until(self, line: str) -> None:
        """Read what it prints until a line begins with `line`."""
        assert self.process.stdout is not None
        for found in self.process.stdout:
            self.said.append(found.rstrip("\n"))
            if found.startswith("listening on "):
                self.address = found.removeprefix("listening on ").strip()
            if found.startswith("operators on "):
                self.admin_address = found.removeprefix("operators on ").strip()
            if found.startswith(line):
                return
        raise AssertionError(f"it ended with {self.process.wait()} and never said {line!r}: {self.log.read_text()}")

    def wait(self) -> int:
        """Wait for its end and give the exit code."""
        return self.process.wait(PATIENCE_SECONDS)


@contextmanager
def started(
    folder: Path, *arguments: str, until: str = "ready", env: Mapping[str, str] | None = None, listen: str = "127.0.0.1:0"
) -> Iterator[ServerProcess]:  # fmt: skip
    """Run `twinfer serve` until it says `until`; whatever is left of it afterwards is killed."""
    log = folder / "log.txt"
    command = [*COMMAND, "serve", str(folder), "--listen", listen, "--trust-code", *arguments]
    with (
        log.open("w") as stderr,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment(env)) as process,
    ):
        server = ServerProcess(process, log)
        try:
            server.read_until(until)
            yield server
        finally:
            process.kill()
