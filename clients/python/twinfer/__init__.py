"""The light client of twinfer: asks a server that runs two models side by side for their fused answer.

It needs grpcio and protobuf, and nothing else.
"""

from twinfer.aio import AsyncClient
from twinfer.answers import Answer, MemberAnswer, MemberState, Outcome, Prediction, ScoredClass, Timings
from twinfer.client import Client
from twinfer.errors import Reason, Stage, TwinferError
from twinfer.requests import make_request

__all__ = [
    "Answer",
    "AsyncClient",
    "Client",
    "MemberAnswer",
    "MemberState",
    "Outcome",
    "Prediction",
    "Reason",
    "ScoredClass",
    "Stage",
    "Timings",
    "TwinferError",
    "make_request",
]
