"""`twinfer timeline`: watches a server and writes what happened as a trace."""

import importlib
import json
from pathlib import Path
from typing import Annotated

import typer
from google.protobuf.duration_pb2 import Duration

from twinfer.cli.admin import call_admin
from twinfer.cli.extras import needing
from twinfer.cli.options import check_folders, failures_reported
from twinfer.cli.server import INSTALL, MODULES
from twinfer.v1 import ensemble_admin_service_pb2

GRACE_SECONDS = 10.0


def timeline(
    server: Annotated[str, typer.Option("--server", metavar="HOST:PORT", help="The server's --admin-listen address.")],
    seconds: Annotated[float, typer.Option(min=0.001, max=60.0, help="How long to watch.")] = 2.0,
    output: Annotated[Path, typer.Option("-o", "--output", help="Where the trace goes.")] = Path("trace.json"),
    png: Annotated[Path | None, typer.Option(help="Where a picture of the trace goes (needs the `server` extra).")] = None,
) -> None:
    """Watch a server for a while and write a Chrome trace, which ui.perfetto.dev opens."""
    check_folders(output, png)
    with failures_reported(as_json=False):
        trace = _capture(server, seconds)
    output.write_bytes(trace)
    typer.echo(f"{output}: {len(json.loads(trace)['traceEvents'])} events of {seconds:g} s; open it in https://ui.perfetto.dev")
    if png is not None:
        with needing(MODULES, "--png", INSTALL, "the server"):
            picture = importlib.import_module("twinfer_server.picture")
        try:
            picture.draw_timeline(json.loads(trace), png)
        except ValueError as error:
            typer.echo(f"{png}: {error}", err=True)
            raise typer.Exit(1) from None
        typer.echo(f"{png}: the busiest stretch of it as a picture")


def _capture(server: str, seconds: float) -> bytes:
    whole = int(seconds)
    request = ensemble_admin_service_pb2.CaptureTimelineRequest(
        duration=Duration(seconds=whole, nanos=round((seconds - whole) * 1e9))
    )
    reply = call_admin(server, lambda stub: stub.CaptureTimeline(request, timeout=seconds + GRACE_SECONDS))
    trace: bytes = reply.trace_json
    return trace
