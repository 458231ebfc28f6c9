"""`twinfer fusion` and `twinfer member`: what operators see and change on a running server, over its --admin-listen address."""

from collections.abc import Callable
from typing import Annotated, Any

import typer

from twinfer.cli.admin import Reply, call_admin
from twinfer.cli.describe import describe_fusion
from twinfer.cli.options import DEFAULT_SERVER, DEFAULT_TIMEOUT, Json, Server, Timeout, failures_reported
from twinfer.cli.report import plain, print_json
from twinfer.client import Client
from twinfer.v1 import ensemble_admin_service_pb2 as pb
from twinfer.v1 import ensemble_pb2

TIMEOUT_SECONDS = 60.0

fusion = typer.Typer(help="Change how the members' outputs become one, while the server answers.", no_args_is_help=True)
member = typer.Typer(help="Switch members off and on, while the server answers.", no_args_is_help=True)

Admin = Annotated[str, typer.Option("--server", metavar="HOST:PORT", help="The server's --admin-listen address.")]
NUMBER = "MEMBER=NUMBER"


@fusion.command("show")
def show(
    server: Server = DEFAULT_SERVER,
    timeout: Timeout = DEFAULT_TIMEOUT,  # type: ignore[assignment] # typer sends defaults through the parser too
    as_json: Json = False,
) -> None:
    """Show the fusion that is in use. Callers may ask that, so it goes to the address that `twinfer infer` takes."""
    with failures_reported(as_json), Client(server) as client:
        ensemble = client.describe(timeout=timeout)
    _show(ensemble.fusion, as_json)


@fusion.command("update")
def update(
    server: Admin,
    weight: Annotated[
        list[str] | None,
        typer.Option(
            metavar=NUMBER, help="A member's weight, once for each; members that are left out weigh 0. None: as they are."
        ),
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
    _show(_call(server, as_json, lambda stub: stub.UpdateFusion(request, timeout=TIMEOUT_SECONDS).fusion), as_json)


@fusion.command("rollback")
def rollback(
    server: Admin,
    version: Annotated[int, typer.Option(min=0, help="The version to go back to; 0: the one before.")] = 0,
    as_json: Json = False,
) -> None:
    """Go back to an earlier version of the fusion."""
    request = pb.RollbackFusionRequest(version=version)
    _show(_call(server, as_json, lambda stub: stub.RollbackFusion(request, timeout=TIMEOUT_SECONDS).fusion), as_json)


@member.command("on")
def on(name: str, server: Admin, as_json: Json = False) -> None:
    """Let a member take part in flights again."""
    _switch(name, ensemble_pb2.BREAKER_STATE_CLOSED, server, as_json)


@member.command("off")
def off(name: str, server: Admin, as_json: Json = False) -> None:
    """Keep a member out of flights until it is switched on again."""
    _switch(name, ensemble_pb2.BREAKER_STATE_DISABLED, server, as_json)


def _switch(name: str, switch: ensemble_pb2.BreakerState, server: str, as_json: bool) -> None:
    request = pb.SetMemberRequest(member=name, breaker_state=switch)
    found: ensemble_pb2.Member = _call(server, as_json, lambda stub: stub.SetMember(request, timeout=TIMEOUT_SECONDS).member)
    described = plain(found)
    if as_json:
        print_json(described)
    else:
        typer.echo(
            f"{name} is switched {described['breaker_state'].lower()}{', ' * bool(found.breaker_reason)}{found.breaker_reason}"
        )


def _show(found: ensemble_pb2.Fusion, as_json: bool) -> None:
    if as_json:
        print_json(plain(found))
    else:
        typer.echo(describe_fusion(found))


def _call(server: str, as_json: bool, call: Callable[[Any], Reply]) -> Reply:
    with failures_reported(as_json):
        return call_admin(server, call)


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
