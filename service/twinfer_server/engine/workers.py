"""Worker threads that do small pieces of work in the order in which they come."""

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue

logger = logging.getLogger(__name__)


class Workers:
    """A few threads and one queue; no result is waited for.

    Leaner than an executor, which makes a future with a lock for every piece, and its threads are daemons: one that waits for a
    stuck member must not keep the process from ending.
    """

    def __init__(self, name: str, count: int, prepare: Callable[[], None] = lambda: None) -> None:
        """Start `count` threads; each calls `prepare` first."""
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._count = count
        for number in range(count):
            threading.Thread(target=self._work, args=(prepare,), name=f"{name}-{number}", daemon=True).start()

    def do(self, work: Callable[[], None]) -> None:
        """Queue a piece of work; any thread."""
        self._queue.put(work)

    def close(self) -> None:
        """End the threads behind what is queued."""
        for _ in range(self._count):
            self._queue.put(None)

    def _work(self, prepare: Callable[[], None]) -> None:
        prepare()
        while (work := self._queue.get()) is not None:
            try:
                work()
            except Exception:  # a defect: work answers for its own failures
                logger.exception("a worker's work raised")
            del work  # it may hold large requests, and the next may be long in coming
