"""The light client of twinfer: asks a server that runs two models side by side for their fused answer.

It needs grpcio and protobuf, and nothing else.
"""

from twinfer.aio import AsyncClient
from twinfer.client import Client
from twinfer.errors import Reason, Stage, TwinferError
from twinfer.predictions import DetectedBox, Prediction, ScoredClass, ScoredMatch, Tensor
from twinfer.requests import make_request
from twinfer.results import Attribution, MemberResult, MemberState, Outcome, Response, Timings
from twinfer.tls import tls_credentials

__all__ = [
    "AsyncClient",
    "Attribution",
    "Client",
    "DetectedBox",
    "MemberResult",
    "MemberState",
    "Outcome",
    "Prediction",
    "Reason",
    "Response",
    "ScoredClass",
    "ScoredMatch",
    "Stage",
    "Tensor",
    "Timings",
    "TwinferError",
    "make_request",
    "tls_credentials",
]
