"""What people write themselves: grpc.aio and the two models, one call at a time ("bare") or with a lean batcher on uvloop.

Both take twinfer's messages and answer as twinfer does, without timings.

    python -m benchmarks.peers.plain noop 50051 --lean
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import grpc
import numpy as np
import torch
import typer
import uvloop
from numpy.typing import NDArray

from benchmarks.peers.messages import read_inputs, write_response
from benchmarks.peers.pairs import MAX_BATCH_SIZE, PAIRS, Arrays, Both, Pair, stack
from twinfer.v1 import ensemble_service_pb2 as pb
from twinfer.v1 import ensemble_service_pb2_grpc

QUIET_SECONDS = 0.001
MAX_WAIT_SECONDS = 0.002

Fused = NDArray[np.float32]


class LeanBatcher:
    """Computes together what came together, on a thread.

    A lone caller never waits. Where calls overlap, a launch waits until nothing has come for 1 ms, for 2 ms at most.
    """

    def __init__(self, compute: Both) -> None:
        self._compute = compute
        self._waiting: list[tuple[Arrays, asyncio.Future[Fused]]] = []
        self._has_come = asyncio.Event()
        self._last_came = 0.0
        self._thread = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,))

    async def infer(self, inputs: Arrays) -> Fused:
        """Return what the models say, once a batch with these inputs has been computed."""
        result: asyncio.Future[Fused] = asyncio.get_running_loop().create_future()
        self._waiting.append((inputs, result))
        self._last_came = time.monotonic()
        self._has_come.set()
        return await result

    async def run(self) -> None:
        """Compute batches, one after the other, without end."""
        loop, size = asyncio.get_running_loop(), 0
        while True:
            await self._has_come.wait()
            if size > 1 or len(self._waiting) > 1:  # calls overlap: in the last batch, or now
                await self._collect()
            batch, self._waiting = self._waiting[:MAX_BATCH_SIZE], self._waiting[MAX_BATCH_SIZE:]
            if not self._waiting:
                self._has_come.clear()
            size = len(batch)
            fused = await loop.run_in_executor(self._thread, self._compute, stack([inputs for inputs, _ in batch]))
            for (_, result), row in zip(batch, fused, strict=True):
                if not result.done():
                    result.set_result(row)

    async def _collect(self) -> None:
        """Wait until nothing has come for a moment."""
        for _ in range(3):
            await asyncio.sleep(0)  # until the last batch's replies are on their way: the next requests come after them
        began = time.monotonic()
        while len(self._waiting) < MAX_BATCH_SIZE:
            now = time.monotonic()  # uvloop's own is of whole milliseconds, as its timers are
            if now - self._last_came >= QUIET_SECONDS or now - began >= MAX_WAIT_SECONDS:
                return
            await asyncio.sleep(QUIET_SECONDS)


class Plain(ensemble_service_pb2_grpc.EnsembleServiceServicer):
    """The service, as far as it goes."""

    def __init__(self, pair: Pair, infer: Callable[[Arrays], Awaitable[Fused]]) -> None:
        self._pair = pair
        self._infer = infer

    async def Infer(self, request: pb.InferRequest, context: Any) -> pb.InferResponse:
        return write_response(request, await self._infer(read_inputs(request, self._pair)), self._pair)


async def _serve(pair: Pair, port: int, is_lean: bool) -> None:
    compute = Both(pair)
    batcher = LeanBatcher(compute)

    async def infer_alone(inputs: Arrays) -> Fused:
        fused: Fused = compute(stack([inputs]))[0]
        return fused

    server = grpc.aio.server()
    ensemble_service_pb2_grpc.add_EnsembleServiceServicer_to_server(Plain(pair, batcher.infer if is_lean else infer_alone), server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await batcher.run()


def main(name: str, port: int, is_lean: Annotated[bool, typer.Option("--lean/--bare")] = False) -> None:
    """Serve a pair until SIGTERM."""
    torch.set_num_threads(1)
    (uvloop if is_lean else asyncio).run(_serve(PAIRS[name], port, is_lean))


if __name__ == "__main__":
    typer.run(main)
