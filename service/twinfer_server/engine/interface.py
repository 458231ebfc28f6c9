"""What the RPC layer knows of an engine."""

from collections.abc import Sequence
from typing import Protocol

from ..errors import TwinferError
from ..types import InferRequest, Response
from .description import Description
from .operations import Operations


class Engine(Protocol):
    """Answers rows; whether it computes in this process is not the RPC layer's business."""

    @property
    def description(self) -> Description:
        """What is served, as it is now."""
        ...

    async def infer(self, request: InferRequest, size_bytes: int) -> Response:
        """Answer one row; raises TwinferError. `size_bytes` is what it takes in memory until it is answered."""
        ...

    async def infer_batch(self, requests: Sequence[InferRequest], size_bytes: int) -> list[Response | TwinferError]:
        """Answer many rows, each with its answer or its error, in their order; raises TwinferError if none can be taken in hand.

        `size_bytes` is what they take together.
        """
        ...

    def check_served(self, ensemble: str, version: int) -> None:
        """Raise UnknownEnsemble unless the name and version are served."""
        ...

    def note_reply(self, request: InferRequest, answer: Response, began: float) -> None:
        """Note that the answer to a request has been written since `began`, a time of `time.monotonic()`."""
        ...

    def note_failure(self, error: TwinferError) -> None:
        """Note that a row has ended with an error, whoever raised it."""
        ...


class OperableEngine(Engine, Protocol):
    """An engine that operators reach, too: it computes in this process."""

    operations: Operations
    """What operators can change."""

    async def capture_timeline(self, seconds: float) -> str:
        """Watch everything for so long and give it as a Chrome trace; raises Overloaded if somebody else is watching."""
        ...
