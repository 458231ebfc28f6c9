"""`twinfer fusion`, `twinfer member`, `twinfer timeline`: what operators see and change, over a server's --admin-listen address."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import grpc
import typer
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from twinfer.channel import DEFAULT_MAX_MESSAGE_BYTES, channel_options
from twinfer.cli.access import Access, with_access
from twinfer.cli.describe import describe_breaker, describe_fusion
from twinfer.cli.options import DEFAULT_SERVER, DEFAULT_TIMEOUT, Admin, Json, Server, Timeout, check_folder, failures_reported
from twinfer.cli.report import plain, print_json
from twinfer.proxy import find_proxy
from twinfer.statuses import error_from_call
from twinfer.v1 import ensemble_admin_service_pb2 as pb
from twinfer.v1 import ensemble_pb2
from twinfer.v1.ensemble_admin_service_pb2_grpc import EnsembleAdminServiceStub

TIMEOUT_SECONDS = 75.0  # a timeline takes up to 60
NUMBER = "MEMBER=NUMBER"
Shown = TypeVar("Shown", ensemble_pb2.Fusion, ensemble_pb2.Member)

fusion = typer.Typer(help="Change how the members' outputs become one, while the server answers.", no_args_is_help=True)
member = typer.Typer(help="Disable members and enable them again, while the server answers.", no_args_is_help=True)


@fusion.command("show")
@with_access
def show(access: Access, server: Server = DEFAULT_SERVER, timeout: Timeout = DEFAULT_TIMEOUT, as_json: Json = False) -> None:
    """Show the fusion that is in use. Callers may ask that, so it goes to the address that `twinfer infer` takes."""
    with failures_reported(as_json), access.client(server) as client:
        ensemble = client.describe(timeout=timeout)
    _show(ensemble.fusion, describe_fusion, as_json)


@fusion.command("update")
@with_access
def update(
    access: Access,
    server: Admin,
    weight: Annotated[
        list[str] | None,
        typer.Option(metavar=NUMBER, help="A member's weight, once for each; those left out weigh 0. None: as they are."),
    ] = None,
    temperature: Annotated[
        list[str] | None,
        typer.Option(metavar=NUMBER, help="A member's temperature, once for each; those left out are 1. None: as they are."),
    ] = None,
    method: Annotated[str, typer.Option(help="Another method.")] = "",
    fitted: Annotated[bool, typer.Option("--fitted", help="What `twinfer fit` has written into the ensemble's folder.")] = False,
    expected_version: Annotated[int, typer.Option(min=0, help="Fail if another version is in use by now; 0: any.")] = 0,
    as_json: Json = False,
) -> None:
    """Put another version of the fusion to use; no call fails of it."""
    request = pb.UpdateFusionRequest(
        expected_version=expected_version,
        method=method,
        weights=_read_numbers("--weight", weight),
        temperatures=_read_numbers("--temperature", temperature),
        fitted=fitted,
    )
    _show(_call(access, server, "UpdateFusion", request, as_json).fusion, describe_fusion, as_json)


@fusion.command("rollback")
@with_access
def rollback(
    access: Access,
    server: Admin,
    version: Annotated[int, typer.Option(min=0, help="The version to go back to; 0: the one before.")] = 0,
    as_json: Json = False,
) -> None:
    """Go back to an earlier version of the fusion."""
    request = pb.RollbackFusionRequest(version=version)
    _show(_call(access, server, "RollbackFusion", request, as_json).fusion, describe_fusion, as_json)


@member.command("on")
@with_access
def on(access: Access, name: str, server: Admin, as_json: Json = False) -> None:
    """Close a member's circuit breaker, so that it takes part in batches again."""
    request = pb.SetMemberRequest(member=name, breaker_state=ensemble_pb2.BREAKER_STATE_CLOSED)
    _show(_call(access, server, "SetMember", request, as_json).member, describe_breaker, as_json)


@member.command("off")
@with_access
def off(access: Access, name: str, server: Admin, as_json: Json = False) -> None:
    """Disable a member: it takes part in no batch until it is on again."""
    request = pb.SetMemberRequest(member=name, breaker_state=ensemble_pb2.BREAKER_STATE_DISABLED)
    _show(_call(access, server, "SetMember", request, as_json).member, describe_breaker, as_json)


@with_access
def timeline(
    access: Access,
    server: Admin,
    seconds: Annotated[float, typer.Option(min=0.001, max=60.0, help="How long to watch.")] = 2.0,
    output: Annotated[Path, typer.Option("-o", "--output", help="Where the trace goes.")] = Path("trace.json"),
) -> None:
    """Watch a server for a while and write a Chrome trace, which Perfetto (https://ui.perfetto.dev) opens."""
    check_folder(output)
    duration = Duration()
    duration.FromNanoseconds(round(seconds * 1e9))
    request = pb.CaptureTimelineRequest(duration=duration)
    trace = _call(access, server, "CaptureTimeline", request, as_json=False).trace_json
    output.write_bytes(trace)
    typer.echo(f"{output}: {len(json.loads(trace)['traceEvents'])} events of {seconds:g} s; open it in https://ui.perfetto.dev")


def _show(found: Shown, describe: Callable[[Shown], str], as_json: bool) -> None:
    if as_json:
        print_json(plain(found))
    else:
        typer.echo(describe(found))


def _call(access: Access, server: str, method: str, request: Message, as_json: bool) -> Any:
    """Return the reply of the operators' service, which listens on an address of its own. Exits with 1 if the call fails."""
    metadata = access.metadata(server)
    options = channel_options(server, DEFAULT_MAX_MESSAGE_BYTES, attempts=1)
    with failures_reported(as_json), access.channel(server, options) as channel:
        try:
            return getattr(EnsembleAdminServiceStub(channel), method)(request, timeout=TIMEOUT_SECONDS, metadata=metadata)
        except grpc.RpcError as failure:
            raise error_from_call(failure, find_proxy(server)) from None


def _read_numbers(option: str, texts: list[str] | None) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for text in texts or []:
        name, _, value = text.partition("=")
        if name in numbers:
            raise typer.BadParameter(f"{name[:60]!r} is given twice.", param_hint=option)
        try:
            numbers[name] = float(value)
        except ValueError:
            raise typer.BadParameter(f"{text[:60]!r} is not {NUMBER}.", param_hint=option) from None
    return numbers
