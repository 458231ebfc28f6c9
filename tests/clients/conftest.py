"""What the tests of the Python client share."""

import socket
from collections.abc import Iterator

import pytest

from tests.scripted import Caller, ScriptedService, serving


@pytest.fixture(params=["blocking", "async"])
def caller(request: pytest.FixtureRequest) -> Caller:
    """Each of the two clients."""
    return Caller(request.param)


@pytest.fixture
def refused_address() -> Iterator[str]:
    """An address that is taken, and where no server listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"


@pytest.fixture
def service() -> Iterator[ScriptedService]:
    """A server that answers with ANSWER until the test gives it another script."""
    found = ScriptedService()
    with serving(found) as found.address:
        yield found
