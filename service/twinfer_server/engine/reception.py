"""The reception: takes requests in hand and has them answered, whichever process computes."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence

from ..device import usable_cores
from ..errors import TwinferError
from ..inputs import RequestProcessor
from ..settings import ServerSettings
from ..types import InferRequest, Policy, Request, Response
from .admission import Admission
from .decoder import Decoder
from .margin import ReplyMargin
from .watch import Watch


class Reception(ABC):
    """What all engines do with requests: check, decode, watch over and wait for them. All methods belong to the event loop.

    It owns the work, not the caller's RPC: a caller who goes away takes his rows out of the queue, but a flight that carries them
    flies on.
    """

    def __init__(self, intake: RequestProcessor, settings: ServerSettings, decode_threads: int) -> None:
        """Begin with nothing in hand; decode on so many threads, 0 for as many as there are cores."""
        self._intake = intake
        self._settings = settings
        self._admission = Admission(settings)
        self._margin = ReplyMargin(settings)
        self._decoder = Decoder(intake, decode_threads or usable_cores(), self._put, self._fail_soon)

    @abstractmethod
    def _check(self, request: InferRequest) -> Policy:
        """Check a request, all but its inputs; give the policy that it is answered under. Raises TwinferError."""

    @abstractmethod
    def _put(self, rows: Sequence[Request]) -> None:
        """Have prepared rows computed; any thread."""

    @abstractmethod
    def _fail_soon(self, row: Request, error: TwinferError) -> None:
        """Have the event loop end a row with an error; any thread."""

    @abstractmethod
    def _watch(self, rows: Sequence[Request]) -> Watch:
        """Start a clock for rows that have been taken in hand."""

    @abstractmethod
    def _give_up(self, rows: Sequence[Request]) -> None:
        """Let go of rows whose caller went away, and whose answers are cancelled."""

    def check_served(self, ensemble: str, version: int) -> None:
        """Raise UnknownEnsemble unless the name and version are served."""
        self._intake.check_served(ensemble, version)

    async def infer(self, request: InferRequest, size_bytes: int) -> Response:
        """Answer one row; raises TwinferError."""
        [answer] = await self.infer_batch([request], size_bytes)
        if isinstance(answer, TwinferError):
            raise answer
        return answer

    async def infer_batch(self, requests: Sequence[InferRequest], size_bytes: int) -> list[Response | TwinferError]:
        """Answer many rows, each with its answer or its error, in their order; raises TwinferError if none can be taken in hand."""
        count = len(requests)
        self._admission.enter(size_bytes, count)
        try:
            made = [self._make_row(request, size_bytes // count, place, count) for place, request in enumerate(requests)]
            rows = [row for row in made if isinstance(row, Request)]
            if rows:
                await self._answer_together(rows, size_bytes)
            return [row.outcome if isinstance(row, Request) else row for row in made]
        finally:
            self._admission.leave(size_bytes, count)

    async def drain(self) -> None:
        """Take nothing more in hand and return when every row has been answered."""
        self._admission.is_draining = True
        while self._admission.rows:
            await asyncio.sleep(0.01)

    def _make_row(self, request: InferRequest, size_bytes: int, place: int, count: int) -> Request | TwinferError:
        """Check a request, all but its inputs, and make its row; it is answered together with `count` rows in all."""
        try:
            policy = self._check(request)
            weights = self._intake.read_weights(request.fusion_weights)
            reply_by = self._margin.reply_by(request, count)
        except TwinferError as error:
            return error.alone()
        answer = asyncio.get_running_loop().create_future()
        return Request(request, policy, weights, reply_by, answer, size_bytes=size_bytes, place=place)

    async def _answer_together(self, rows: Sequence[Request], size_bytes: int) -> None:
        """Have rows decoded, and wait until the last of them is answered."""
        replies = [row.answer for row in rows if row.answer is not None]
        watch = self._watch(rows)
        try:
            self._decoder.decode(rows, size_bytes)
            for reply in replies:
                if not reply.done():  # most are by then: a flight's rows wake their caller once
                    try:
                        await reply
                    except TwinferError as error:
                        error.alone()
        except asyncio.CancelledError:
            for reply in replies:
                if not reply.cancel() and not reply.cancelled():
                    reply.exception()  # nobody else will ask for it
            self._give_up([row for row, reply in zip(rows, replies, strict=True) if reply.cancelled()])
            raise
        finally:
            watch.cancel()
