"""`twinfer bench`: loads a server, and says what it answers, how fast, and what fails."""

import importlib
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from twinfer.cli.extras import needing
from twinfer.cli.inputs import Image, Inputs, Text, read_inputs
from twinfer.cli.measurements import Progress, print_measurements
from twinfer.cli.options import DEFAULT_SERVER, DEFAULT_TIMEOUT, Timeout, check_folders, failures_reported
from twinfer.client import Client
from twinfer.requests import make_request
from twinfer.v1 import ensemble_pb2, ensemble_service_pb2

INSTALL = "pip install 'twinfer[bench]'"
MODULES = ("hdrh", "matplotlib", "numpy", "PIL")
"""What the `bench` extra brings, by the names that are imported, and the load cannot do without."""
SAMPLES = 64
CONCURRENCY = "1,8,32"
SUFFIXES = (".png", ".svg")
INTERRUPTED = 130


def bench(
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
        str | None, typer.Option(metavar="N,...", help="Open loop: rows per second, in calls that arrive at random (Poisson).")
    ] = None,
    span: Annotated[float, typer.Option("--seconds", min=0.001, help="How long each point is measured.")] = 10.0,
    warm_up: Annotated[float, typer.Option(min=0.0, help="Seconds of the same load beforehand, not counted.")] = 1.0,
    repeats: Annotated[int, typer.Option(min=1, help="How often the points are measured, in turn.")] = 1,
    stream: Annotated[bool, typer.Option("--stream", help="Ask by InferStream instead of Infer.")] = False,
    batch: Annotated[int, typer.Option(min=1, help="Rows per call; several are asked by BatchInfer.")] = 1,
    max_in_flight: Annotated[
        int, typer.Option(min=1, help="Open loop: an arrival that finds so many calls in flight is not sent, and counted.")
    ] = 512,
    timeout: Timeout = DEFAULT_TIMEOUT,  # type: ignore[assignment] # typer sends defaults through the parser too
    check: Annotated[bool, typer.Option(help="Whether every answer must equal the first one to the same row.")] = True,
    tolerance: Annotated[float, typer.Option(min=0.0, help="By how much numbers of equal answers may differ.")] = 0.01,
    image_size: Annotated[int, typer.Option(min=1, help="Width and height of random images.")] = 224,
    seed: Annotated[int, typer.Option(help="Of random rows and arrivals.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Where the figures go, as JSON.")] = None,
    picture: Annotated[Path | None, typer.Option(metavar="FILE", help="Where a picture goes, .png or .svg.")] = None,
    fail_on_errors: Annotated[
        bool, typer.Option(help="Whether to exit with 1 if a call failed, an answer was wrong or an arrival was not sent.")
    ] = True,
) -> None:
    """Load a server and measure it (needs the `bench` extra).

    The rows are those given, those of --data, or random ones. Latency counts from when a call was to begin.
    """
    _check_files(json_file, picture)
    if stream and batch > 1:
        raise typer.BadParameter("a stream takes one row at a time; give --stream or --batch, not both.")
    with needing(MODULES, "twinfer bench", INSTALL):
        for name in MODULES:
            importlib.import_module(name)
    load = importlib.import_module("twinfer.load")
    in_flight = CONCURRENCY if concurrency is None and rate is None else concurrency
    points = [load.Point("concurrency", number) for number in _read_numbers("--concurrency", in_flight, int)]
    points += [load.Point("rate", number) for number in _read_numbers("--rate", rate, float)]
    values = read_inputs(image, text, inputs)
    with failures_reported(as_json=False), Client(address, timeout=timeout) as client:
        ensemble = client.describe()
        requests, origin = _make_requests(load, ensemble, values, data, image_size, seed)
        client.infer(requests[0])  # what fails without any load is said at once
    agreement = load.Agreement(tolerance) if check else None
    execution = load.Load(address, requests, span, warm_up, timeout, batch, stream, max_in_flight, seed, agreement)
    title = f"{ensemble.name} version {ensemble.version} at {address}: {execution.method}, {origin}"
    typer.echo(title)
    measurements: list[Any] = []
    is_interrupted = False
    with Progress(warm_up + span) as progress:
        try:
            load.run(execution, points, repeats, measurements, progress.begin)
        except KeyboardInterrupt:
            is_interrupted = True
    measured = [one for one in measurements if one.rates]
    print_measurements(measured, tolerance if check else None)
    if json_file is not None:
        json_file.write_text(json.dumps(load.describe(execution, title, measured), indent=2) + "\n", encoding="utf-8")
    if picture is not None and any(one.tally.answered for one in measured):
        load.draw(measured, title, picture)
    if is_interrupted:
        raise typer.Exit(INTERRUPTED)
    if fail_on_errors and not all(one.tally.is_clean for one in measured):
        raise typer.Exit(1)


def _check_files(json_file: Path | None, picture: Path | None) -> None:
    """Say before the measuring, not after it, what cannot be written. Raises typer.BadParameter."""
    check_folders(json_file, picture)
    if picture is not None and picture.suffix not in SUFFIXES:
        raise typer.BadParameter(f"{picture} ends in {picture.suffix!r}; allowed: {', '.join(SUFFIXES)}.", param_hint="--picture")


def _read_numbers(option: str, text: str | None, kind: type[int] | type[float]) -> list[float]:
    """Read 1,8,32. Raises typer.BadParameter."""
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
    """Give the requests, and say where they are from. Raises typer.BadParameter."""
    if values and data is not None:
        raise typer.BadParameter("inputs are given, and --data too; allowed: one of them.")
    try:
        if values:
            rows, origin = [values], "one row"
        elif data is not None:
            rows = load.read_rows(data, ensemble)
            origin = f"{len(rows):,} rows of {data}"
        else:
            rows = load.make_samples(ensemble, SAMPLES, image_size, seed)
            images = any(spec.kind == "image" for spec in ensemble.inputs)
            origin = f"{len(rows)} random rows{f', images of {image_size} x {image_size}' * images}"
        return [make_request(row) for row in rows], origin
    except (OSError, ValueError) as error:
        raise typer.BadParameter(str(error)) from None
