"""The desk of one front in the device process: rows come in, what becomes of them goes out; it is gone with the front."""

import asyncio
import logging
import time
import weakref
from collections import deque
from functools import partial
from typing import Any

from ..engine import LocalEngine
from ..errors import InternalError, Stage, TwinferError
from ..rows import Answer, Row
from .cells import Bytes, Cells, SharedMemory
from .link import Frame, Link, Op
from .parcel import Parcel
from .wire import pack_outcome, unpack_error, unpack_reply, unpack_row

logger = logging.getLogger(__name__)


class Desk:
    """Hands a front's rows to the engine. All but the lent cells' return belongs to the event loop.

    Samples stay where the front has written them until the engine has let go of the last of them: answered, cancelled or late, the
    cells are not given back before the flight that carries the row has done with it.
    """

    def __init__(self, engine: LocalEngine, link: Link, rows: SharedMemory, answers: SharedMemory) -> None:
        """Read rows from `rows` and write what becomes of them into `answers`."""
        self._engine = engine
        self._link = link
        self._rows = rows
        self._answers = answers
        self._cells = Cells(answers.size_bytes)
        self._loop = asyncio.get_running_loop()
        self._in_hand: dict[int, Row] = {}
        self._lent: dict[int, weakref.ref[Bytes]] = {}
        self._waiting: deque[tuple[int, Parcel]] = deque()
        """Answers for which there is no room, because the front does not take the others."""

    @property
    def rows_in_hand(self) -> int:
        """The rows that the engine has in hand."""
        return len(self._in_hand)

    @property
    def lent_rows(self) -> int:
        """The rows whose cells have not been given back."""
        return len(self._lent)

    def on_frame(self, frame: Frame) -> None:
        """Take what the front says."""
        match frame.op:
            case Op.ROW:
                self._take(frame)
            case Op.CANCEL:
                row = self._in_hand.pop(frame.number, None)
                if row is not None and row.answer is not None:
                    row.answer.cancel()
            case Op.FREE:
                self._cells.free(frame.offset)
                while self._waiting and self._write(*self._waiting[0]):
                    self._waiting.popleft()
            case Op.REPLIED:
                self._engine.note_answer(unpack_reply(frame.payload), frame.value)
            case Op.FAILED:
                self._engine.note_failure(unpack_error(frame.payload))

    def close(self) -> None:
        """Give up every row: the front has ended."""
        rows = list(self._in_hand.values())
        self._in_hand.clear()
        for row in rows:
            if row.answer is not None:
                row.answer.cancel()

    def _take(self, frame: Frame) -> None:
        room = self._rows.view(frame.offset, int(frame.value))
        self._lent[frame.offset] = weakref.ref(room, partial(self._return_soon, frame.offset))
        row = unpack_row(room)
        row.answer = self._loop.create_future()
        row.answer.add_done_callback(partial(self._on_done, frame.number))
        self._in_hand[frame.number] = row
        try:
            self._engine.take(row)
        except TwinferError as error:
            row.answer.set_exception(error.alone())

    def _on_done(self, number: int, answer: "asyncio.Future[Answer]") -> None:
        if self._in_hand.pop(number, None) is None or answer.cancelled():
            return
        outcome = answer.exception() or answer.result()
        if not isinstance(outcome, Answer | TwinferError):
            logger.error("a row failed by a defect", exc_info=outcome)
            outcome = InternalError("computing the row raised an error; the server's log has it")
        parcel = pack_outcome(outcome)
        if parcel.size_bytes > self._answers.size_bytes:
            text = f"the answer takes {parcel.size_bytes} bytes; allowed: {self._answers.size_bytes}"
            parcel = pack_outcome(InternalError(text, stage=Stage.ENCODE))
        if self._waiting or not self._write(number, parcel):
            self._waiting.append((number, parcel))

    def _write(self, number: int, parcel: Parcel) -> bool:
        """Write an answer and say so; whether there was room for it."""
        offset = self._cells.take(parcel.size_bytes)
        if offset is None:
            return False
        parcel.write(self._answers.view(offset, parcel.size_bytes))
        self._link.send(Op.ANSWER, number, offset, time.monotonic())
        return True

    def _return_soon(self, offset: int, room: Any) -> None:
        """Have the event loop give cells back; on whichever thread has dropped the last look at them."""
        try:
            self._loop.call_soon_threadsafe(self._return, offset)
        except RuntimeError:  # the loop has ended, and with it the front
            logger.debug("cells were given back after the end")

    def _return(self, offset: int) -> None:
        del self._lent[offset]
        self._link.send(Op.FREE, offset=offset)
