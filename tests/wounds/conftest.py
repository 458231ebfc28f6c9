"""One server in a process of its own, at which all of these tests throw what has harmed others, and the memory that this takes."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from tests.calls import connect, infer
from tests.gated import make_gated, write_gated
from tests.processes import started
from twinfer.v1 import ensemble_service_pb2 as pb

MEBIBYTE = 2**20
MAX_MESSAGE_BYTES = 4 * MEBIBYTE
MAX_PIXELS = 2**20


@dataclass(frozen=True, slots=True)
class Victim:
    """A server, and another caller's channel to it."""

    address: str
    channel: grpc.Channel
    process_id: int

    def check_that_it_answers(self) -> None:
        """Make a call of another caller's, which is answered."""
        assert isinstance(infer(self.channel, make_gated()), pb.InferResponse)

    @contextmanager
    def growing_at_most(self, mebibytes: float) -> Iterator[None]:
        """Fail if the server's memory grows by more in the body, or if it does not answer afterwards."""
        process = Path(f"/proc/{self.process_id}")
        (process / "clear_refs").write_text("5")  # forgets the peak
        before = self._read_peak()
        yield
        self.check_that_it_answers()
        grown = (self._read_peak() - before) / MEBIBYTE
        print(f"grown by {grown:.0f} MiB; allowed {mebibytes}")
        assert grown <= mebibytes

    def _read_peak(self) -> int:
        lines = Path(f"/proc/{self.process_id}/status").read_text(encoding="utf-8").splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM:")))


@pytest.fixture(scope="session")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    folder = write_gated(tmp_path_factory.mktemp("wounds") / "gated")
    settings = {"max_message_bytes": MAX_MESSAGE_BYTES, "max_image_pixels": MAX_PIXELS, "decode_threads": 2}
    arguments = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    with started(folder, *arguments) as server, connect(server.address) as channel:
        victim = Victim(server.address, channel, server.process.pid)
        victim.check_that_it_answers()
        yield victim
