"""twinfer's own messages, as a peer reads and writes them."""

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.pairs import Arrays, Pair
from twinfer.v1 import ensemble_service_pb2 as pb


def read_inputs(request: pb.InferRequest, pair: Pair) -> Arrays:
    """Return the arrays that a request carries, by input name."""
    return {
        name: np.frombuffer(request.inputs[name].tensor.data, dtype).reshape(shape) for name, (dtype, shape) in pair.inputs.items()
    }


def write_response(request: pb.InferRequest, fused: NDArray[np.float32], pair: Pair) -> pb.InferResponse:
    """Return the response to a request: all that twinfer writes but timings."""
    best = np.argsort(-fused)[:5].tolist()
    return pb.InferResponse(
        ensemble=pair.name,
        version=1,
        request_id=request.request_id,
        prediction=pb.Prediction(
            classification=pb.Classification(classes=[pb.ScoredClass(index=index, probability=fused[index]) for index in best])
        ),
        members=[pb.MemberResult(name=name, state=pb.MEMBER_STATE_OK, weight=0.5) for name in pair.models],
    )
