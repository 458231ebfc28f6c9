"""The engine: takes a request in hand, has it decoded, batched and computed, and answers it in time, whatever happens.

The engine owns the work, not the caller's RPC: a caller who goes away takes his row out of the queue, but a flight that carries it
flies on.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

from ..device import usable_cores
from ..ensemble import Ensemble
from ..errors import (
    Cancelled,
    DeadlinePassed,
    MemberLate,
    Overloaded,
    TwinferError,
)
from ..rows import Answer, Policy, Request, Row
from ..settings import ServerSettings
from .admission import Admission
from .batcher import Batcher
from .decoder import Decoder
from .description import Description
from .margin import ReplyMargin
from .operations import Operations
from .record import Recorder, Span
from .timeline import Timeline
from .watch import Watch
from .workers import Workers

logger = logging.getLogger(__name__)


class LocalEngine:
    """An engine that computes in this process. All methods belong to the event loop."""

    def __init__(self, ensemble: Ensemble, settings: ServerSettings) -> None:
        """Serve a warm ensemble; call `start` from the event loop that will call `infer`."""
        self._ensemble = ensemble
        self._settings = settings
        self._admission = Admission(settings)
        self._batcher = Batcher(ensemble, settings, self._answer_soon, self._note_switches_soon)
        self._decoder = Decoder(ensemble.intake, settings.decode_threads or usable_cores(), self._put, self._fail_soon)
        self._late = Workers("late", 1)  # of its own: a late row cannot wait behind a large image
        self._margin = ReplyMargin(settings)
        self.operations = Operations(ensemble, settings, self._batcher)
        self._recorder: Recorder | None = None
        self._timeline: Timeline | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def ensemble(self) -> Ensemble:
        """What it computes with."""
        return self._ensemble

    @property
    def description(self) -> Description:
        """What is served."""
        return self.operations.description

    def start(self) -> None:
        """Start the threads."""
        self._loop = asyncio.get_running_loop()
        self._batcher.start()

    def check_served(self, ensemble: str, version: int) -> None:
        """Raise UnknownEnsemble unless the name and version are served."""
        self._ensemble.intake.check_served(ensemble, version)

    async def infer(self, request: Request, size_bytes: int) -> Answer:
        """Answer one row; raises TwinferError."""
        [answer] = await self.infer_batch([request], size_bytes)
        if isinstance(answer, TwinferError):
            raise answer
        return answer

    async def infer_batch(self, requests: Sequence[Request], size_bytes: int) -> list[Answer | TwinferError]:
        """Answer many rows, each with its answer or its error, in their order; raises TwinferError if none can be taken in hand."""
        self._admission.enter(size_bytes, len(requests))
        try:
            made = [self._make_row(request, place, len(requests)) for place, request in enumerate(requests)]
            rows = [row for row in made if isinstance(row, Row)]
            if rows:
                await self._answer_together(rows, size_bytes)
            return [_read_outcome(row) if isinstance(row, Row) else row for row in made]
        finally:
            self._admission.leave(size_bytes, len(requests))

    async def _answer_together(self, rows: Sequence[Row], size_bytes: int) -> None:
        """Have rows decoded, and wait until the last of them is answered."""
        replies = [row.answer for row in rows if row.answer is not None]
        watch = Watch(rows, self._settings.stall_seconds, self._batcher.look_for_stuck, self._on_time_up)
        try:
            self._decoder.decode(rows, size_bytes)
            for reply in replies:
                if not reply.done():  # most are by then: a flight's rows wake their caller once
                    with suppress(TwinferError):
                        await reply
        except asyncio.CancelledError:
            for reply in replies:
                if not reply.cancel() and not reply.cancelled():
                    reply.exception()  # nobody else will ask for it
                else:
                    self.note_failure(Cancelled("the caller went away"))
            self._batcher.discard_answered()
            raise
        finally:
            watch.cancel()
        if self._timeline is not None:
            for row in rows:
                if isinstance(answer := _read_outcome(row), Answer):
                    self._timeline.add_row(row, row.ready_at + answer.timings.queue_seconds)

    def take(self, row: Row) -> None:
        """Take in hand a row that has been checked and decoded elsewhere; raises TwinferError.

        Its `answer` is there, belongs to this event loop, and is set in the end; who cancels it gives the row up.
        """
        self._admission.enter(row.size_bytes)
        try:
            self._batcher.switchboard.check(row.policy)
        except TwinferError:
            self._admission.leave(row.size_bytes)
            raise
        watch = Watch([row], self._settings.stall_seconds, self._batcher.look_for_stuck, self._on_time_up)
        assert row.answer is not None
        row.answer.add_done_callback(partial(self._let_go, row, watch))
        self._put([row])

    def _let_go(self, row: Row, watch: Watch, answer: "asyncio.Future[Answer]") -> None:
        """Let go of a row that `take` took in hand, now that it is answered or given up."""
        watch.cancel()
        self._admission.leave(row.size_bytes)
        if answer.cancelled():
            self.note_failure(Cancelled("the caller went away"))
            self._batcher.discard_answered()
        elif self._timeline is not None and answer.exception() is None:
            self._timeline.add_row(row, row.ready_at + answer.result().timings.queue_seconds)

    @property
    def rows_in_hand(self) -> int:
        """The rows that wait or are in the air."""
        return self._admission.rows

    @property
    def bytes_in_hand(self) -> int:
        """The bytes of their requests."""
        return self._admission.bytes

    @property
    def rows_waiting(self) -> int:
        """The rows that wait for a flight."""
        return self._batcher.waiting_rows

    def listen(self, recorder: Recorder) -> None:
        """Have `recorder` told of everything from now on."""
        self._recorder = recorder
        self.operations.recorder = recorder
        self.operations.note_switches()
        self._batcher.on_flight = (recorder.on_flight,)

    def note_reply(self, request: Request, answer: Answer, began: float) -> None:
        """Note, for whoever listens, that an answer has been written since `began`."""
        if self._timeline is not None:
            self._timeline.add_encoding(request, Span(began, time.monotonic()))
        self.note_answer(answer, time.monotonic() - request.arrived_at)

    def note_answer(self, answer: Answer, seconds: float) -> None:
        """Note, for whoever listens, that a row has been answered so long after its arrival."""
        if self._recorder is not None:
            self._recorder.on_answer(answer, seconds)

    def note_failure(self, error: TwinferError) -> None:
        """Note, for whoever listens, that a row has ended with an error."""
        if self._recorder is not None:
            self._recorder.on_failure(error)

    async def capture_timeline(self, seconds: float) -> str:
        """Watch everything for so long and give it as a Chrome trace; raises Overloaded if somebody else is watching."""
        if self._timeline is not None:
            raise Overloaded("a timeline is being captured; allowed: one at a time", retry_after_seconds=1.0)
        self._timeline = timeline = Timeline()
        before, began = self._batcher.on_flight, time.monotonic()
        self._batcher.on_flight = (*before, timeline.add_flight)
        try:
            await asyncio.sleep(seconds)
        finally:
            self._timeline, self._batcher.on_flight = None, before
        return await asyncio.to_thread(timeline.write_trace, Span(began, time.monotonic()))

    def _note_switches_soon(self) -> None:
        """Have the event loop note that a member has been switched; any thread."""
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(self.operations.note_switches)
        except RuntimeError:  # the loop has ended
            logger.info("a member was switched after the end")

    async def drain(self) -> None:
        """Take nothing more in hand and return when every row has been answered."""
        self._admission.is_draining = True
        while self._admission.rows:
            await asyncio.sleep(0.01)

    def close(self) -> None:
        """End the threads; call it when nothing is in hand, or when that no longer matters."""
        self._batcher.close()
        self._decoder.close()
        self._late.close()
        self._ensemble.close()

    @property
    def loss(self) -> str:
        """Why the device is lost for good; empty while it is not."""
        return self._batcher.loss

    @property
    def can_answer(self) -> bool:
        """Whether the members that are on are enough for the ensemble's own policy."""
        return self._batcher.switchboard.can_answer(self._ensemble.default_policy)

    def refusal(self, policy: Policy) -> TwinferError | None:
        """Give the error that every row under `policy` is refused with now, before anything is done for it; None if none is."""
        try:
            self._batcher.switchboard.check(policy)
        except TwinferError as error:
            return error
        return None

    def stuck_members(self) -> list[str]:
        """Name the members whose lane has stood still for `stuck_seconds`; looks for those that have just got stuck, too."""
        self._batcher.look_for_stuck()
        standing = self._batcher.standing_seconds()
        return [name for name, seconds in standing.items() if seconds >= self._settings.stuck_seconds]

    def _make_row(self, request: Request, place: int, count: int) -> Row | TwinferError:
        """Check a request, all but its inputs, and make its row; it is answered together with `count` rows in all."""
        try:
            policy = self._ensemble.check(request)
            self._batcher.switchboard.check(policy)
            weights = self._ensemble.intake.row_weights(request.fusion_weights)
            reply_by = self._margin.reply_by(request, count)
        except TwinferError as error:
            return error
        answer = asyncio.get_running_loop().create_future()
        return Row(request=request, policy=policy, weights=weights, reply_by=reply_by, place=place, answer=answer)

    def _put(self, rows: Sequence[Row]) -> None:
        """Let prepared rows wait for their flights; any thread."""
        for row in rows:
            row.crew = self._ensemble.first_crew(row.samples)
        self._batcher.put(rows)

    # --- time --------------------------------------------------------------------------------------------------------------

    def _on_time_up(self, row: Row) -> None:
        """Answer a row whose time is up: from the members so far if it is in the air and its policy allows, else with an error."""
        self._late.do(partial(self._answer_late, row))

    def _answer_late(self, row: Row) -> None:
        late = self._batcher.fuse_late(row)
        if late is None:
            error: TwinferError = DeadlinePassed("the deadline came before the row had a flight")
            is_on = self._batcher.switchboard.is_on
            names = [name for index in row.samples if is_on[name := self._ensemble.members[index].name]]
            behind = {name: seconds for name, seconds in self._batcher.standing_seconds().items() if seconds and name in names}
            # Under BEST_EFFORT a row flies without those that are behind, unless there is nobody else.
            if behind and (row.policy is Policy.REQUIRE_ALL or len(behind) == len(names)):
                name, seconds = max(behind.items(), key=lambda item: item[1])
                text = f"the member's lane has been behind for {seconds:.3f} s, longer than the row could wait"
                error = MemberLate(text, member=name)
            late = [row], [error]
        if late[0]:  # else somebody else has answered the row together with another one
            self._answer_soon(*late)

    # --- answers -----------------------------------------------------------------------------------------------------------

    def _fail_soon(self, row: Row, error: TwinferError) -> None:
        """Have the event loop end a row with an error; any thread."""
        self._answer_soon([row], [error])

    def _answer_soon(self, rows: Sequence[Row], answers: Sequence[Answer | TwinferError]) -> None:
        """Have the event loop hand out answers; any thread."""
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(self._answer, rows, answers, time.monotonic())
        except RuntimeError:  # the loop has ended, and with it every caller
            logger.info("%d answers came after the end", len(rows))

    def _answer(self, rows: Sequence[Row], answers: Sequence[Answer | TwinferError], since: float) -> None:
        self._margin.note(time.monotonic() - since)
        for row, answer in zip(rows, answers, strict=True):
            if row.is_answered or row.answer is None:
                continue
            if isinstance(answer, TwinferError):
                row.answer.set_exception(answer)
            else:
                row.answer.set_result(answer)
        if rows:  # a cascade may send all of a flight's rows on
            self._admission.note_answers(len(rows))


def _read_outcome(row: Row) -> Answer | TwinferError:
    """Give the answer of a row that has been answered, or the error that it ended with; raises what is neither."""
    assert row.answer is not None
    error = row.answer.exception()
    return error if isinstance(error, TwinferError) else row.answer.result()
