"""The ways in which servers are asked: requests one by one, over a stream or in batches, by gRPC or HTTP."""

import asyncio
import itertools
import time
from collections.abc import Iterator, Sequence
from functools import cache

import grpc
import numpy as np

from benchmarks.loop import SERVICE, Tally, Unary
from benchmarks.peers.pairs import PAIRS
from twinfer import make_request
from twinfer.v1 import ensemble_service_pb2 as pb
from twinfer_server.rpc.oip import grpc_service_pb2 as oip

REQUESTS = 256
"""How many different ones there are, each with the probabilities that plain torch gives."""
TOLERANCE = 1e-5
DATATYPES = {"float32": "FP32", "uint8": "UINT8", "int64": "INT64"}


class Infer(Unary):
    """Calls of `Infer` with the requests of a pair."""

    def __init__(self, pair: str) -> None:
        """Make the requests and serialize all messages."""
        self.pair = pair
        self.requests = PAIRS[pair].requests(REQUESTS)
        self.expected = PAIRS[pair].expect(self.requests)
        self.messages = self.write()

    def write(self) -> Sequence[bytes]:
        """Serialize the requests, in their order."""
        return [make_request(inputs, request_id=f"{n:03}").SerializeToString() for n, inputs in enumerate(self.requests)]

    def check(self, number: int, reply: bytes) -> int | None:
        return self.check_response(number, pb.InferResponse.FromString(reply))

    def check_response(self, number: int, response: pb.InferResponse) -> int | None:
        """Check the answer to a request as twinfer writes it."""
        if response.degraded:
            raise RuntimeError(f"request {number}: the answer is degraded")
        classes = response.prediction.classification.classes
        self.compare(number, [scored.index for scored in classes], [scored.probability for scored in classes])
        return response.timings.batch_size or None

    def compare(self, number: int, classes: Sequence[int], probabilities: Sequence[float]) -> None:
        """Compare probabilities with what plain torch gives; raises RuntimeError."""
        found, right = np.array(probabilities), self.expected[number][list(classes)]
        if not len(found) or not np.abs(found - right).max() <= TOLERANCE:
            raise RuntimeError(f"request {number}: found {found}; right: {right}")


class BatchInfer(Infer):
    """Calls of `BatchInfer` with 32 requests each."""

    method = f"/{SERVICE}/BatchInfer"
    requests_per_message = 32

    def write(self) -> Sequence[bytes]:
        requests, size = [pb.InferRequest.FromString(message) for message in super().write()], self.requests_per_message
        batches = [requests[first : first + size] for first in range(0, REQUESTS, size)]
        return [pb.BatchInferRequest(requests=batch).SerializeToString() for batch in batches]

    def check(self, number: int, reply: bytes) -> int | None:
        size = None
        for index, result in enumerate(pb.BatchInferResponse.FromString(reply).results, start=number * self.requests_per_message):
            size = self.check_response(index, result.response)
        return size


class InferStream(Infer):
    """Requests over one `InferStream`."""

    def write(self) -> Sequence[bytes]:
        requests = [pb.InferRequest.FromString(message) for message in super().write()]
        return [pb.InferStreamRequest(request=request).SerializeToString() for request in requests]

    async def ask(self, address: str, in_flight: int, tally: Tally) -> None:
        room, began = asyncio.Semaphore(in_flight), [0.0] * REQUESTS
        async with grpc.aio.insecure_channel(address) as channel:
            open_stream: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(f"/{SERVICE}/InferStream")
            call = open_stream()

            async def send() -> None:
                for number in itertools.cycle(range(REQUESTS)):
                    await room.acquire()
                    if tally.is_over:
                        break
                    began[number] = time.perf_counter()
                    await call.write(self.messages[number])
                await call.done_writing()

            sender = asyncio.create_task(send())
            async for reply in call:
                number = int(reply[2 : 2 + reply[1]])  # the first field, and short: the request's id
                tally.add(number, reply, began[number])
                room.release()
            await sender

    def check(self, number: int, reply: bytes) -> int | None:
        return self.check_response(number, pb.InferStreamResponse.FromString(reply).response)


class ModelInfer(Infer):
    """Calls of the Open Inference Protocol's `ModelInfer`."""

    method = "/inference.GRPCInferenceService/ModelInfer"

    def write(self) -> Sequence[bytes]:
        messages = []
        for number, inputs in enumerate(self.requests):
            message = oip.ModelInferRequest(model_name=self.pair, id=f"{number:03}")
            for name, array in inputs.items():
                message.inputs.add(name=name, datatype=DATATYPES[array.dtype.name], shape=(1, *array.shape))
                message.raw_input_contents.append(array.tobytes())
            message.outputs.add(name="prediction")
            messages.append(message.SerializeToString())
        return messages

    def check(self, number: int, reply: bytes) -> int | None:
        probabilities = np.frombuffer(oip.ModelInferResponse.FromString(reply).raw_output_contents[0], "<f4")
        self.compare(number, range(len(probabilities)), probabilities.tolist())
        return None


class Http(Infer):
    """The messages of `Infer` over HTTP/1.1, a connection for each request in flight."""

    async def ask(self, address: str, in_flight: int, tally: Tally) -> None:
        turns = itertools.cycle(range(len(self.messages)))
        await asyncio.gather(*(self._ask_on_one(address, tally, turns) for _ in range(in_flight)))

    async def _ask_on_one(self, address: str, tally: Tally, turns: Iterator[int]) -> None:
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))

        async def call(message: bytes) -> bytes:
            writer.write(b"POST /inference HTTP/1.1\r\nHost: peer\r\nContent-Length: %d\r\n\r\n" % len(message) + message)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            if not head.startswith(b"http/1.1 200 "):
                raise ConnectionError(head.decode())
            return await reader.readexactly(int(head.partition(b"content-length:")[2].partition(b"\r\n")[0]))

        await self.repeat(call, 1, tally, turns)
        writer.close()


WAYS: dict[str, type[Infer]] = {
    "Infer": Infer,
    "InferStream": InferStream,
    "BatchInfer": BatchInfer,
    "ModelInfer": ModelInfer,
    "HTTP": Http,
}


@cache
def make_way(way: str, pair: str) -> Infer:
    """Write the messages, once a process."""
    return WAYS[way](pair)


def prepare(pair: str, ways: Sequence[str]) -> None:
    """Write all messages before anything is timed."""
    for way in ways:
        make_way(way, pair)
