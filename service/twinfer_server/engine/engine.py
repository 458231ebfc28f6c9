"""The engine: has a request batched and computed, and answers it in time, whatever happens."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Protocol

from ..device import usable_cores
from ..errors import Cancelled, Overloaded, TwinferError, UnknownMember, detach, quote
from ..executor import Ensemble, FusionChange, FusionVersions
from ..settings import ServerSettings
from ..types import CallerLimits, InferRequest, Policy, Request, Response
from .admission import Admission
from .audit import audit, describe_version
from .circuit_breaker import BreakerReading, CircuitBreakers
from .deadlines import DeadlineTimer, ReplySlack
from .preprocessor import Preprocessor
from .scheduler import OnBatch, Scheduler
from .trace import BatchRecord, Span, Trace
from .traced import begin_spans, end_spans
from .workers import Workers

logger = logging.getLogger(__name__)


class Listener(Protocol):
    """What is told of everything that an engine does: its metrics."""

    def on_batch(self, record: BatchRecord) -> None:
        """Note a complete batch; on a completion thread."""
        ...

    def on_response(self, response: Response, seconds: float, trace_id: str = "") -> None:
        """Note that a request has been answered, `seconds` after its arrival; `trace_id` is "" where its trace is not recorded."""
        ...

    def on_failure(self, error: TwinferError) -> None:
        """Note that a request has ended with an error."""
        ...

    def on_end(self, caller: str, code: str) -> None:
        """Note the code with which a request of a caller, or its call, has ended."""
        ...

    def on_breaker(self, member: str, reading: BreakerReading, times_opened: int) -> None:
        """Note a member's breaker now, and how often it has opened so far."""
        ...


class Engine:
    """Serves one warm ensemble. All methods belong to the event loop, and none of them computes or waits for a device.

    It owns the work, not the caller's RPC: a caller who goes away takes its requests out of the queue, but a batch that holds them
    goes on.
    """

    def __init__(self, ensemble: Ensemble, settings: ServerSettings) -> None:
        """Serve a warm ensemble; call `start` from the event loop that will call `infer`."""
        self.ensemble = ensemble
        self.settings = settings
        self._admission = Admission(settings)
        self._slack = ReplySlack(settings)
        self._scheduler = Scheduler(ensemble, settings, self._respond_soon, self._note_breakers_soon)
        threads = settings.decode_threads or usable_cores()
        self._preprocessor = Preprocessor(ensemble.processor, threads, self._enqueue, self._fail_soon)
        self._late = Workers("late", 1)  # of its own: a late request cannot wait behind a large image
        self._versions = FusionVersions(ensemble)
        self._changing = asyncio.Lock()
        self._listener: Listener | None = None
        self._trace: Trace | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Start the threads."""
        self._loop = asyncio.get_running_loop()
        self._scheduler.start()

    def close(self) -> None:
        """End the threads; call it when nothing is in flight, or when that no longer matters."""
        self._scheduler.close()
        self._preprocessor.close()
        self._late.close()
        self.ensemble.close()

    # --- requests -------------------------------------------------------------------------------------------------------------

    def check_served(self, ensemble: str, version: int) -> None:
        """Raise UnknownEnsemble unless the name and version are served."""
        self.ensemble.processor.check_served(ensemble, version)

    async def infer(self, request: InferRequest, size_bytes: int) -> Response:
        """Answer one request; raises TwinferError."""
        [response] = await self.infer_batch([request], size_bytes)
        if isinstance(response, TwinferError):
            raise response
        return response

    async def infer_batch(self, requests: Sequence[InferRequest], size_bytes: int) -> list[Response | TwinferError]:
        """Answer the requests of one call, each with its response or its error, in their order.

        Raises TwinferError if they cannot be admitted.
        """
        count, caller = len(requests), requests[0].caller if requests else ""
        self._admission.enter(caller, size_bytes, count)
        try:
            if requests[0].span is not None:
                requests = begin_spans(requests)
            made = [self._make_request(request, index, count) for index, request in enumerate(requests)]
            admitted = [request for request in made if isinstance(request, Request)]
            if admitted:
                await self._answer(admitted, size_bytes)
            if requests[0].span is not None:
                end_spans(requests, made, self.ensemble.members)
            return [request.outcome if isinstance(request, Request) else request for request in made]
        finally:
            self._admission.leave(caller, size_bytes, count)

    def limit(self, limits: Mapping[str, CallerLimits]) -> None:
        """Keep callers to limits of their own, by name, from now on."""
        self._admission.limit(limits)

    async def drain(self) -> None:
        """Admit nothing more and return when every request has been answered."""
        self._admission.is_draining = True
        while self._admission.requests.taken:
            await asyncio.sleep(0.01)

    def _make_request(self, request: InferRequest, index: int, count: int) -> Request | TwinferError:
        """Check a request, all but its inputs; it is answered together with `count` requests in all."""
        try:
            policy = self.ensemble.check(request)
            self._scheduler.breakers.check(policy)
            weights = self.ensemble.processor.read_weights(request.fusion_weights)
            reply_by = self._slack.reply_by(request, count)
        except TwinferError as error:
            return detach(error)
        assert self._loop is not None
        return Request(request, policy, weights, reply_by, self._loop.create_future(), index=index)

    async def _answer(self, requests: Sequence[Request], size_bytes: int) -> None:
        """Have requests prepared and computed, and wait until the last of them is answered."""
        futures = [request.response for request in requests if isinstance(request.response, asyncio.Future)]
        timer = DeadlineTimer(requests, self._on_time_up)
        try:
            self._preprocessor.prepare(requests, size_bytes)
            for future in futures:
                if not future.done():  # most are by then: a batch's requests wake their caller once
                    try:
                        await future
                    except TwinferError as error:
                        detach(error)
        except asyncio.CancelledError:
            for future in futures:
                if future.cancel():
                    self.note_failure(Cancelled("the caller went away"), requests[0].request.caller)
                elif not future.cancelled():
                    future.exception()  # it will not be asked for
            self._scheduler.drop_answered()
            raise
        finally:
            timer.cancel()

    def _enqueue(self, requests: Sequence[Request]) -> None:
        """Let prepared requests wait for their batches; any thread."""
        for request in requests:
            request.members = self.ensemble.first_members(request.samples)
        self._scheduler.put(requests, self._admission.requests.taken)

    def _on_time_up(self, request: Request) -> None:
        """Answer a request whose time is up: from the members so far if it is in a batch, else with an error."""
        self._late.do(lambda: self._respond_soon(*self._scheduler.respond_late(request)))

    def _fail_soon(self, request: Request, error: TwinferError) -> None:
        """Have the event loop end a request with an error; any thread."""
        self._respond_soon([request], [error])

    def _respond_soon(self, requests: Sequence[Request], responses: Sequence[Response | TwinferError]) -> None:
        """Have the event loop hand out responses; any thread."""
        self._call_soon(partial(self._respond, requests, responses, time.monotonic()))

    def _respond(self, requests: Sequence[Request], responses: Sequence[Response | TwinferError], since: float) -> None:
        self._slack.note(time.monotonic() - since)
        for request, response in zip(requests, responses, strict=True):
            future = request.response
            if future is None or future.done():
                continue
            if isinstance(response, TwinferError):
                future.set_exception(response)
            else:
                future.set_result(response)
                if self._trace is not None:
                    self._trace.add_request(request, request.ready_at + response.timings.queue_seconds)
        if requests:  # a cascade may escalate all of a batch's requests
            self._admission.note_responses(len(requests))

    def _call_soon(self, work: Callable[[], None]) -> None:
        """Have the event loop do something; any thread."""
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(work)
        except RuntimeError:  # the loop has ended, and with it every caller
            logger.info("something came after the event loop's end")

    # --- what operators ask and change ----------------------------------------------------------------------------------------

    @property
    def breakers(self) -> CircuitBreakers:
        """The members' circuit breakers, to read."""
        return self._scheduler.breakers

    async def update_fusion(self, change: FusionChange, caller: str = "") -> None:
        """Put another fusion to use, for every batch from now on; raises InvalidOption and FusionConflict."""
        await asyncio.shield(self._change(partial(self._versions.update, change), caller))

    async def roll_back_fusion(self, version: int, caller: str = "") -> None:
        """Put an earlier version of the fusion to use again, 0 for the one before; raises FusionConflict."""
        await asyncio.shield(self._change(partial(self._versions.roll_back, version), caller))

    async def _change(self, change: Callable[[], None], caller: str) -> None:
        """Make a change on a thread that may wait, one at a time, to its end even if its caller goes away."""
        async with self._changing:
            before = self.ensemble.fusion
            await asyncio.to_thread(change)
            audit(caller, "fusion", describe_version(before), describe_version(self.ensemble.fusion))

    async def set_member(self, name: str, is_enabled: bool, caller: str = "") -> None:
        """Enable or disable a member by hand; raises UnknownMember."""
        names = [member.name for member in self.ensemble.members]
        if name not in names:
            raise UnknownMember(f"member: found {quote(name)}; allowed: {', '.join(map(repr, names))}")
        # Not behind other changes: one of them may be waiting for just the member that is to be disabled.
        await asyncio.to_thread(self._set_member, names.index(name), is_enabled, caller)

    def _set_member(self, index: int, is_enabled: bool, caller: str) -> None:
        before, after = self._scheduler.set_member(index, is_enabled)
        audit(caller, f"member {self.ensemble.members[index].name}", before.name, after.name)

    async def capture_trace(self, seconds: float) -> str:
        """Watch everything for so long and return it as a Chrome trace; raises Overloaded if another capture is under way."""
        if self._trace is not None:
            raise Overloaded("a timeline is being captured; allowed: one at a time", retry_after_seconds=1.0)
        self._trace = trace = Trace()
        before, began = self._scheduler.on_batch, time.monotonic()
        self._scheduler.on_batch = (*before, trace.add_batch)
        try:
            await asyncio.sleep(seconds)
        finally:
            self._trace, self._scheduler.on_batch = None, before
        return await asyncio.to_thread(trace.write, Span(began, time.monotonic()))

    # --- health and metrics ---------------------------------------------------------------------------------------------------

    @property
    def requests_in_flight(self) -> int:
        """The requests that are being prepared, wait or compute."""
        return self._admission.requests.taken

    @property
    def bytes_in_flight(self) -> int:
        """The bytes of their calls."""
        return self._admission.bytes.taken

    @property
    def requests_waiting(self) -> int:
        """The requests that wait for a batch."""
        return self._scheduler.waiting_requests

    @property
    def loss(self) -> str:
        """Why the device is lost for good; empty while it is not."""
        return self._scheduler.loss

    def can_answer(self, policy: Policy | None = None) -> bool:
        """Whether the members that are on are enough for a policy; None is the ensemble's own."""
        return self._scheduler.breakers.can_answer(policy or self.ensemble.default_policy)

    async def stuck_members(self) -> list[str]:
        """Name the members whose stream has been behind for `stuck_seconds`."""
        behind = await asyncio.to_thread(self._scheduler.behind_seconds)
        return [name for name, seconds in behind.items() if seconds >= self.settings.stuck_seconds]

    def listen(self, listener: Listener) -> None:
        """Have `listener` told of everything from now on."""
        self._listener = listener
        self._scheduler.on_batch = (listener.on_batch,)
        self._note_breakers()

    def trace(self, on_batch: OnBatch) -> None:
        """Have `on_batch` told of every complete batch with a request whose trace is recorded, on completion threads."""
        self._scheduler.on_traced = on_batch

    def note_reply(self, request: InferRequest, response: Response, began: float) -> None:
        """Note that a response has been written since `began`."""
        now = time.monotonic()
        if self._trace is not None:
            self._trace.add_encoding(request, Span(began, now))
        if self._listener is not None:
            trace_id = request.span.trace_id if request.span is not None else ""
            self._listener.on_response(response, now - request.arrived_at, trace_id)
            self._listener.on_end(request.caller, "OK")

    def note_failure(self, error: TwinferError, caller: str) -> None:
        """Note that a request or a call has ended with an error."""
        if self._listener is not None:
            self._listener.on_failure(error)
            self._listener.on_end(caller, error.code.name)

    def _note_breakers_soon(self) -> None:
        """Have the event loop note that a breaker has changed; any thread."""
        self._call_soon(self._note_breakers)

    def _note_breakers(self) -> None:
        if self._listener is not None:
            for member, breaker in zip(self.ensemble.members, self.breakers.breakers, strict=True):
                self._listener.on_breaker(member.name, breaker.reading, breaker.times_opened)
