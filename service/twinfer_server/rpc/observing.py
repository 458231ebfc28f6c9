"""Observing calls: how each one ended and how long it took, for metrics, and the span of those whose trace is sampled."""

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import grpc
from google.protobuf.descriptor import FileDescriptor

from ..types import TraceSpan
from .boundary import Context, current_span
from .interceptors import HEALTH_METHODS, Details, Handler

UNKNOWN_METHOD = "_OTHER"
"""What OpenTelemetry calls a method that the server does not have."""
CODES = {code.value[0]: code.name for code in grpc.StatusCode}


_began_at: ContextVar[float] = ContextVar("began_at")
"""When the current task's call began."""


@runtime_checkable
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
        self._on_call, self._begin_call = observers.on_call, observers.begin_call
        services = [service for file in files for service in file.services_by_name.values()]
        self._names = {
            f"/{each.full_name}/{name}": f"{each.full_name}/{name}" for each in services for name in each.methods_by_name
        }
        self._observed: dict[str, tuple[Handler, Handler]] = {}
        """By method, the last handler that there was, and what observes it."""

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable["Handler | None"]], handler_call_details: Details
    ) -> "Handler | None":  # fmt: skip
        """Return the call's handler, observed."""
        began_at = time.monotonic()
        _began_at.set(began_at)  # `grpc` runs each call, interceptors included, in a task of its own
        method = handler_call_details.method
        name = self._names.get(method, UNKNOWN_METHOD)
        if self._begin_call is not None and method not in HEALTH_METHODS:  # probes would be most of the traces
            current_span.set(self._begin_call(name, handler_call_details.invocation_metadata, began_at))
        handler = await continuation(handler_call_details)
        if handler is None:  # `grpc` answers by itself
            self._end(name, "UNIMPLEMENTED")
            return None
        observed = self._observed.get(name)
        if observed is None or observed[0] is not handler:
            observed = self._observed[name] = handler, self._observe(name, handler)
        return observed[1]

    def _observe(self, name: str, handler: Handler) -> Handler:
        """Return a handler with the same behavior, of which the end is noted."""
        kind = f"{'stream' if handler.request_streaming else 'unary'}_{'stream' if handler.response_streaming else 'unary'}"
        behave: Any = getattr(handler, kind)

        async def reply(request: Any, context: Context) -> Any:
            try:
                message = await behave(request, context)
            except BaseException as error:
                self._end(name, _find_code(context, error))
                raise
            self._end(name, _find_code(context, None))
            return message

        async def generate(request: Any, context: Context) -> AsyncIterator[Any]:
            try:
                async for message in behave(request, context):
                    yield message
            except BaseException as error:
                self._end(name, _find_code(context, error))
                raise
            self._end(name, _find_code(context, None))

        make = getattr(grpc, f"{kind}_rpc_method_handler")
        codec = handler.request_deserializer, handler.response_serializer
        observed: Handler = make(generate if inspect.isasyncgenfunction(behave) else reply, *codec)
        return observed

    def _end(self, name: str, code: str) -> None:
        """Tell the observers that the current task's call has ended."""
        now, span = time.monotonic(), current_span.get()
        if span is not None:
            assert isinstance(span, CallSpan)
            span.end_call(code, now)
        if self._on_call is not None:
            self._on_call(name, code, now - _began_at.get(), span.trace_id if span is not None else "")


def _find_code(context: Context, error: BaseException | None) -> str:
    """Return the name of the status code that a call ends with, which `error` ended if it is not None."""
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return "CANCELLED"
    code: Any = context.code()  # None, or 0, where nothing was set
    if isinstance(code, grpc.StatusCode):
        return code.name
    return CODES[code] if code else "OK" if error is None else "UNKNOWN"
