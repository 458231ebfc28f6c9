"""The gated ensemble, served once for all tests that do not hold its gate."""

from collections.abc import Iterator

import grpc
import pytest

from tests.calls import connect
from tests.gated import write_gated
from tests.servers import running


@pytest.fixture(scope="session")
def channel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[grpc.Channel]:
    """A channel to the ensemble with one member for each kind of input, of at most 4 requests."""
    folder = write_gated(tmp_path_factory.mktemp("oip") / "gated")
    with running(folder, trust_code=True) as server, connect(server.address) as channel:
        yield channel
