"""The engine: has a request batched and computed, and answers it in time, whatever happens."""

import asyncio
import logging
import time
from collections.abc import Sequence
from functools import partial

from ..errors import Cancelled, MemberLate, Overloaded, TwinferError
from ..executor import Ensemble
from ..settings import ServerSettings
from ..types import InferRequest, Policy, Request, Response
from .batcher import Batcher
from .operations import Operations
from .reception import Reception
from .record import Recorder, Span
from .timeline import Timeline
from .watch import Watch
from .workers import Workers

logger = logging.getLogger(__name__)


class Engine(Reception):
    """An engine that computes in this process. All methods belong to the event loop."""

    def __init__(self, ensemble: Ensemble, settings: ServerSettings) -> None:
        """Serve a warm ensemble; call `start` from the event loop that will call `infer`."""
        super().__init__(ensemble.intake, settings, settings.decode_threads)
        self._ensemble = ensemble
        self._batcher = Batcher(ensemble, settings, self._answer_soon, self._note_switches_soon)
        self._late = Workers("late", 1)  # of its own: a late row cannot wait behind a large image
        self.operations = Operations(ensemble, self._batcher)
        self._recorder: Recorder | None = None
        self._timeline: Timeline | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def ensemble(self) -> Ensemble:
        """What it computes with."""
        return self._ensemble

    def start(self) -> None:
        """Start the threads."""
        self._loop = asyncio.get_running_loop()
        self._batcher.start()

    def take(self, row: Request) -> None:
        """Take in hand a row that has been checked and decoded elsewhere; raises TwinferError.

        Its `answer` is there, belongs to this event loop, and is set in the end; who cancels it gives the row up.
        """
        self._admission.enter(row.size_bytes)
        try:
            self._batcher.switchboard.check(row.policy)
        except TwinferError:
            self._admission.leave(row.size_bytes)
            raise
        assert row.answer is not None
        row.answer.add_done_callback(partial(self._let_go, row, self._watch([row])))
        self._put([row])

    def _let_go(self, row: Request, watch: Watch, answer: "asyncio.Future[Response]") -> None:
        """Let go of a row that `take` took in hand, now that it is answered or given up."""
        watch.cancel()
        self._admission.leave(row.size_bytes)
        if answer.cancelled():
            self._give_up([row])

    @property
    def rows_in_hand(self) -> int:
        """The rows that wait or are in the air."""
        return self._admission.rows

    @property
    def bytes_in_hand(self) -> int:
        """The bytes of their requests."""
        return self._admission.bytes

    @property
    def idle_seconds(self) -> float:
        """How long no row has been in hand; 0 while one is."""
        return self._admission.idle_seconds

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

    def note_reply(self, request: InferRequest, answer: Response, began: float) -> None:
        """Note, for whoever listens, that an answer has been written since `began`."""
        if self._timeline is not None:
            self._timeline.add_encoding(request, Span(began, time.monotonic()))
        self.note_answer(answer, time.monotonic() - request.arrived_at)

    def note_answer(self, answer: Response, seconds: float) -> None:
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

    def _check(self, request: InferRequest) -> Policy:
        """Check a request, all but its inputs; give the policy that it is answered under. Raises TwinferError."""
        policy = self._ensemble.check(request)
        self._batcher.switchboard.check(policy)
        return policy

    def _watch(self, rows: Sequence[Request]) -> Watch:
        """Start a clock for rows that have been taken in hand."""
        return Watch(rows, self._settings.stall_seconds, self._batcher.look_for_stuck, self._on_time_up)

    def _give_up(self, rows: Sequence[Request]) -> None:
        """Let go of rows whose caller went away, and whose answers are cancelled."""
        for _ in rows:
            self.note_failure(Cancelled("the caller went away"))
        self._batcher.discard_answered()

    def _put(self, rows: Sequence[Request]) -> None:
        """Let prepared rows wait for their flights; any thread."""
        for row in rows:
            row.crew = self._ensemble.first_crew(row.samples)
        self._batcher.put(rows)

    # --- time --------------------------------------------------------------------------------------------------------------

    def _on_time_up(self, row: Request) -> None:
        """Answer a row whose time is up: from the members so far if it is in the air and its policy allows, else with an error."""
        self._late.do(partial(self._answer_late, row))

    def _answer_late(self, row: Request) -> None:
        late = self._batcher.fuse_late(row)
        if late is None:
            error: TwinferError = row.without_flight
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

    def _fail_soon(self, row: Request, error: TwinferError) -> None:
        """Have the event loop end a row with an error; any thread."""
        self._answer_soon([row], [error])

    def _answer_soon(self, rows: Sequence[Request], answers: Sequence[Response | TwinferError]) -> None:
        """Have the event loop hand out answers; any thread."""
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(self._answer, rows, answers, time.monotonic())
        except RuntimeError:  # the loop has ended, and with it every caller
            logger.info("%d answers came after the end", len(rows))

    def _answer(self, rows: Sequence[Request], answers: Sequence[Response | TwinferError], since: float) -> None:
        self._margin.note(time.monotonic() - since)
        for row, answer in zip(rows, answers, strict=True):
            if row.is_answered or row.answer is None:
                continue
            if isinstance(answer, TwinferError):
                row.answer.set_exception(answer)
            else:
                row.answer.set_result(answer)
                if self._timeline is not None:
                    self._timeline.add_row(row, row.ready_at + answer.timings.queue_seconds)
        if rows:  # a cascade may send all of a flight's rows on
            self._admission.note_answers(len(rows))
