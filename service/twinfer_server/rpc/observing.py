"""Observing calls: how each one ended and how long it took, for metrics, and the span of those whose trace is sampled."""

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
from google.protobuf.descriptor import FileDescriptor

from ..types import TraceSpan
from .boundary import Context, current_span
from .interceptors import HEALTH_METHODS, Details, Handler

UNKNOWN_METHOD = "_OTHER"
"""What OpenTelemetry calls a method that the server does not have."""
CODES = {code.value[0]: code.name for code in grpc.StatusCode}


class CallSpan(TraceSpan, Protocol):
    """The span of a call."""

    def end_call(self, code: str, ended_at: float) -> None:
        """End it, with the name of the call's status code."""
        ...


OnCall = Callable[[str, str, float, str], None]
"""Told of a call that has ended: its method, the name of its status code, the seconds, and its trace's id or ""."""
BeginCall = Callable[[str, Iterable[tuple[str, str | bytes]], float], CallSpan | None]
"""Begins the span of a call by its method, its metadata and its beginning; returns None where its trace is not recorded."""


@dataclass(frozen=True, slots=True)
class Observers:
    """What is told of calls."""

    on_call: OnCall | None = None
    begin_call: BeginCall | None = None


class ObservingInterceptor(grpc.aio.ServerInterceptor):
    """Tells observers of every call, also of those that a later interceptor refuses. Event loop only."""

    def __init__(self, observers: Observers, files: Sequence[FileDescriptor]) -> None:
        """Tell calls of the services in `files` apart by their methods, and no others: callers make up as many as they like."""
        self._observers = observers
        services = [service for file in files for service in file.services_by_name.values()]
        self._names = {
            f"/{each.full_name}/{name}": f"{each.full_name}/{name}" for each in services for name in each.methods_by_name
        }

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable["Handler | None"]], handler_call_details: Details
    ) -> "Handler | None":  # fmt: skip
        """Return the call's handler, observed."""
        began_at = time.monotonic()
        name = self._names.get(handler_call_details.method, UNKNOWN_METHOD)
        span = None
        begin_call = self._observers.begin_call
        if begin_call is not None and handler_call_details.method not in HEALTH_METHODS:  # probes would be most of the traces
            span = begin_call(name, handler_call_details.invocation_metadata, began_at)
            current_span.set(span)  # `grpc` runs each call, interceptors included, in a task of its own
        call = _Call(self._observers.on_call, name, began_at, span)
        handler = await continuation(handler_call_details)
        if handler is None:  # `grpc` answers by itself
            call.end("UNIMPLEMENTED")
            return None
        return call.observe(handler)


class _Call:
    """One call, from its first interceptor to its end."""

    __slots__ = ("_began_at", "_method", "_on_call", "_span")

    def __init__(self, on_call: OnCall | None, method: str, began_at: float, span: CallSpan | None) -> None:
        self._on_call, self._method, self._began_at, self._span = on_call, method, began_at, span

    def observe(self, handler: Handler) -> Handler:
        """Return the handler with the same behavior, of which the end is noted."""
        kind = "stream_" if handler.request_streaming else "unary_"
        kind += "stream" if handler.response_streaming else "unary"
        behave = getattr(handler, kind)
        wrap = self._observe_messages if inspect.isasyncgenfunction(behave) else self._observe_reply
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        observed: Handler = make(wrap(behave), handler.request_deserializer, handler.response_serializer)
        return observed

    def _observe_reply(self, behave: Callable[[Any, Context], Awaitable[Any]]) -> Callable[[Any, Context], Awaitable[Any]]:
        async def observed(request: Any, context: Context) -> Any:
            try:
                reply = await behave(request, context)
            except BaseException as error:
                self.end(_find_code(context, error))
                raise
            self.end(_find_code(context, None))
            return reply

        return observed

    def _observe_messages(
        self, behave: Callable[[Any, Context], AsyncIterator[Any]]
    ) -> Callable[[Any, Context], AsyncIterator[Any]]:
        async def observed(request: Any, context: Context) -> AsyncIterator[Any]:
            try:
                async for message in behave(request, context):
                    yield message
            except BaseException as error:
                self.end(_find_code(context, error))
                raise
            self.end(_find_code(context, None))

        return observed

    def end(self, code: str) -> None:
        """Tell the observers that the call has ended."""
        now = time.monotonic()
        trace_id = ""
        if self._span is not None:
            trace_id = self._span.trace_id
            self._span.end_call(code, now)
        if self._on_call is not None:
            self._on_call(self._method, code, now - self._began_at, trace_id)


def _find_code(context: Context, error: BaseException | None) -> str:
    """Return the name of the status code that a call ends with, which `error` ended if it is not None."""
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return "CANCELLED"
    code: Any = context.code()  # a number after `abort`; None, or 0, where nothing was set
    if isinstance(code, grpc.StatusCode):
        return code.name
    return CODES[code] if code else "OK" if error is None else "UNKNOWN"
