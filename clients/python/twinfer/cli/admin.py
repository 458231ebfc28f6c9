"""Calls of the operators' service, which listens on an address of its own."""

from collections.abc import Callable
from typing import Any, TypeVar

import grpc

from twinfer import channel
from twinfer.statuses import error_from_call
from twinfer.v1.ensemble_admin_service_pb2_grpc import EnsembleAdminServiceStub

Reply = TypeVar("Reply")


def call_admin(server: str, call: Callable[[Any], Reply]) -> Reply:
    """Give what `call` makes of the service's stub. Raises TwinferError."""
    with grpc.insecure_channel(server, channel.channel_options(channel.DEFAULT_MAX_MESSAGE_BYTES, 1)) as connection:
        try:
            return call(EnsembleAdminServiceStub(connection))
        except grpc.RpcError as failure:
            raise error_from_call(failure) from None
