"""Requests that are refused, written down one by one or drawn at random, whichever protocol they belong to."""

from dataclasses import dataclass
from typing import Generic, TypeVar

import grpc
from google.protobuf.message import Message
from hypothesis import settings
from hypothesis import strategies as st
from PIL import Image

from tests.pictures import encode

R = TypeVar("R", bound=Message)

INPUT, OPTION = "INVALID_INPUT", "INVALID_OPTION"
NUMBERS = "inputs['numbers']"

FUZZ = settings(max_examples=150)
EXPECTED = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.DEADLINE_EXCEEDED}
SIZES = st.one_of(st.integers(0, 4), st.sampled_from([-1, 2**31, 2**32, 2**62, 2**63 - 1, -(2**63)]))


@dataclass(frozen=True, slots=True)
class Case(Generic[R]):
    """A request that is refused, and how; `words` stand in the error's text, `message` is what is sent where it is no request."""

    sentence: str
    request: R
    reason: str
    words: tuple[str, ...]
    code: grpc.StatusCode = grpc.StatusCode.INVALID_ARGUMENT
    message: bytes = b""

    @property
    def stage(self) -> str:
        """The stage at which it is refused, without its prefix."""
        return "DECODE" if self.reason == INPUT else "ADMIT"

    def name(self, what: str) -> str:
        """Name a test of the case, of which it says `what` becomes of it."""
        return f"{self.sentence} {what}".replace(" ", "_")


def png(width: int, height: int) -> bytes:
    """Write a black picture."""
    return encode(Image.new("RGB", (width, height)))


@st.composite
def mutated(draw: st.DrawFn, message: Message) -> bytes:
    """Draw a valid message with some of its bytes changed, left out or put in."""
    content = bytearray(message.SerializeToString())
    for _ in range(draw(st.integers(1, 6))):
        begin = draw(st.integers(0, len(content)))
        content[begin : begin + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(content)
