"""The engine as a front sees it: rows are checked and decoded here, and computed in the process that owns the device."""

import asyncio
import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

from ..device import usable_cores
from ..engine import Admission, Decoder, Description, ReplyMargin, Watch
from ..errors import Cancelled, DeadlinePassed, Draining, Overloaded, TwinferError
from ..inputs import Intake
from ..rows import Answer, Request, Row
from ..settings import ServerSettings
from .cells import Cells, SharedMemory
from .link import Frame, Link, Op
from .orders import Describe
from .wire import pack_error, pack_reply, pack_row, unpack_error, unpack_outcome

RETRY_SECONDS = 0.1
"""When to come again if there is no room: sooner than that hardly anything has been answered."""
LOOK_SECONDS = 1.0
"""How often to look whether rows that wait to be decoded are out of time, at the least."""


class RemoteEngine:
    """An engine whose device is another process's. All methods belong to the event loop.

    What the front by itself has in hand is held to the limits of the whole service, before anything is decoded; the device
    process, which sees what all fronts have, holds them to the limits together.
    """

    def __init__(
        self, intake: Intake, settings: ServerSettings, now: Describe, link: Link, rows: SharedMemory, answers: SharedMemory
    ) -> None:  # fmt: skip
        """Write rows into `rows` and read what becomes of them from `answers`; `now` is the ensemble as it is."""
        self.now = now
        self._intake = intake
        self._settings = settings
        self._link = link
        self._rows = rows
        self._answers = answers
        self._cells = Cells(rows.size_bytes)
        self._cells_lock = threading.Lock()
        self._admission = Admission(settings)
        self._margin = ReplyMargin(settings)
        threads = settings.decode_threads or max(1, usable_cores() // (settings.workers or 1))
        self._decoder = Decoder(intake, threads, self._send_soon, self._fail_soon)
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._numbers = itertools.count(1)
        self._sent: dict[int, Row] = {}
        """The rows that the device process has in hand, by number."""
        self._numbers_of: dict[Row, int] = {}
        self._is_lost = False

    @property
    def description(self) -> Description:
        """What is served."""
        return self.now.description

    def check_served(self, ensemble: str, version: int) -> None:
        """Raise UnknownEnsemble unless the name and version are served."""
        self._intake.check_served(ensemble, version)

    async def infer(self, request: Request, size_bytes: int) -> Answer:
        """Answer one row; raises TwinferError."""
        self._admission.enter(size_bytes)
        try:
            row, answer = self._make_row(request, size_bytes)
            with self._in_hand([row], size_bytes):
                return await answer
        finally:
            self._admission.leave(size_bytes)

    async def infer_batch(self, requests: Sequence[Request], size_bytes: int) -> list[Answer | TwinferError]:
        """Answer many rows, each with its answer or its error, in their order; raises TwinferError if none can be taken in hand."""
        count = len(requests)
        self._admission.enter(size_bytes, count)
        try:
            results: list[Answer | TwinferError | None] = [None] * count
            made: list[tuple[Row, asyncio.Future[Answer]]] = []
            for place, request in enumerate(requests):
                try:
                    made.append(self._make_row(request, size_bytes // count, place, count))
                except TwinferError as error:
                    results[place] = error
            if made:
                rows = [row for row, _ in made]
                with self._in_hand(rows, size_bytes):
                    outcomes = await asyncio.gather(*(answer for _, answer in made), return_exceptions=True)
                for row, outcome in zip(rows, outcomes, strict=True):
                    results[row.place] = cast(Answer | TwinferError, outcome)  # nothing else is ever set
            return cast(list[Answer | TwinferError], results)
        finally:
            self._admission.leave(size_bytes, count)

    def note_reply(self, request: Request, answer: Answer, began: float) -> None:
        """Let the device process, which keeps the books, know that an answer has been written."""
        self._link.send(Op.REPLIED, value=time.monotonic() - request.arrived_at, payload=pack_reply(answer))

    def note_failure(self, error: TwinferError) -> None:
        """Let the device process, which keeps the books, know that a row has ended with an error."""
        self._link.send(Op.FAILED, payload=pack_error(error))

    async def drain(self) -> None:
        """Take nothing more in hand and return when every row has been answered."""
        self._admission.is_draining = True
        while self._admission.rows:
            await asyncio.sleep(0.01)

    def close(self) -> None:
        """End the threads."""
        self._decoder.close()

    @property
    def taken_cells(self) -> int:
        """The cells in which rows lie."""
        with self._cells_lock:
            return self._cells.taken

    def lose(self) -> None:
        """End every row: the device process is gone."""
        self._is_lost = self._admission.is_draining = True
        for row in list(self._numbers_of):
            self._end(row, _gone())

    def on_frame(self, frame: Frame) -> None:
        """Take an answer, or cells that are free again."""
        if frame.op is Op.FREE:
            with self._cells_lock:
                self._cells.free(frame.offset)
        elif frame.op is Op.ANSWER:
            outcome = unpack_outcome(self._answers.view(frame.offset, self._answers.size_bytes - frame.offset))
            self._link.send(Op.FREE, offset=frame.offset)
            self._margin.note(time.monotonic() - frame.value)
            row = self._sent.get(frame.number)
            if row is not None:
                self._end(row, outcome)
                self._admission.note_answers(1)

    # --- on the way ----------------------------------------------------------------------------------------------------------

    def _make_row(
        self, request: Request, size_bytes: int, place: int = 0, count: int = 1
    ) -> tuple[Row, "asyncio.Future[Answer]"]:  # fmt: skip
        policy = self._intake.check(request, self.now.needs, self.now.classes)
        if policy in self.now.refusals:
            raise unpack_error(self.now.refusals[policy])
        answer: asyncio.Future[Answer] = self._loop.create_future()
        weights = self._intake.row_weights(request.fusion_weights)
        reply_by = self._margin.reply_by(request, count)
        return Row(request, policy, weights, reply_by, answer, place=place, size_bytes=size_bytes), answer

    @contextmanager
    def _in_hand(self, rows: Sequence[Row], size_bytes: int) -> Iterator[None]:
        """Have rows decoded and sent; those that nobody waits for any more are given up."""
        watch = Watch(rows, self._settings.stall_seconds, lambda: LOOK_SECONDS, self._on_time_up)
        self._decoder.decode(rows, size_bytes)
        try:
            yield
        finally:
            watch.cancel()
            for row in rows:
                if row.answer is not None and row.answer.cancelled():
                    self._give_up(row)

    def _send_soon(self, rows: Sequence[Row]) -> None:
        """Write rows into shared memory and have the event loop say so; decode threads, or where there is little to do the loop."""
        written = []
        for row in rows:
            parcel = pack_row(row)
            with self._cells_lock:
                offset = self._cells.take(parcel.size_bytes)
            if offset is None:
                text = f"the row takes {parcel.size_bytes} bytes, for which the memory shared with the device process has no room"
                self._fail_soon(row, Overloaded(text, retry_after_seconds=RETRY_SECONDS))
                continue
            parcel.write(self._rows.view(offset, parcel.size_bytes))
            row.samples = {}
            written.append((row, offset, parcel.size_bytes))
        if threading.get_ident() == self._loop_thread:
            self._send(written)
        else:
            self._loop.call_soon_threadsafe(self._send, written)

    def _send(self, written: Sequence[tuple[Row, int, int]]) -> None:
        for row, offset, size_bytes in written:
            if self._is_lost:
                self._end(row, _gone())
            if row.is_answered:  # given up, or out of time
                with self._cells_lock:
                    self._cells.free(offset)
                continue
            number = next(self._numbers)
            self._sent[number] = row
            self._numbers_of[row] = number
            self._link.send(Op.ROW, number, offset, size_bytes)

    def _give_up(self, row: Row) -> None:
        number = self._numbers_of.pop(row, None)
        if number is None:
            self.note_failure(Cancelled("the caller went away"))
        else:
            del self._sent[number]
            self._link.send(Op.CANCEL, number)  # and the device process counts it

    def _on_time_up(self, row: Row) -> None:
        """End a row whose time is up before it was sent; of those that were the device process takes care."""
        if row not in self._numbers_of:
            self._end(row, DeadlinePassed("the deadline came before the row had a flight"))

    def _fail_soon(self, row: Row, error: TwinferError) -> None:
        """Have the event loop end a row with an error; any thread."""
        self._loop.call_soon_threadsafe(self._end, row, error)

    def _end(self, row: Row, outcome: Answer | TwinferError) -> None:
        number = self._numbers_of.pop(row, None)
        if number is not None:
            del self._sent[number]
        if row.answer is None or row.answer.done():
            return
        if isinstance(outcome, TwinferError):
            row.answer.set_exception(outcome)
        else:
            row.answer.set_result(outcome)


def _gone() -> Draining:
    return Draining("the process that owns the device has ended; the server is shutting down")
