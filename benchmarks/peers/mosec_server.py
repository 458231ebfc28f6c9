"""The pair behind Mosec, in an environment of its own (`make peers`): one worker, with the batcher's limits.

python -m benchmarks.peers.mosec_server noop --address 127.0.0.1 --port 8000
"""

import sys
from collections.abc import Sequence

import torch
from mosec import Server, Worker

from benchmarks.peers.messages import read_inputs, write_response
from benchmarks.peers.pairs import DELAY_SECONDS, MAX_BATCH_SIZE, PAIRS, Both, stack
from twinfer.v1 import ensemble_service_pb2 as pb

PAIR = PAIRS[sys.argv[1]]


class Members(Worker):  # type: ignore[misc]  # Mosec is not in the environment of the type checker
    """Both models and their fusion, for the messages of `Infer`."""

    resp_mime_type = "application/x-protobuf"

    def __init__(self) -> None:
        super().__init__()
        torch.set_num_threads(1)
        self._compute = Both(PAIR)

    def deserialize(self, data: bytes) -> pb.InferRequest:
        return pb.InferRequest.FromString(data)

    def forward(self, data: Sequence[pb.InferRequest]) -> list[pb.InferResponse]:
        fused = self._compute(stack([read_inputs(request, PAIR) for request in data]))
        return [write_response(request, row, PAIR) for request, row in zip(data, fused, strict=True)]

    def serialize(self, data: pb.InferResponse) -> bytes:
        return data.SerializeToString()


if __name__ == "__main__":
    server = Server()
    server.append_worker(Members, max_batch_size=MAX_BATCH_SIZE, max_wait_time=round(DELAY_SECONDS * 1000))
    server.run()
