"""The engine as a front sees it: rows are checked and decoded here, and computed in the process that owns the device."""

import asyncio
import itertools
import threading
import time
from collections.abc import Sequence

from ..device import usable_cores
from ..engine import Description, Reception, Watch
from ..errors import Cancelled, Draining, Overloaded, TwinferError
from ..inputs import Intake
from ..rows import Answer, Policy, Request, Row
from ..settings import ServerSettings
from .cells import Cells, SharedMemory
from .link import Frame, Link, Op
from .orders import Describe
from .wire import pack_error, pack_reply, pack_row, unpack_error, unpack_outcome

RETRY_SECONDS = 0.1
"""When to come again if there is no room: sooner than that hardly anything has been answered."""
LOOK_SECONDS = 1.0
"""How often to look whether rows that wait to be decoded are out of time, at the least."""


class RemoteEngine(Reception):
    """An engine whose device is another process's. All methods belong to the event loop.

    What the front by itself has in hand is held to the limits of the whole service, before anything is decoded; the device
    process, which sees what all fronts have, holds them to the limits together.
    """

    def __init__(
        self, intake: Intake, settings: ServerSettings, now: Describe, link: Link, rows: SharedMemory, answers: SharedMemory
    ) -> None:  # fmt: skip
        """Write rows into `rows` and read what becomes of them from `answers`; `now` is the ensemble as it is."""
        super().__init__(intake, settings, settings.decode_threads or max(1, usable_cores() // (settings.workers or 1)))
        self.now = now
        self._link = link
        self._rows = rows
        self._answers = answers
        self._cells = Cells(rows.size_bytes)
        self._cells_lock = threading.Lock()
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

    def note_reply(self, request: Request, answer: Answer, began: float) -> None:
        """Let the device process, which keeps the books, know that an answer has been written."""
        self._link.send(Op.REPLIED, value=time.monotonic() - request.arrived_at, payload=pack_reply(answer))

    def note_failure(self, error: TwinferError) -> None:
        """Let the device process, which keeps the books, know that a row has ended with an error."""
        self._link.send(Op.FAILED, payload=pack_error(error))

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

    def _check(self, request: Request) -> Policy:
        """Check a request, all but its inputs; give the policy that it is answered under. Raises TwinferError."""
        policy = self._intake.check(request, self.now.needs, self.now.classes)
        if policy in self.now.refusals:
            raise unpack_error(self.now.refusals[policy])
        return policy

    def _watch(self, rows: Sequence[Row]) -> Watch:
        """Start a clock for rows that have been taken in hand."""
        return Watch(rows, self._settings.stall_seconds, lambda: LOOK_SECONDS, self._on_time_up)

    def _put(self, rows: Sequence[Row]) -> None:
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

    def _give_up(self, rows: Sequence[Row]) -> None:
        """Let go of rows whose caller went away, and whose answers are cancelled."""
        for row in rows:
            number = self._numbers_of.pop(row, None)
            if number is None:
                self.note_failure(Cancelled("the caller went away"))
            else:
                del self._sent[number]
                self._link.send(Op.CANCEL, number)  # and the device process counts it

    def _on_time_up(self, row: Row) -> None:
        """End a row whose time is up before it was sent; of those that were the device process takes care."""
        if row not in self._numbers_of:
            self._end(row, row.without_flight)

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
