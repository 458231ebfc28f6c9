"""What several tests share: the digits, served once, in a process of its own as a user would run it."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.servers import DIGITS
from twinfer_server.demo import HeldOutRow, read_rows, running_server


@dataclass(frozen=True, slots=True)
class DigitsServer:
    """The running server and the held-out rows of its ensemble."""

    address: str
    rows: list[HeldOutRow]


@pytest.fixture(scope="session")
def digits_server() -> Iterator[DigitsServer]:
    with running_server(DIGITS, arguments=["--set", "cache_dir="]) as address:
        yield DigitsServer(address, read_rows(DIGITS))
