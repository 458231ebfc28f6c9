"""Calls as any client makes them, bytes in and bytes out, and what is in their failures."""

import queue
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc

from twinfer.v1 import ensemble_admin_service_pb2 as admin_pb
from twinfer.v1 import ensemble_admin_service_pb2_grpc as admin_grpc
from twinfer.v1 import ensemble_service_pb2 as pb
from twinfer.v1 import error_pb2
from twinfer.v1.ensemble_pb2 import BREAKER_STATE_DISABLED

PATIENCE_SECONDS = 30.0
"""What a test waits for something that happens at once, before it fails."""

INFER = "/twinfer.v1.EnsembleService/Infer"
INFER_STREAM = "/twinfer.v1.EnsembleService/InferStream"
BATCH_INFER = "/twinfer.v1.EnsembleService/BatchInfer"
GET_ENSEMBLE = "/twinfer.v1.EnsembleService/GetEnsemble"


@dataclass(frozen=True, slots=True)
class Failure:
    """How a call failed: its status, and the `Error` that came with it."""

    code: grpc.StatusCode
    details: str
    error: error_pb2.Error
    pushback: str

    @property
    def reason(self) -> str:
        """The reason's name, without its prefix."""
        return error_pb2.Reason.Name(self.error.reason).removeprefix("REASON_")


def connect(address: str) -> grpc.Channel:
    """Make a channel of its own connection that does not retry and sends messages of any size."""
    options = [
        ("grpc.enable_retries", 0),
        ("grpc.max_send_message_length", -1),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", 0),
    ]
    return grpc.insecure_channel(address, options)


def call(channel: grpc.Channel, method: str, message: bytes, timeout: float = PATIENCE_SECONDS) -> bytes | Failure:
    """Make a unary call."""
    try:
        to_bytes: Any = channel.unary_unary(method)
        reply: bytes = to_bytes(message, timeout=timeout)
    except grpc.RpcError as failure:
        return read_failure(failure)
    return reply


def begin(channel: grpc.Channel, method: str, message: bytes, timeout: float = PATIENCE_SECONDS) -> Any:
    """Begin a unary call and go on; gives its future."""
    to_bytes: Any = channel.unary_unary(method)
    return to_bytes.future(message, timeout=timeout)


def infer(channel: grpc.Channel, request: pb.InferRequest, timeout: float = PATIENCE_SECONDS) -> pb.InferResponse | Failure:
    """Call Infer."""
    reply = call(channel, INFER, request.SerializeToString(), timeout)
    return reply if isinstance(reply, Failure) else pb.InferResponse.FromString(reply)


def batch_infer(
    channel: grpc.Channel, *requests: pb.InferRequest, timeout: float = PATIENCE_SECONDS, ensemble: str = "", version: int = 0
) -> pb.BatchInferResponse | Failure:
    """Call BatchInfer."""
    message = pb.BatchInferRequest(requests=requests, ensemble=ensemble, version=version)
    reply = call(channel, BATCH_INFER, message.SerializeToString(), timeout)
    return reply if isinstance(reply, Failure) else pb.BatchInferResponse.FromString(reply)


def stream(channel: grpc.Channel, messages: Any, timeout: float = PATIENCE_SECONDS) -> Any:
    """Open an InferStream that sends `messages`, bytes each; gives the call, an iterator of bytes."""
    return channel.stream_stream(INFER_STREAM)(iter(messages), timeout=timeout)


def send(*requests: pb.InferRequest) -> list[bytes]:
    """Write the messages of an InferStream."""
    return [pb.InferStreamRequest(request=request).SerializeToString() for request in requests]


def read(replies: Iterable[bytes]) -> list[pb.InferStreamResponse]:
    """Read the replies of an InferStream."""
    return [pb.InferStreamResponse.FromString(reply) for reply in replies]


def ids(answers: Iterable[pb.InferStreamResponse]) -> list[str]:
    """List the ids of the requests that were answered without an error."""
    return [answer.request_id for answer in answers if answer.HasField("response")]


class Outbox:
    """What a stream sends: requests that the test puts in one by one, until it closes it."""

    def __init__(self) -> None:
        self._messages: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()

    def put(self, *requests: pb.InferRequest) -> None:
        for message in send(*requests):
            self._messages.put(message)

    def close(self) -> None:
        self._messages.put(None)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._messages.get, None)


def disable_member(admin_address: str, name: str) -> None:
    """Disable a member by hand, as an operator does."""
    with connect(admin_address) as channel:
        request = admin_pb.SetMemberRequest(member=name, breaker_state=BREAKER_STATE_DISABLED)
        admin_grpc.EnsembleAdminServiceStub(channel).SetMember(request)


def read_failure(failure: Any) -> Failure:
    """Read a failed call's status and metadata."""
    metadata = dict(iter(failure.trailing_metadata() or ()))
    error = error_pb2.Error.FromString(metadata.get("twinfer-error-bin", b""))
    return Failure(failure.code(), failure.details(), error, metadata.get("grpc-retry-pushback-ms", ""))


def failure_of(act: Callable[[], object]) -> Failure:
    """Do what must fail as a call, and say how it did."""
    try:
        found = act()
    except grpc.RpcError as failure:
        return read_failure(failure)
    raise AssertionError(f"it did not fail: {found}")
