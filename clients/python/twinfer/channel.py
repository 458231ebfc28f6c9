"""How both clients set up their channel: message sizes, retries, keepalive."""

import json
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import grpc

SERVICE = "twinfer.v1.EnsembleService"

DEFAULT_TARGET = "localhost:50051"
DEFAULT_TIMEOUT_SECONDS = 30.0
# For a whole stream; each of its rows has the client's ordinary timeout.
DEFAULT_STREAM_SECONDS = 3600.0
DEFAULT_MAX_MESSAGE_BYTES = 32 * 2**20
DEFAULT_ATTEMPTS = 4
DEFAULT_WINDOW = 64

# Metadata count against gRPC's retry buffer too.
_METADATA_BYTES = 64 * 2**10

Option = tuple[str, str | int]


def connect(
    kind: ModuleType,
    target: str,
    credentials: grpc.ChannelCredentials | None,
    max_message_bytes: int,
    attempts: int,
    options: Sequence[Option],
) -> Any:
    """Make a channel of `kind`, which is `grpc` or `grpc.aio`; `options` win over the client's own. See `Client`."""
    all_options = [*options, *channel_options(max_message_bytes, attempts)]  # of two, gRPC takes the first
    if credentials is None:
        return kind.insecure_channel(target, all_options)
    return kind.secure_channel(target, credentials, all_options)


def channel_options(max_message_bytes: int, attempts: int) -> list[Option]:
    """Return the options of a channel that retries, whatever the size of the message."""
    return [
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_receive_message_length", max_message_bytes),
        # gRPC's default is 256 KiB: a call that has sent more than the buffer holds is never retried.
        ("grpc.per_rpc_retry_buffer_size", max_message_bytes + _METADATA_BYTES),
        ("grpc.enable_retries", int(attempts > 1)),
        ("grpc.service_config", json.dumps(_service_config(attempts))),
        # Notices a peer that vanished without a word. Proxies and servers of gRPC's own refuse pings that come more often than
        # every 5 minutes unless they are told otherwise; data in flight that nobody acknowledges is noticed after the 20 seconds.
        ("grpc.keepalive_time_ms", 330_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        # A server that is just starting is found soon, and one that is down is not hammered. Not a word of
        # `min_reconnect_backoff_ms`: that is how long an attempt to connect may take, and 20 seconds unless it is set.
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
    if attempts > 1:
        method["retryPolicy"] = retry_policy
    return {"methodConfig": [method]}
