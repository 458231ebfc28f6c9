"""The light client of twinfer: asks a server that runs two models side by side for their fused answer.

It needs grpcio and protobuf, and nothing else.
"""

from twinfer.aio import AsyncClient
from twinfer.answers import Answer, Influence, MemberAnswer, MemberState, Outcome, Timings
from twinfer.client import Client
from twinfer.errors import Reason, Stage, TwinferError
from twinfer.predictions import DetectedBox, Prediction, ScoredClass, ScoredMatch, Tensor
from twinfer.requests import make_request

__all__ = [
    "Answer",
    "AsyncClient",
    "Client",
    "DetectedBox",
    "Influence",
    "MemberAnswer",
    "MemberState",
    "Outcome",
    "Prediction",
    "Reason",
    "ScoredClass",
    "ScoredMatch",
    "Stage",
    "Tensor",
    "Timings",
    "TwinferError",
    "make_request",
]
