"""The ways in which servers are asked: rows one by one, over a stream or in batches, by gRPC or HTTP."""

import asyncio
import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import ClassVar

import grpc
import numpy as np

from benchmarks.peers.load import ROWS, TIMEOUT_SECONDS, Load, Tally
from twinfer import make_request
from twinfer.v1 import ensemble_service_pb2 as pb
from twinfer_server.rpc.oip import grpc_service_pb2 as oip
from twinfer_server.rpc.oip.datatypes import DATATYPE_OF_NAME

SERVICE = pb.DESCRIPTOR.services_by_name["EnsembleService"].full_name
Call = Callable[[bytes], Awaitable[bytes]]


class Way(ABC):
    """A way of asking: what is sent, how, and what came back. Made in the process that asks."""

    name: ClassVar[str]
    rows_per_message: ClassVar[int] = 1

    def __init__(self, load: Load) -> None:
        """Serialize all messages."""
        self.load = load
        self.messages = self.write()

    @abstractmethod
    def write(self) -> Sequence[bytes]:
        """Serialize the load's rows, in their order."""

    @abstractmethod
    async def ask(self, address: str, in_flight: int, tally: Tally) -> None:
        """Keep so many rows under way until the tally is over."""

    @abstractmethod
    def check(self, number: int, reply: bytes) -> None:
        """Check the reply to a message; raises RuntimeError."""

    def check_answer(self, number: int, answer: pb.InferResponse) -> None:
        """Check the answer to a row as twinfer writes it."""
        if answer.degraded:
            raise RuntimeError(f"row {number}: the answer is degraded")
        classes = answer.prediction.classification.classes
        self.load.check(number, [scored.index for scored in classes], [scored.probability for scored in classes])

    async def repeat(self, call: Call, callers: int, tally: Tally, turns: Iterator[int] | None = None) -> None:
        """Have so many callers send a message each, again and again."""
        turns = turns or itertools.cycle(range(len(self.messages)))

        async def caller() -> None:
            while not tally.is_over:
                number = next(turns)
                began = time.perf_counter()
                tally.add(number, await call(self.messages[number]), began)

        await asyncio.gather(*(caller() for _ in range(callers)))


class Unary(Way):
    """Calls of `Infer`."""

    name = "Infer"
    method: ClassVar[str] = f"/{SERVICE}/Infer"

    def write(self) -> Sequence[bytes]:
        return [make_request(row, request_id=f"{n:03}").SerializeToString() for n, row in enumerate(self.load.rows)]

    async def ask(self, address: str, in_flight: int, tally: Tally) -> None:
        async with grpc.aio.insecure_channel(address) as channel:
            method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(self.method)
            await self.repeat(lambda message: method(message, timeout=TIMEOUT_SECONDS), in_flight // self.rows_per_message, tally)

    def check(self, number: int, reply: bytes) -> None:
        self.check_answer(number, pb.InferResponse.FromString(reply))


class Batches(Unary):
    """Calls of `BatchInfer` with 32 rows each."""

    name = "BatchInfer"
    method = f"/{SERVICE}/BatchInfer"
    rows_per_message = 32

    def write(self) -> Sequence[bytes]:
        requests = [pb.InferRequest.FromString(message) for message in super().write()]
        batches = [requests[first : first + self.rows_per_message] for first in range(0, ROWS, self.rows_per_message)]
        return [pb.BatchInferRequest(requests=batch).SerializeToString() for batch in batches]

    def check(self, number: int, reply: bytes) -> None:
        results = pb.BatchInferResponse.FromString(reply).results
        for place, result in enumerate(results, start=number * self.rows_per_message):
            self.check_answer(place, result.response)


class Stream(Way):
    """Rows over one `InferStream`."""

    name = "InferStream"

    def write(self) -> Sequence[bytes]:
        requests = [make_request(row, request_id=f"{n:03}") for n, row in enumerate(self.load.rows)]
        return [pb.InferStreamRequest(request=request).SerializeToString() for request in requests]

    async def ask(self, address: str, in_flight: int, tally: Tally) -> None:
        room, began = asyncio.Semaphore(in_flight), [0.0] * ROWS
        async with grpc.aio.insecure_channel(address) as channel:
            open_stream: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(f"/{SERVICE}/InferStream")
            call = open_stream()

            async def send() -> None:
                for number in itertools.cycle(range(ROWS)):
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

    def check(self, number: int, reply: bytes) -> None:
        self.check_answer(number, pb.InferStreamResponse.FromString(reply).response)


class OpenInference(Unary):
    """Calls of the Open Inference Protocol's `ModelInfer`."""

    name = "ModelInfer"
    method = "/inference.GRPCInferenceService/ModelInfer"

    def write(self) -> Sequence[bytes]:
        messages = []
        for number, row in enumerate(self.load.rows):
            message = oip.ModelInferRequest(model_name=self.load.pair, id=f"{number:03}")
            for name, array in row.items():
                message.inputs.add(name=name, datatype=DATATYPE_OF_NAME[array.dtype.name], shape=(1, *array.shape))
                message.raw_input_contents.append(array.tobytes())
            message.outputs.add(name="prediction")
            messages.append(message.SerializeToString())
        return messages

    def check(self, number: int, reply: bytes) -> None:
        probabilities = np.frombuffer(oip.ModelInferResponse.FromString(reply).raw_output_contents[0], "<f4")
        self.load.check(number, range(len(probabilities)), probabilities.tolist())


class Http(Unary):
    """The messages of `Infer` over HTTP/1.1, a connection for each row in flight."""

    name = "HTTP"

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


WAYS: dict[str, type[Way]] = {way.name: way for way in (Unary, Stream, Batches, OpenInference, Http)}
