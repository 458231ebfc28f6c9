"""The interceptor: how many calls may be there at once, and what becomes of errors that nothing else has caught."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import grpc
from grpc_health.v1 import health_pb2

from ..engine import Places
from ..errors import Overloaded
from .boundary import Context, OnFailure, fail, find_caller, write_status

RETRY_SECONDS = 0.5
"""When a call that was one too many may come again: a place is free when another call ends, which cannot be foreseen."""
QUIET_SECONDS, SETTLE_SECONDS = 0.02, 0.25
"""With replies held, how long no new call may come before the server says goodbye, and how long it waits for that at most."""
HEALTH_METHODS = frozenset(
    f"/{service.full_name}/{name}"
    for service in health_pb2.DESCRIPTOR.services_by_name.values()
    for name in service.methods_by_name
)

Details = grpc.HandlerCallDetails
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Behavior = Callable[[Any, "Context"], Awaitable[Any]]


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Counts the calls of one server and refuses those that are too many; calls of the health service are free. Event loop only."""

    def __init__(self, max_calls: int, on_failure: OnFailure | None = None) -> None:
        """Let `max_calls` in at once; `on_failure` is told of each that is refused."""
        self._places = Places(max_calls)
        """For all calls but those of the health service."""
        self._on_failure = on_failure
        self._came = 0
        self._may_reply = asyncio.Event()
        self._may_reply.set()
        self._guarded: dict[str, Handler] = {}
        # A handler of streams reads no message before it asks for one: the refused call's may be large.
        self._refusing: Handler = grpc.stream_stream_rpc_method_handler(self._refuse)

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable["Handler | None"]], handler_call_details: Details
    ) -> "Handler | None":  # fmt: skip
        """Give the call a place until its task ends, or refuse it."""
        self._came += 1
        method = handler_call_details.method
        if method not in HEALTH_METHODS:
            caller = find_caller()
            if self._places.taken + 1 > self._places.allowed(caller, 1):
                return self._refusing
            self._places.take(caller, 1)
            task = asyncio.current_task()
            assert task is not None  # `grpc` runs each call, interceptors included, in a task of its own
            task.add_done_callback(lambda task: self._places.give_back(caller, 1))
        if method not in self._guarded:
            handler = await continuation(handler_call_details)
            if handler is None:  # no such method
                return None
            self._guarded[method] = self._guard(handler)
        return self._guarded[method]

    @property
    def calls(self) -> int:
        """The calls that there are now, but for those of the health service."""
        return self._places.taken

    async def settle(self) -> None:
        """Hold unary replies, and return when no call has come for a moment.

        A server that stops drops calls that it has not yet looked at, and those that its clients send before they hear of it
        (they end as CANCELLED). A client that waits for a reply sends nothing, so there are none.
        """
        self._may_reply.clear()
        until, came = time.monotonic() + SETTLE_SECONDS, -1
        while came != self._came and time.monotonic() < until:
            came = self._came
            await asyncio.sleep(QUIET_SECONDS)

    def reply(self) -> None:
        """Hold replies no longer."""
        self._may_reply.set()

    def _guard(self, handler: Handler) -> Handler:
        """Return the handler with the same behavior but for errors that it lets through, which are INTERNAL and logged."""
        codec = handler.request_deserializer, handler.response_serializer
        unary: Any = handler.unary_unary
        if unary is not None:
            return grpc.unary_unary_rpc_method_handler(self._guard_behavior(unary), *codec)
        stream: Any = handler.stream_stream
        if asyncio.iscoroutinefunction(stream):
            return grpc.stream_stream_rpc_method_handler(self._guard_behavior(stream), *codec)
        return handler

    def _guard_behavior(self, behave: Behavior) -> Behavior:
        async def guarded(request: Any, context: Context) -> Any:
            try:
                reply = await behave(request, context)
            except grpc.aio.BaseError:  # the call is over: it has its status, or its caller has gone
                raise
            except Exception as error:
                await fail(context, error)
            if not self._may_reply.is_set():
                await self._may_reply.wait()
            return reply

        return guarded

    async def _refuse(self, requests: object, context: Context) -> None:
        text = f"calls: found {self.calls + 1} at once; allowed: {self._places.allowed(find_caller(), 1)}"
        error = Overloaded(text, retry_after_seconds=RETRY_SECONDS)
        if self._on_failure is not None:
            self._on_failure(error)
        await context.abort(*write_status(error))
