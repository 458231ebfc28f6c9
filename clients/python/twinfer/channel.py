"""How both clients connect: message sizes, retries, keepalive."""

import json
import re
from collections.abc import Sequence
from types import ModuleType
from typing import Any, ClassVar

import grpc

from twinfer.errors import TwinferError, Unavailable
from twinfer.proxy import find_proxy, is_local
from twinfer.requests import Options, Request, as_request, check_size
from twinfer.statuses import error_from_call
from twinfer.tls import is_unexplained
from twinfer.v1 import ensemble_service_pb2, ensemble_service_pb2_grpc

SERVICE = "twinfer.v1.EnsembleService"
CHECK = "/grpc.health.v1.Health/Check"

DEFAULT_TARGET = "localhost:50051"
DEFAULT_TIMEOUT_SECONDS = 30.0
# For a whole RPC stream; each of its requests has the client's ordinary timeout.
DEFAULT_STREAM_SECONDS = 3600.0
DEFAULT_MAX_MESSAGE_BYTES = 32 * 2**20
DEFAULT_ATTEMPTS = 4
DEFAULT_WINDOW = 64
PROBE_SECONDS = 1.0
"""How long a failed call may take to find out why no connection came about."""

# Metadata count against gRPC's retry buffer too.
_METADATA_BYTES = 64 * 2**10

# As RFC 6750 has it: no space, and nothing that would begin another header.
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")

Option = tuple[str, str | int]
Metadata = tuple[tuple[str, str], ...]


class Connection:
    """What both clients are made of: a channel, the service's stub, and the limits of a call."""

    # `grpc` or `grpc.aio`.
    _transport: ClassVar[ModuleType]

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        token: str | None = None,
        timeout: float = DEFAULT_TIMEOUT_SECONDS,
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
        attempts: int = DEFAULT_ATTEMPTS,
        options: Sequence[Option] = (),
    ) -> None:
        """Make a client; the connection is made by the first call.

        target: HOST:PORT, unix:PATH, or any name that gRPC resolves. The proxy that the environment names is not asked for a
            server on this machine.
        credentials: for TLS (`tls_credentials()`); without, the connection is in the clear.
        token: what the server's operator has made for this caller with `twinfer token new`; it goes along with every call, over TLS
            or to this machine. Raises ValueError where it would travel in the clear.
        timeout: seconds that a call may take, its retries included, unless the call says otherwise.
        attempts: how often a call is tried while the server is unavailable or overloaded, the first included.
        options: further gRPC channel options; they win over the client's own.
        """
        all_options = [*options, *channel_options(target, max_message_bytes, attempts)]  # of two, gRPC takes the first
        self._metadata = token_metadata(token, target, is_encrypted=credentials is not None)
        self._channel: Any
        if credentials is None:
            self._channel = self._transport.insecure_channel(target, all_options)
        else:
            self._channel = self._transport.secure_channel(target, credentials, all_options)
        self._target, self._credentials, self._options = target, credentials, options
        self._stub = ensemble_service_pb2_grpc.EnsembleServiceStub(self._channel)
        self._proxy = find_proxy(target)
        self._timeout = timeout
        self._max_message_bytes = max_message_bytes

    def _seconds(self, timeout: float | None) -> float:
        """Return how long a call may take: none is ever without a deadline."""
        return self._timeout if timeout is None else timeout

    def _error(self, failure: grpc.RpcError) -> TwinferError:
        """Return the exception for a failed call; where no connection came about, that may take a moment.

        A name often has several addresses (localhost: ::1 and 127.0.0.1), and after a retry the status has the error of any one of
        them: of ::1, where no server listens, as often as of the one where a server refuses this client. A new channel tries them
        in turn, and says what became of the last.
        """
        error = error_from_call(failure, self._proxy)
        if type(error) is not Unavailable or not is_unexplained(failure.details() or ""):
            return error
        own = ("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0), *self._options
        options = [*own, *channel_options(self._target, self._max_message_bytes, attempts=1)]
        with open_channel(self._target, self._credentials, options) as channel:
            try:
                check: Any = channel.unary_unary(CHECK)  # bytes to bytes
                check(b"", timeout=PROBE_SECONDS)
            except grpc.RpcError as again:
                return error if is_unexplained(again.details() or "") else error_from_call(again, self._proxy)
        return error

    def _request(self, inputs: Request, options: Options) -> ensemble_service_pb2.InferRequest:
        """Return the message of a call for one request. Raises MessageTooLarge, and what `make_request` raises."""
        request = as_request(inputs, options)
        check_size(request, self._max_message_bytes)
        return request


def open_channel(target: str, credentials: grpc.ChannelCredentials | None, options: Sequence[Option]) -> grpc.Channel:
    """Open a channel that blocks, by TLS if there are credentials."""
    if credentials is None:
        return grpc.insecure_channel(target, options)
    return grpc.secure_channel(target, credentials, options)


def token_metadata(token: str | None, target: str, *, is_encrypted: bool) -> Metadata | None:
    """Return the metadata of calls that show a token. Raises ValueError where others could read it, or where it is none."""
    if token is None:
        return None
    if not _TOKEN.fullmatch(token):
        raise ValueError("the token has characters that no token has; allowed: what `twinfer token new` has printed.")
    if not (is_encrypted or is_local(target)):
        raise ValueError(f"a token would travel to {target[:60]!r} in the clear; allowed: credentials for TLS, or this machine.")
    return (("authorization", f"Bearer {token}"),)


def channel_options(target: str, max_message_bytes: int, attempts: int) -> list[Option]:
    """Return the options of a channel that retries, whatever the size of the message."""
    return [
        ("grpc.enable_http_proxy", int(not is_local(target))),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_receive_message_length", max_message_bytes),
        # gRPC's default is 256 KiB: a call that has sent more than the buffer holds is never retried.
        ("grpc.per_rpc_retry_buffer_size", max_message_bytes + _METADATA_BYTES),
        ("grpc.enable_retries", int(attempts > 1)),
        ("grpc.service_config", json.dumps(_service_config(attempts))),
        # Notices a peer that vanished without a word. Proxies and servers of gRPC's own refuse pings that come more often than
        # every 5 minutes unless they are told otherwise; data in flight that are not acknowledged are noticed after the 20 seconds.
        ("grpc.keepalive_time_ms", 330_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        # A server that is just starting is found soon, and one that is down is not hammered. `min_reconnect_backoff_ms` is left
        # out: that is how long an attempt to connect may take, and 20 seconds unless it is set.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 5_000),
    ]


def _service_config(attempts: int) -> dict[str, object]:
    """Return gRPC's own retry policy for the service.

    Without a policy that lists its code, a status is final and the server's pushback is ignored.
    Source: gRFC A6, "gRPC Retry Design".
    """
    retry_policy = {
        "maxAttempts": attempts,  # the first one included; gRPC itself stops at 5
        "initialBackoff": "0.1s",
        "maxBackoff": "2s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
    }
    method: dict[str, object] = {"name": [{"service": SERVICE}]}
    return {"methodConfig": [method | {"retryPolicy": retry_policy} if attempts > 1 else method]}
