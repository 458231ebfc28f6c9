"""What people write themselves: grpc.aio and the two models, one call at a time or with a simple batcher of 2 ms.

It takes the same messages as twinfer and gives the same answers, without timings.

    python -m benchmarks.peers.plain noop 50051 --batching
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import grpc
import numpy as np
import torch
import typer
import uvloop
from numpy.typing import NDArray

from benchmarks.peers.messages import read_row, write_answer
from benchmarks.peers.pairs import DELAY_SECONDS, MAX_ROWS, PAIRS, Arrays, Both, Pair, stack
from twinfer.v1 import ensemble_service_pb2 as pb
from twinfer.v1 import ensemble_service_pb2_grpc


class Batcher:
    """Waits for 2 ms unless a full batch is there, and computes it on a thread."""

    def __init__(self, compute: Both) -> None:
        self._compute = compute
        self._waiting: asyncio.Queue[tuple[Arrays, asyncio.Future[NDArray[np.float32]]]] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,))

    async def ask(self, row: Arrays) -> NDArray[np.float32]:
        answer: asyncio.Future[NDArray[np.float32]] = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait((row, answer))
        return await answer

    async def run(self) -> None:
        while True:
            batch = [await self._waiting.get()]
            if self._waiting.qsize() < MAX_ROWS - 1:
                await asyncio.sleep(DELAY_SECONDS)
            while len(batch) < MAX_ROWS and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
            rows = await asyncio.get_running_loop().run_in_executor(self._thread, self._compute, stack([row for row, _ in batch]))
            for (_, answer), row in zip(batch, rows, strict=True):
                answer.set_result(row)


class Plain(ensemble_service_pb2_grpc.EnsembleServiceServicer):
    """The service, as far as it goes."""

    def __init__(self, pair: Pair, is_batching: bool) -> None:
        self._pair = pair
        self._compute = Both(pair)
        self.batcher = Batcher(self._compute) if is_batching else None

    async def Infer(self, request: pb.InferRequest, context: Any) -> pb.InferResponse:
        row = read_row(request, self._pair)
        fused = await self.batcher.ask(row) if self.batcher else self._compute(stack([row]))[0]
        return write_answer(request, fused, self._pair)


async def _serve(pair: Pair, port: int, is_batching: bool) -> None:
    server, service = grpc.aio.server(), Plain(pair, is_batching)
    ensemble_service_pb2_grpc.add_EnsembleServiceServicer_to_server(service, server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await (service.batcher.run() if service.batcher else server.wait_for_termination())


def main(
    name: str,
    port: int,
    is_batching: Annotated[bool, typer.Option("--batching/--one-by-one")] = False,
    is_on_uvloop: Annotated[bool, typer.Option("--uvloop/--asyncio")] = False,
) -> None:
    """Serve a pair until SIGTERM."""
    torch.set_num_threads(1)
    (uvloop if is_on_uvloop else asyncio).run(_serve(PAIRS[name], port, is_batching))


if __name__ == "__main__":
    typer.run(main)
