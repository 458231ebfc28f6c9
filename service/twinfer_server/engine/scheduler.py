"""The scheduler: forms batches of the requests that wait, has them launched and completed, and keeps stuck ones out of the way.

One launch thread at a time queues device work, so the order on every stream is decided in one place. When the streams are idle it
takes what waits, even a single request; while a batch computes, requests collect until that batch is about to end. On a CPU the
execution `serial` computes on the launch thread itself; if a member gets stuck there, another thread takes over the launching.

The event loop hands requests over through a deque, without a lock; the lock is for the threads alone.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue

import torch

from ..errors import MemberLate, TwinferError
from ..executor import Batch, Ensemble, escalate
from ..settings import ServerSettings
from ..types import Policy, Request, Response
from .circuit_breaker import BreakerState, CircuitBreakers
from .completion import Completion, complete, refuse, respond_from_done, respond_from_partials
from .forming import BatchFormer, Decision
from .in_flight import LATE_TOGETHER_SECONDS, InFlight
from .overlap import OverlapWait
from .trace import BatchRecord, record_batch
from .workers import Workers

logger = logging.getLogger(__name__)

WATCH_SECONDS = 0.02
"""How often the watchdog looks while batches are under way."""
IDLE_SECONDS = 1.0
"""How long nothing has been under way before the watchdog sleeps until something is."""

OnResponses = Callable[[Sequence[Request], Sequence[Response | TwinferError]], None]
OnBatch = Callable[[BatchRecord], None]


class Scheduler:
    """Forms, launches and completes batches; hands responses to `on_responses`, which is called from any thread."""

    def __init__(
        self, ensemble: Ensemble, settings: ServerSettings, on_responses: OnResponses, on_breaker: Callable[[], None]
    ) -> None:  # fmt: skip
        """Serve a warm ensemble; `start` starts the threads. `on_breaker` is told when a breaker has changed, on any thread."""
        self.breakers = CircuitBreakers(ensemble, settings, on_breaker)
        self.on_batch: tuple[OnBatch, ...] = ()
        """Told of every complete batch, on a completion thread; with none here they are not even recorded."""
        self.on_traced: OnBatch | None = None
        """Told of those that hold a request whose trace is recorded."""
        self.loss = ""
        """Why the device is lost for good, once it is; what is in flight still gets its responses, all of them errors."""
        self._ensemble = ensemble
        self._on_responses = on_responses
        self._arrivals: deque[Request] = deque()
        self._wake: SimpleQueue[None] = SimpleQueue()
        self._is_asleep = self._was_poked = False
        self._wait = OverlapWait(ensemble.spec.batching)
        self._lock = threading.Lock()
        # All below is guarded by _lock.
        self._in_flight = InFlight(ensemble)
        self._former = BatchFormer(ensemble, self.breakers, self._in_flight)
        self._launcher: threading.Thread | None = None
        self._is_closing = False
        self._completers: Workers | None = None
        self._stirred = threading.Event()
        """Set when a batch is launched while the watchdog sleeps."""

    def start(self) -> None:
        """Start the launch thread, the completion threads and the watchdog."""
        self._replace_launcher()
        self._completers = Workers("complete", 2 * len(self._ensemble.members) + 1, self._ensemble.device.prepare_thread)
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def close(self) -> None:
        """End the threads once nothing waits any more; does not wait for what is stuck."""
        with self._lock:
            self._is_closing = True
        self._poke()
        self._stirred.set()
        if self._completers is not None:
            self._completers.close()

    def put(self, requests: Sequence[Request], in_flight: int) -> None:
        """Let prepared requests wait for their batches; any thread, never waits. `in_flight` requests are admitted in all."""
        self._wait.note_arrival(in_flight)
        self._arrivals.extend(requests)
        self._poke()

    def drop_answered(self) -> None:
        """Forget the waiting requests that have been answered or cancelled; any thread, never waits."""
        for request in self._arrivals.copy():
            if request.is_answered:
                with suppress(ValueError):  # the launch thread has just taken it
                    self._arrivals.remove(request)
        self._poke()

    def set_member(self, index: int, is_enabled: bool) -> tuple[BreakerState, BreakerState]:
        """Enable or disable a member by hand; return its breaker's state before and now. Not for the event loop."""
        breaker = self.breakers.breakers[index]
        with self._lock:
            before = breaker.reading.state
            self.breakers.set_by_hand(index, is_enabled)
            after = breaker.reading.state
        self._poke()
        return before, after

    def behind_seconds(self) -> dict[str, float]:
        """Return for how long each member's stream has been behind its time, by member name; not for the event loop."""
        with self._lock:
            return dict(self._in_flight.behind_seconds(time.monotonic()))

    @property
    def waiting_requests(self) -> int:
        """How many requests wait."""
        return len(self._former.queue) + len(self._arrivals)

    # --- the launch thread ----------------------------------------------------------------------------------------------------

    def _replace_launcher(self) -> None:
        self._launcher = threading.Thread(target=self._launch_batches, name="launch", daemon=True)
        self._launcher.start()

    def _launch_batches(self) -> None:
        self._ensemble.device.prepare_thread(is_launching=True)
        with torch.inference_mode():
            while True:
                try:
                    batch = self._next_batch()
                    if batch is None:
                        return
                    self._launch(batch)
                    del batch  # and its requests: the next may be long in coming
                except Exception:  # a defect; the requests concerned run into their deadlines, the others go on
                    logger.exception("forming or launching a batch failed")

    def _next_batch(self) -> Batch | None:
        """Sleep until a batch can be formed; None once this thread has been replaced or the scheduler closes."""
        while True:
            self._take_arrivals()
            now = time.monotonic()
            delay = self._wait.seconds_to_wait(now, len(self._former.queue), bool(self._in_flight))
            if delay:
                time.sleep(delay)  # not a wait for arrivals: each would wake this thread
                continue
            with self._lock:
                if self._launcher is not threading.current_thread():
                    return None
                batch = self._former.form_trial(now)
                decision = Decision()
                if batch is None and self._former.queue:
                    batch, decision = self._former.form(now)
                look = self._former.seconds_to_next_look(now)
                is_over = self._is_closing and not self._former.queue
            self._end(decision)
            if batch is not None:
                return batch
            if is_over:
                return None
            self._sleep(look)

    def _take_arrivals(self) -> None:
        """Move what has come into the queue, and forget what has been answered or cancelled there."""
        with self._lock:
            if self._was_poked:
                self._was_poked = False
                self._former.queue.drop_answered()
            while self._arrivals:
                request = self._arrivals.popleft()
                if self._in_flight:
                    request.blocked_at = request.ready_at
                self._former.queue.put(request)

    def _poke(self) -> None:
        """Have the launch thread look again; any thread."""
        self._was_poked = True  # before the look at whether it sleeps, which it says before it looks at this
        if self._is_asleep:
            self._wake.put(None)

    def _sleep(self, seconds: float | None) -> None:
        """Sleep until the thread is poked, or for so long."""
        self._is_asleep = True
        try:
            if not self._was_poked:
                self._wake.get(timeout=seconds)
        except Empty:
            pass
        finally:
            self._is_asleep = False

    def _launch(self, batch: Batch) -> None:
        self._stirred.set()
        began = time.monotonic()
        assert self._completers is not None
        try:
            batch.launch()
        except Exception as error:  # a device that refuses work fails this batch's requests, and the next one tries again
            self._completers.do(partial(self._await_completion, batch, error))
            return
        if batch.completed.is_done():
            self._complete(batch)
            return
        self._former.lead_seconds += 0.2 * (time.monotonic() - began - self._former.lead_seconds)
        self._completers.do(partial(self._await_completion, batch, None))

    def _end(self, decision: Decision) -> None:
        """Answer the requests that end without a batch: with their error, or from what their earlier batch gave."""
        for request, error, lost in decision.ended:
            self._on_responses([request], [error or respond_from_partials(self._ensemble, request, lost)])

    # --- completion -----------------------------------------------------------------------------------------------------------

    def _await_completion(self, batch: Batch, error: Exception | None) -> None:
        """Wait for a batch, or for what is left of one whose launch ended with `error`."""
        with torch.inference_mode():
            try:
                if error is None:
                    batch.completed.wait()
            except Exception as loss:  # only a device that is lost cannot be waited for
                error = loss
            if error is not None:
                batch.break_off(error)
            self._complete(batch)

    def _complete(self, batch: Batch) -> None:
        """Answer the batch's requests and release its buffers, whatever happens: a defect costs a batch, never a buffer."""
        completed_at = time.monotonic()
        with batch.outputs_lock:  # late requests are being read, or from now on none of its buffers is released
            batch.is_completing = True
        with self._lock:
            is_trial = any(entry.is_trial for entry in self._in_flight if entry.batch is batch)
        completion = Completion(None, [], [])
        try:
            completion = complete(self._ensemble, batch, completed_at - batch.launched_at)
            if not is_trial:
                self._answer(batch, completion, completed_at)
        finally:
            self._release(batch, completion, completed_at, is_trial=is_trial)
        if not self.loss and any(run.errors for run in batch.runs):
            self.loss = self._ensemble.device.find_loss()

    def _answer(self, batch: Batch, completion: Completion, completed_at: float) -> None:
        """Hand out the responses, and tell all that listen of the batch."""
        kept = [index for index in range(len(batch.requests)) if index not in completion.escalated]
        # Before the batch leaves: a request that is not found in flight may be told that it was in no batch.
        self._on_responses([batch.requests[index] for index in kept], [completion.responses[index] for index in kept])
        time.sleep(0)  # lets the event loop have the interpreter: responses go out before this thread records the batch
        listeners = self.on_batch
        if self.on_traced is not None and any(request.request.span is not None for request in batch.requests):
            listeners = (*listeners, self.on_traced)
        if not listeners:
            return
        try:
            record = record_batch(batch, completed_at, completion.responses)
            for listener in listeners:
                listener(record)
        except Exception:  # the listeners' failure is not the requests'
            logger.exception("recording a batch failed")

    def _release(self, batch: Batch, completion: Completion, completed_at: float, *, is_trial: bool) -> None:
        """Let the batch go: its members' breakers learn from it, escalated requests wait again, and its buffers are free."""
        seconds = completed_at - batch.launched_at
        with batch.outputs_lock:  # a late request that is being read still owns the buffers
            batch.has_ended = True
        with self._lock:
            try:
                self.breakers.note_batch(batch, completion.find_failures(batch), is_trial=is_trial, seconds=seconds)
                for index in () if is_trial else completion.escalated:
                    escalate(batch, batch.requests[index], seconds)
                    self._former.queue.put(batch.requests[index])
            finally:
                self._in_flight.remove(batch)
                self._ensemble.release(batch)
        self._poke()

    # --- requests that cannot wait: a thread of their own ---------------------------------------------------------------------

    def respond_late(self, request: Request) -> tuple[list[Request], list[Response | TwinferError]]:
        """Answer a request whose time is up, and those of its batch that are as late, from the members so far.

        Returns them with their responses; nothing where its batch has been completed meanwhile. Not for the event loop.
        """
        with self._lock:
            batch = self._in_flight.find(request)
        if batch is None:
            return [request], [self._explain_unbatched(request)]
        with batch.outputs_lock:
            if batch.has_ended:
                return [], []
            now = time.monotonic()
            until = now + LATE_TOGETHER_SECONDS
            late = [
                index
                for index, other in enumerate(batch.requests)
                if other is request or (other.reply_by <= until and not other.is_answered)
            ]
            return [batch.requests[index] for index in late], respond_from_done(self._ensemble, batch, late, now)

    def _explain_unbatched(self, request: Request) -> Response | TwinferError:
        """Answer a request whose time is up in no batch: from its earlier batch, or with what kept it waiting."""
        members = self._ensemble.members
        if request.partials:
            text = "the first member was not sure, and the request could not wait for this one"
            lost: dict[int, TwinferError] = {index: MemberLate(text, member=members[index].name) for index in request.members}
            return refuse(self._ensemble, request, lost) or respond_from_partials(self._ensemble, request, lost)
        is_on = self.breakers.is_on
        names = [name for index in request.samples if is_on[name := members[index].name]]
        behind = {name: seconds for name, seconds in self.behind_seconds().items() if seconds and name in names}
        # Under BEST_EFFORT a request is computed without those that are behind, unless there are no others.
        if behind and (request.policy is Policy.REQUIRE_ALL or len(behind) == len(names)):
            name, seconds = max(behind.items(), key=lambda item: item[1])
            text = f"the member's stream has been behind for {seconds:.3f} s, longer than the request could wait"
            return MemberLate(text, member=name)
        return request.unbatched_error()

    # --- the watchdog ---------------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Look for overdue batches and stalled members while anything is under way; a thread of its own."""
        idle_since = time.monotonic()
        while not self._is_closing:
            now = time.monotonic()
            try:
                with self._lock:
                    if self._in_flight:
                        idle_since = now
                        for batch in self._in_flight.find_newly_overdue(now):
                            self._get_out_of_the_way(batch)
                        self.breakers.look_for_stalled([entry.batch for entry in self._in_flight], now)
            except Exception:  # a defect must not end the one thread that looks
                logger.exception("the watchdog failed")
            if now - idle_since > IDLE_SECONDS:
                self._stirred.clear()
                if not self._has_reason_to_watch():  # looked at after the clearing: what comes now sets it again
                    self._stirred.wait()
                idle_since = time.monotonic()
            time.sleep(WATCH_SECONDS)

    def _has_reason_to_watch(self) -> bool:
        return self._is_closing or bool(self._in_flight)

    def _get_out_of_the_way(self, batch: Batch) -> None:
        """Keep an overdue batch from holding more than the stream that it is stuck on; under the lock."""
        stuck = [run.member.name for run in batch.runs if run.stream is not None and not run.done.is_done()]
        logger.warning("a batch of %d requests is overdue; members not done: %s", len(batch.requests), ", ".join(stuck) or "none")
        if not batch.is_launched:
            # On a GPU the launching thread has the streams' order in its hand: other batches go on, this one waits for it.
            if self._ensemble.device.torch_device.type == "cpu":
                batch.move(self._ensemble.member_streams)
            self._replace_launcher()
        self._poke()
