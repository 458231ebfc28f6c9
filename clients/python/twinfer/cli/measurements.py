"""What `twinfer bench` shows while it measures, and afterwards."""

import sys
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

import typer

from twinfer.cli.report import print_table

if TYPE_CHECKING:
    from twinfer.load import Measurement, Point, Tally

PERIOD_SECONDS = 0.5
SPEED = ["load", "answers/s", "p50 ms", "p90", "p99", "p99.9", "max"]
COUNTS = ["load", "failed", "degraded", "wrong", "unsent", "flight", "server ms", "client"]


class Progress:
    """A line on a terminal that says how far it is; nothing elsewhere.

    Plain, as anything that draws would take the interpreter from the load for milliseconds, and stand in its percentiles.
    """

    def __init__(self, seconds: float) -> None:
        """Say how long a point takes."""
        self._seconds = seconds
        self._said: tuple[Point, Tally, float] | None = None
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._show, daemon=True)

    def begin(self, point: "Point", tally: "Tally") -> None:
        """Show from now on what comes of this point."""
        self._said = point, tally, time.monotonic()

    def _show(self) -> None:
        while not self._is_over.wait(PERIOD_SECONDS):
            if self._said:
                point, tally, began = self._said
                passed = min(time.monotonic() - began, self._seconds)
                line = f"{point}: {passed:.0f} of {self._seconds:g} s, {tally.answered:,} answered, {tally.failed:,} failed"
                sys.stderr.write(f"\r\x1b[K{line}")
                sys.stderr.flush()

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._is_over.set()
        if self._thread.is_alive():
            self._thread.join()
            sys.stderr.write("\r\x1b[K")


def print_measurements(measurements: Sequence["Measurement"], tolerance: float | None) -> None:
    """Print two tables with a row for each point, and below them what failed and what to beware of."""
    print_table(SPEED, [_speed(one) for one in measurements])
    print_table(COUNTS, [_counts(one) for one in measurements])
    if tolerance is None:
        typer.echo("Answers were not compared.")
    else:
        typer.echo(f"Every answer was compared with the first one to the same row, within {tolerance:g}.")
    for one in measurements:
        for reason, count in one.tally.errors.most_common():
            typer.echo(f"{one.point}: {reason}, {count:,} times, such as: {one.tally.examples[reason]}", err=True)
        for note in one.tally.warnings() + ["interrupted"] * (not one.is_complete):
            typer.secho(f"{one.point}: {note}", fg=typer.colors.YELLOW, err=True)


def _speed(measurement: "Measurement") -> list[str]:
    tally, rates = measurement.tally, measurement.rates
    spread = f" ({min(rates):,.0f} to {max(rates):,.0f})" if len(rates) > 1 else ""
    return [str(measurement.point), f"{tally.rate:,.0f}{spread}", *(f"{value:.2f}" for value in tally.milliseconds().values())]


def _counts(measurement: "Measurement") -> list[str]:
    tally = measurement.tally
    counts = [f"{count:,}" for count in (tally.failed, tally.degraded, tally.wrong, tally.not_sent)]
    server = f"{tally.server_milliseconds()['total']:.2f}" if tally.answered else ""
    return [str(measurement.point), *counts, f"{tally.batch_size():.1f}", server, f"{tally.loop_share:.0%}"]
