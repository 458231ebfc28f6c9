"""What people write themselves: grpc.aio and the two models, one call at a time or with a simple batcher of 2 ms.

It takes the same messages as twinfer and gives the same answers, without timings.

    python -m benchmarks.peers.plain noop --batching
"""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import grpc
import numpy as np
import torch
import typer
import uvloop
from numpy.typing import NDArray

from benchmarks.peers.pairs import MAX_ROWS, PAIRS, Arrays, Both, Pair
from twinfer.v1 import ensemble_service_pb2 as pb
from twinfer.v1 import ensemble_service_pb2_grpc

DELAY_SECONDS = 0.002


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
            rows = await asyncio.get_running_loop().run_in_executor(self._thread, self._compute, _stack([row for row, _ in batch]))
            for (_, answer), row in zip(batch, rows, strict=True):
                answer.set_result(row)


class Plain(ensemble_service_pb2_grpc.EnsembleServiceServicer):
    """The service, as far as it goes."""

    def __init__(self, pair: Pair, is_batching: bool) -> None:
        self._pair = pair
        self._compute = Both(pair)
        self.batcher = Batcher(self._compute) if is_batching else None

    async def Infer(self, request: pb.InferRequest, context: Any) -> pb.InferResponse:
        row = {
            name: np.frombuffer(request.inputs[name].tensor.data, dtype).reshape(shape)
            for name, (dtype, shape) in self._pair.inputs.items()
        }
        fused = await self.batcher.ask(row) if self.batcher else self._compute(_stack([row]))[0]
        return pb.InferResponse(
            ensemble=self._pair.name,
            version=1,
            request_id=request.request_id,
            prediction=pb.Prediction(
                classification=pb.Classification(
                    classes=[pb.ScoredClass(index=index, probability=fused[index]) for index in np.argsort(-fused)[:5].tolist()]
                )
            ),
            members=[pb.MemberResult(name=name, state=pb.MEMBER_STATE_OK, weight=0.5) for name in self._pair.models],
        )


def _stack(rows: Sequence[Arrays]) -> Arrays:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


async def _serve(pair: Pair, is_batching: bool) -> None:
    server, service = grpc.aio.server(), Plain(pair, is_batching)
    ensemble_service_pb2_grpc.add_EnsembleServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"listening on 127.0.0.1:{port}\nready", flush=True)
    await (service.batcher.run() if service.batcher else server.wait_for_termination())


def main(name: str, is_batching: Annotated[bool, typer.Option("--batching/--one-by-one")] = False) -> None:
    """Serve a pair until SIGTERM."""
    torch.set_num_threads(1)
    uvloop.run(_serve(PAIRS[name], is_batching))


if __name__ == "__main__":
    typer.run(main)
