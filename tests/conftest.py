"""What several tests share: the digits, served once in a process of its own as a user would run it, and the gated ensemble."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.certificates import Authority, make_all
from tests.gated import Gate, write_gated
from tests.servers import DIGITS
from twinfer_server.demo import HeldOutRow, read_rows, running_server

# A busy machine fails no test, and a fixture may well outlive an example.
settings.register_profile(
    "twinfer", deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
settings.load_profile("twinfer")


@dataclass(frozen=True, slots=True)
class DigitsServer:
    """The running server and the held-out rows of its ensemble."""

    address: str
    rows: list[HeldOutRow]


@pytest.fixture(scope="session")
def digits_server() -> Iterator[DigitsServer]:
    with running_server(DIGITS) as address:
        yield DigitsServer(address, read_rows(DIGITS))


@pytest.fixture(scope="session")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> tuple[Authority, Authority]:
    """An authority with certificates good and bad, and another one."""
    return make_all(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def authority(authorities: tuple[Authority, Authority]) -> Authority:
    """The authority that servers and clients trust."""
    return authorities[0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The ensemble of `gated.py`, where a test file has no folder of its own."""
    return write_gated(tmp_path / "gated")


@pytest.fixture
def gate(folder: Path) -> Iterator[Gate]:
    """The gate at which the folder's model stands while it computes; open when the test is over."""
    gate = Gate(folder)
    yield gate
    gate.open()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Compute as the command does: sums this small take longer where threads have to agree, above all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
