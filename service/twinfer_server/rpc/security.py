"""The interceptor that lets callers in: who they are, and which RPCs their role may call; there where `auth_file` is set.

Health is open, for probes have no tokens. All else is refused without a token or certificate, methods that do not exist included.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc_reflection.v1alpha import reflection_pb2

from twinfer.v1 import ensemble_admin_service_pb2, ensemble_service_pb2

from ..auth_file import AuthFile, Caller, Role
from ..errors import MalformedMessage, PermissionDenied, TwinferError, Unauthenticated, Unsupported
from .boundary import Context, OnFailure, abort, fail, find_caller, name_caller, write_status
from .interceptors import HEALTH_METHODS, Behavior, Details, Handler
from .oip import grpc_service_pb2
from .oip.service import INFERENCE_SERVICE, UNSUPPORTED

ASK = frozenset({Role.INFER})
DESCRIBE = frozenset(Role)
WATCH = frozenset({Role.OBSERVE, Role.OPERATE})
CHANGE = frozenset({Role.OPERATE})

_OWN, _ADMIN, _OIP = "/twinfer.v1.EnsembleService/", "/twinfer.v1.EnsembleAdminService/", f"/{INFERENCE_SERVICE}/"
ROLES: Mapping[str, frozenset[Role]] = {
    f"{_OWN}Infer": ASK,
    f"{_OWN}BatchInfer": ASK,
    f"{_OWN}InferStream": ASK,
    f"{_OWN}GetEnsemble": DESCRIBE,
    f"{_ADMIN}CaptureTimeline": WATCH,
    f"{_ADMIN}UpdateFusion": CHANGE,
    f"{_ADMIN}RollbackFusion": CHANGE,
    f"{_ADMIN}SetMember": CHANGE,
    f"{_OIP}ModelInfer": ASK,
    f"{_OIP}ModelStreamInfer": ASK,
    f"{_OIP}ServerLive": DESCRIBE,
    f"{_OIP}ServerReady": DESCRIBE,
    f"{_OIP}ServerMetadata": DESCRIBE,
    f"{_OIP}ModelReady": DESCRIBE,
    f"{_OIP}ModelMetadata": DESCRIBE,
    f"{_OIP}ModelConfig": DESCRIBE,
    f"{_OIP}RepositoryIndex": DESCRIBE,
    **{f"{_OIP}{name}": DESCRIBE for name in UNSUPPORTED},
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": DESCRIBE,
}
"""Who may call what, by the RPC's full name: on every listener, and nothing else can be called."""
FILES = (ensemble_service_pb2, ensemble_admin_service_pb2, grpc_service_pb2, reflection_pb2)
STREAMS = frozenset(
    f"/{service.full_name}/{method.name}"
    for file in FILES
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
    if method.client_streaming or method.server_streaming
)

# One sentence each, whatever was wrong: a guesser learns nothing of how near a guess was.
UNAUTHENTICATED_TEXT = "no valid credentials; allowed: metadata `authorization: Bearer TOKEN`, or a client certificate, of a caller"
DENIED_TEXT = "the caller's role does not allow this"

Continuation = Callable[[Details], Awaitable["Handler | None"]]


@dataclass(frozen=True, slots=True)
class Credential:
    """What a caller proves its name with: a token, or the common name of a verified certificate. Never logged."""

    text: str
    is_certificate: bool


@dataclass(frozen=True, slots=True, eq=False)
class OpenStream:
    """An RPC stream; `revoked` gets the error that ends it when its caller may call it no more."""

    method: str
    credential: Credential | None
    name: str
    revoked: "asyncio.Future[TwinferError]"


class SecurityInterceptor(grpc.aio.ServerInterceptor):
    """Names the caller of each call of one server, or refuses it before its message is read. Event loop only."""

    def __init__(self, auth_file: AuthFile, on_failure: OnFailure | None = None) -> None:
        """Let in whom the file names; `on_failure` is told of each call that is refused."""
        self._auth_file = auth_file
        self._on_failure = on_failure
        self._open: set[OpenStream] = set()

    async def intercept_service(self, continuation: Continuation, handler_call_details: Details) -> "Handler | None":
        """Name the caller and let the call go on, or refuse it."""
        method = handler_call_details.method
        if method in HEALTH_METHODS:
            return await continuation(handler_call_details)
        credential = read_token(handler_call_details.invocation_metadata)
        if credential is None and self._auth_file.callers.has_certificates:
            # The certificate is known to handlers alone: a unary one gets to know it when it has the message.
            return self._open_call(continuation, handler_call_details, None)
        error = find_refusal(method, self._identify(credential))
        if error is not None:
            return self._refuse(error)
        if method in STREAMS:
            return self._open_call(continuation, handler_call_details, credential)
        return await continuation(handler_call_details) if method in ROLES else None

    def end_revoked(self) -> None:
        """End the RPC streams that are open and that their callers may call no more, now that the file has changed."""
        for stream in self._open:
            caller = self._look_up(stream.credential)
            is_same = caller is not None and caller.name == stream.name
            error = find_refusal(stream.method, caller if is_same else None)
            if error is not None and not stream.revoked.done():
                stream.revoked.set_result(error)

    def _look_up(self, credential: Credential | None) -> Caller | None:
        """Return whose credential it is; None for nobody's."""
        if credential is None or not credential.text:
            return None
        callers = self._auth_file.callers
        find = callers.find_by_certificate if credential.is_certificate else callers.find_by_token
        return find(credential.text)

    def _identify(self, credential: Credential | None) -> Caller | None:
        """Return whose credential it is, and name the caller from now on; None for nobody's."""
        caller = self._look_up(credential)
        if caller is not None:
            name_caller(caller.name)
        return caller

    def _refuse(self, error: TwinferError) -> Handler:
        async def refuse(requests: object, context: Context) -> None:
            await self._end(context, error)

        return grpc.stream_stream_rpc_method_handler(refuse)  # which reads no message: it may be large

    async def _end(self, context: Context, error: TwinferError) -> None:
        if self._on_failure is not None:
            self._on_failure(error)
        await abort(context, write_status(error))

    def _open_call(self, continuation: Continuation, details: Details, credential: Credential | None) -> Handler:
        """Return a handler that looks at the certificate where there is no other credential, and that ends when it is revoked."""

        async def handle(request: Any, context: Context) -> Any:
            proof = credential or read_certificate(context)
            error = find_refusal(details.method, self._identify(proof))
            if error is not None:
                await self._end(context, error)
                return None
            handler = await continuation(details) if details.method in ROLES else None
            if handler is None:
                await self._end(context, Unsupported("there is no such method"))
                return None
            behave = _find_behavior(handler)
            if details.method not in STREAMS:
                return await behave(request, context)
            return await self._watch(OpenStream(details.method, proof, find_caller(), _make_future()), behave, request, context)

        is_unary = details.method in ROLES and details.method not in STREAMS
        make = grpc.unary_unary_rpc_method_handler if is_unary else grpc.stream_stream_rpc_method_handler
        return make(handle)

    async def _watch(self, stream: OpenStream, behave: Behavior, requests: Any, context: Context) -> None:
        """Serve an RPC stream to its end, or until its caller may call it no more."""
        serving = asyncio.ensure_future(behave(requests, context))
        self._open.add(stream)
        try:
            await asyncio.wait({serving, stream.revoked}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._open.discard(stream)
            was_revoked = not serving.done()
            if was_revoked:
                serving.cancel()
                await asyncio.gather(serving, return_exceptions=True)
        if was_revoked:
            await self._end(context, stream.revoked.result())
        serving.result()


def find_refusal(method: str, caller: Caller | None) -> TwinferError | None:
    """Return why a caller may not call a method, whether there is one or not; None where it may."""
    if caller is None:
        return Unauthenticated(UNAUTHENTICATED_TEXT)
    is_denied = method in ROLES and caller.role not in ROLES[method]
    return PermissionDenied(DENIED_TEXT) if is_denied else None


def read_token(metadata: Any) -> Credential | None:
    """Return what `authorization` says, None where there is no such header; one that is not right is nobody's token.

    HTTP/2 has names in lower case; the scheme may be written any way (RFC 9110, 11.1). Two headers are no token, even equal ones:
    a proxy in front may have looked at the other one.
    """
    values = [value for key, value in metadata or () if key == "authorization"]
    if not values:
        return None
    scheme, _, token = values[0].partition(" ") if len(values) == 1 and isinstance(values[0], str) else ("", "", "")
    return Credential(token.strip(" ") if scheme.lower() == "bearer" else "", is_certificate=False)


def read_certificate(context: Context) -> Credential | None:
    """Return the common name in the subject of the certificate that the client has shown and that has been verified."""
    names = [*context.auth_context().get("x509_common_name", ())]
    return Credential(names[0].decode(errors="replace"), is_certificate=True) if len(names) == 1 else None


def _find_behavior(handler: Handler) -> Behavior:
    """Return what a handler does with bytes, a unary one or one of streams; reflection's is a generator of messages."""
    stream: Any = handler.stream_stream
    if stream is None or asyncio.iscoroutinefunction(stream):
        return stream or handler.unary_unary  # type: ignore[return-value]
    read, write = handler.request_deserializer, handler.response_serializer
    assert read is not None
    assert write is not None

    async def behave(requests: AsyncIterator[bytes], context: Context) -> None:
        try:
            async for reply in stream((read(data) async for data in requests), context):
                await context.write(write(reply))
        except DecodeError:
            await fail(context, MalformedMessage("the bytes do not parse; allowed: a message of the RPC's type"))

    return behave


def _make_future() -> "asyncio.Future[TwinferError]":
    return asyncio.get_running_loop().create_future()
