"""The preprocessor: whose turn it is where one call has many requests."""

import queue
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

from tests.calls import PATIENCE_SECONDS
from tests.gated import write_gated
from tests.models import as_any, load_members
from tests.pictures import encode
from twinfer_server.engine.preprocessor import SHARE_BYTES, TURN_SECONDS, Preprocessor
from twinfer_server.errors import InvalidInput, TwinferError
from twinfer_server.inputs import RequestProcessor
from twinfer_server.types import InferRequest, Policy, RawInput, Request


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> RequestProcessor:
    return load_members(write_gated(tmp_path_factory.mktemp("preprocessor") / "gated")).processor


@pytest.fixture(scope="module")
def picture() -> bytes:
    """A picture that takes much longer than a turn."""
    noise = np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), dtype=np.uint8)
    return encode(Image.fromarray(noise), compress_level=1)


def make_request(caller: str = "", /, **inputs: RawInput) -> Request:
    return Request(
        InferRequest(inputs, arrived_at=0.0, caller=caller), Policy.BEST_EFFORT, None, reply_by=1e6, response=as_any(Future())
    )


class Receiver:
    """Where requests go when they are ready, or have failed; no thread goes on before `open` is set."""

    def __init__(self, processor: RequestProcessor, threads: int) -> None:
        self._ready: queue.SimpleQueue[Sequence[Request]] = queue.SimpleQueue()
        self.failed: queue.SimpleQueue[tuple[Request, TwinferError]] = queue.SimpleQueue()
        self.open = threading.Event()
        self.preprocessor = Preprocessor(processor, threads, self._take, lambda request, error: self.failed.put((request, error)))

    def next_ready(self) -> list[Request]:
        return list(self._ready.get(timeout=PATIENCE_SECONDS))

    def _take(self, requests: Sequence[Request]) -> None:
        self._ready.put(requests)
        self.open.wait(PATIENCE_SECONDS)


@contextmanager
def receiving(processor: RequestProcessor, threads: int) -> Iterator[Receiver]:
    receiver = Receiver(processor, threads)
    yield receiver
    receiver.open.set()
    receiver.preprocessor.close()


def test_the_requests_of_a_large_call_do_not_keep_others_from_their_turn(processor: RequestProcessor, picture: bytes) -> None:
    with receiving(processor, threads=1) as receiver:
        many, single = [make_request(image=picture) for _ in range(4)], make_request(text="two")
        receiver.preprocessor.prepare([make_request(text="first")], 1)
        receiver.next_ready()  # the only thread stands still until all calls have come
        receiver.preprocessor.prepare(many, 1)
        receiver.preprocessor.prepare([single], 1)
        receiver.open.set()
        assert [receiver.next_ready() for _ in range(5)] == [[many[0]], [single], [many[1]], [many[2]], [many[3]]]
        assert all(request.decode_seconds > TURN_SECONDS for request in many)


def test_a_caller_with_many_calls_does_not_keep_others_from_their_turn(processor: RequestProcessor) -> None:
    with receiving(processor, threads=1) as receiver:
        many, single = [make_request("greedy", text="two") for _ in range(4)], make_request("other", text="two")
        receiver.preprocessor.prepare([make_request("greedy", text="first")], 1)
        receiver.next_ready()  # the only thread stands still until all calls have come
        for request in (*many, single):
            receiver.preprocessor.prepare([request], 1)
        receiver.open.set()
        assert [receiver.next_ready() for _ in range(5)] == [[many[0]], [single], [many[1]], [many[2]], [many[3]]]


def test_requests_that_fail_or_are_cancelled_are_left_out_and_the_others_are_ready_in_their_order(
    processor: RequestProcessor,
) -> None:
    with receiving(processor, threads=4) as receiver:
        receiver.open.set()
        inputs: list[dict[str, RawInput]] = [{"text": "two"}, {"image": b"no image"}, {"text": "three"}, {"text": "four"}]
        requests = [make_request(**given) for given in inputs]
        as_any(requests[2].response).cancel()
        receiver.preprocessor.prepare(requests, 100)
        ready: list[Request] = []
        while len(ready) < 2:  # in one turn or two
            ready += receiver.next_ready()
        assert ready == [requests[0], requests[3]]
        failed, error = receiver.failed.get(timeout=PATIENCE_SECONDS)
        assert failed is requests[1]
        assert isinstance(error, InvalidInput)


def test_a_large_call_is_prepared_by_several_threads(processor: RequestProcessor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twinfer_server.engine.preprocessor.TURN_SECONDS", PATIENCE_SECONDS)
    with receiving(processor, threads=3) as receiver:
        requests = [make_request(text="two") for _ in range(7)]
        receiver.preprocessor.prepare(requests, 10 * SHARE_BYTES)
        shares = [receiver.next_ready() for _ in range(3)]  # no thread waits for another to go on
        assert sorted(map(len, shares)) == [2, 2, 3]
        assert {id(request) for share in shares for request in share} == set(map(id, requests))
