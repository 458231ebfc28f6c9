"""The decoder: whose turn it is where one request has many rows."""

import queue
import threading
from collections.abc import Sequence
from concurrent.futures import Future

import numpy as np
import pytest
from PIL import Image

from tests.gated import write_gated
from tests.models import as_any
from tests.pictures import encode
from twinfer_server.device import CpuDevice
from twinfer_server.engine.decoder import SHARE_BYTES, TURN_SECONDS, Decoder
from twinfer_server.errors import InvalidInput, TwinferError
from twinfer_server.executor import Ensemble, load_ensemble
from twinfer_server.inputs import InputLimits
from twinfer_server.trust import Trust
from twinfer_server.types import InferRequest, Policy, RawInput, Request

PATIENCE_SECONDS = 30.0


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory: pytest.TempPathFactory) -> Ensemble:
    folder = write_gated(tmp_path_factory.mktemp("decoder") / "gated")
    return load_ensemble(folder, CpuDevice(lanes=3), Trust(runs_any_code=True), InputLimits())


@pytest.fixture(scope="module")
def picture() -> bytes:
    """A picture that takes much longer than a turn."""
    noise = np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), dtype=np.uint8)
    return encode(Image.fromarray(noise), compress_level=1)


def make_row(**inputs: RawInput) -> Request:
    return Request(InferRequest(inputs, arrived_at=0.0), Policy.BEST_EFFORT, None, reply_by=1e6, answer=as_any(Future()))


class Counter:
    """Where rows go when they are ready, or bad; nothing moves on before `open` is set."""

    def __init__(self, ensemble: Ensemble, threads: int) -> None:
        self.ready: queue.SimpleQueue[Sequence[Request]] = queue.SimpleQueue()
        self.bad: queue.SimpleQueue[tuple[Request, TwinferError]] = queue.SimpleQueue()
        self.open = threading.Event()
        self.decoder = Decoder(ensemble.intake, threads, self._take, lambda row, error: self.bad.put((row, error)))

    def _take(self, rows: Sequence[Request]) -> None:
        self.ready.put(rows)
        self.open.wait(PATIENCE_SECONDS)


def test_rows_of_a_large_request_do_not_keep_others_from_their_turn(ensemble: Ensemble, picture: bytes) -> None:
    counter = Counter(ensemble, threads=1)
    many, single = [make_row(image=picture) for _ in range(4)], make_row(text="two")
    counter.decoder.decode([make_row(text="first")], 1)
    counter.ready.get(timeout=PATIENCE_SECONDS)  # its thread stands still until everybody is there
    counter.decoder.decode(many, 1)
    counter.decoder.decode([single], 1)
    counter.open.set()
    batches = [list(counter.ready.get(timeout=PATIENCE_SECONDS)) for _ in range(5)]
    assert batches == [[many[0]], [single], [many[1]], [many[2]], [many[3]]]
    assert all(row.decode_seconds > TURN_SECONDS for row in many)
    counter.decoder.close()


def test_rows_that_are_bad_or_given_up_are_left_out_and_the_others_are_ready_in_their_order(ensemble: Ensemble) -> None:
    counter = Counter(ensemble, threads=4)
    counter.open.set()
    rows = [make_row(text="two"), make_row(image=b"no image"), make_row(text="three"), make_row(text="four")]
    given_up: Future[object] = as_any(rows[2].answer)
    given_up.cancel()
    counter.decoder.decode(rows, 100)
    ready: list[Request] = []
    while len(ready) < 2:  # in one turn or two
        ready += counter.ready.get(timeout=PATIENCE_SECONDS)
    assert ready == [rows[0], rows[3]]
    bad, error = counter.bad.get(timeout=PATIENCE_SECONDS)
    assert bad is rows[1]
    assert isinstance(error, InvalidInput)
    counter.decoder.close()


def test_a_large_request_is_decoded_by_several_threads(ensemble: Ensemble) -> None:
    counter = Counter(ensemble, threads=3)
    rows = [make_row(text="two") for _ in range(7)]
    counter.decoder.decode(rows, 10 * SHARE_BYTES)
    shares = [counter.ready.get(timeout=PATIENCE_SECONDS) for _ in range(3)]  # nobody waits for another to go on
    assert sorted(map(len, shares)) == [2, 2, 3]
    assert {id(row) for share in shares for row in share} == set(map(id, rows))
    counter.open.set()
    counter.decoder.close()
