"""`twinfer bench`: loads a server, and says what it answers, how fast, and what fails."""

import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from twinfer.cli.access import Access, with_access
from twinfer.cli.extras import needing
from twinfer.cli.inputs import Image, Inputs, Text, read_inputs
from twinfer.cli.options import DEFAULT_SERVER, DEFAULT_TIMEOUT, Timeout, check_folder, failures_reported
from twinfer.cli.report import print_table
from twinfer.requests import make_request
from twinfer.v1 import ensemble_pb2, ensemble_service_pb2

RANDOM_ROWS = 64
CONCURRENCY = "1,8,32"
INTERRUPTED = 130


@with_access
def bench(
    access: Access,
    address: Annotated[str, typer.Argument(metavar="[HOST:PORT]", help="Where the server listens.")] = DEFAULT_SERVER,
    image: Image = None,
    text: Text = None,
    inputs: Inputs = None,
    data: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Rows to send in turn: a CSV file, or a folder with a rows.csv.")
    ] = None,
    concurrency: Annotated[
        str | None, typer.Option(metavar="N,...", help=f"Closed loop: calls that are always in flight. Default: {CONCURRENCY}.")
    ] = None,
    rate: Annotated[
        str | None, typer.Option(metavar="N,...", help="Open loop: requests per second, in calls at random times (Poisson).")
    ] = None,
    span: Annotated[float, typer.Option("--seconds", min=0.001, help="How long each point is measured.")] = 10.0,
    warm_up: Annotated[float, typer.Option(min=0.0, help="Seconds of the same load beforehand, not counted.")] = 1.0,
    batch: Annotated[int, typer.Option(min=1, help="Requests per call; several are asked by BatchInfer.")] = 1,
    max_in_flight: Annotated[
        int, typer.Option(min=1, help="Open loop: an arrival that finds so many calls in flight is not sent, and counted.")
    ] = 512,
    timeout: Timeout = DEFAULT_TIMEOUT,
    image_size: Annotated[int, typer.Option(min=1, help="Width and height of random images.")] = 224,
    seed: Annotated[int, typer.Option(help="Of random rows and arrivals.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Where the figures go, as JSON.")] = None,
    fail_on_errors: Annotated[
        bool, typer.Option(help="Whether to exit with 1 if a call failed or an arrival was not sent.")
    ] = True,
) -> None:
    """Load a server and measure it (needs the `bench` extra).

    What is sent is the inputs that are given, the rows of --data, or random rows. Latency counts from when a call was to begin.
    """
    check_folder(json_file)
    with needing("bench", "twinfer bench"):
        load = importlib.import_module("twinfer.load")
    points = _read_points(load, concurrency, rate)
    values = read_inputs(image, text, inputs)
    with failures_reported(as_json=False), access.client(address, timeout=timeout) as client:
        ensemble = client.describe()
        requests, origin = _make_requests(load, ensemble, values, data, image_size, seed)
        client.infer(requests[0])  # what fails without any load is said at once
    wanted = load.Load(address, requests, span, warm_up, timeout, batch, max_in_flight, seed, access.settings)
    title = f"{ensemble.name} version {ensemble.version} at {address}: {wanted.method}, {origin}"
    typer.echo(title)
    measured, is_interrupted = _measure(load, wanted, points)
    if json_file is not None:
        json_file.write_text(json.dumps(load.figures(wanted, title, measured), indent=2) + "\n", encoding="utf-8")
    has_failed = fail_on_errors and not all(one.tally.is_clean for one in measured)
    raise typer.Exit(INTERRUPTED if is_interrupted else int(has_failed))


def _read_points(load: Any, concurrency: str | None, rate: str | None) -> list[Any]:
    in_flight = CONCURRENCY if concurrency is None and rate is None else concurrency
    points = [load.Point("concurrency", number) for number in _read_numbers("--concurrency", in_flight, int)]
    return points + [load.Point("rate", number) for number in _read_numbers("--rate", rate, float)]


def _read_numbers(option: str, text: str | None, kind: type[int] | type[float]) -> list[float]:
    """Return the numbers of 1,8,32. Raises typer.BadParameter."""
    try:
        numbers = [kind(number) for number in text.split(",")] if text is not None else []
    except ValueError:
        numbers = [0]
    if not all(0 < number < float("inf") for number in numbers):
        what = "whole numbers" if kind is int else "numbers"
        raise typer.BadParameter(f"{text!r}; allowed: {what} above 0 with commas between.", param_hint=option)
    return numbers


def _make_requests(
    load: Any, ensemble: ensemble_pb2.Ensemble, values: dict[str, Any], data: Path | None, image_size: int, seed: int
) -> tuple[list[ensemble_service_pb2.InferRequest], str]:
    """Return the requests, and where they are from. Raises typer.BadParameter."""
    if values and data is not None:
        raise typer.BadParameter("inputs are given, and --data too; allowed: one of them.")
    try:
        if values:
            rows, origin = [values], "one request"
        elif data is not None:
            rows = load.read_rows(data, ensemble)
            origin = f"{len(rows):,} rows of {data}"
        else:
            rows = load.make_rows(ensemble, RANDOM_ROWS, image_size, seed)
            images = any(spec.kind == "image" for spec in ensemble.inputs)
            origin = f"{len(rows)} random rows{f', images of {image_size} x {image_size}' * images}"
        return [make_request(row) for row in rows], origin
    except (OSError, TypeError, ValueError) as error:
        raise typer.BadParameter(str(error)) from None


def _measure(load: Any, wanted: Any, points: Sequence[Any]) -> tuple[list[Any], bool]:
    """Return a measurement of each point, as far as that was not interrupted, and whether it was. Prints them, too."""
    measured: list[Any] = []
    is_interrupted = False
    try:
        for point in points:
            if sys.stderr.isatty():  # once a point: what draws meanwhile takes the interpreter from the load
                typer.echo(f"measuring {point} ...", err=True)
            measured.append(load.Measurement(point))
            load.measure(wanted, measured[-1])
    except KeyboardInterrupt:
        is_interrupted = True
    _print(measured)
    return measured, is_interrupted


def _print(measured: Sequence[Any]) -> None:
    """Print two tables with a line for each point, and below them what failed and what to beware of."""
    speed, counts = [], []
    for one in measured:
        tally, point = one.tally, str(one.point)
        speed.append([point, f"{tally.rate:,.0f}", *(f"{value:.2f}" for value in tally.milliseconds().values())])
        numbers = [f"{count:,}" for count in (tally.failed, tally.degraded, tally.not_sent)]
        server = f"{tally.server_milliseconds()['total']:.2f}" if tally.answered else ""
        counts.append([point, *numbers, f"{tally.batch_size:.1f}", server, f"{tally.loop_share:.0%}"])
    print_table(["load", "answers/s", "p50 ms", "p90", "p99", "p99.9", "max"], speed)
    print_table(["load", "failed", "degraded", "unsent", "batch", "server ms", "client"], counts)
    for one in measured:
        for reason, count in one.tally.errors.most_common():
            typer.echo(f"{one.point}: {reason}, {count:,} times, such as: {one.tally.examples[reason]}", err=True)
        for note in one.tally.warnings() + ["interrupted"] * (not one.is_complete):
            typer.secho(f"{one.point}: {note}", fg=typer.colors.YELLOW, err=True)
