"""What serving costs: a closed loop of calls against the digits server, beside the same two models called in-process.

make bench ARGS="--seconds 2 --rounds 5 --concurrency 1,8,32,64 --pin"
"""

import json
import statistics
from collections.abc import Sequence
from functools import cache
from typing import Annotated

import grpc
import typer

from benchmarks import harness
from benchmarks.harness import DIGITS, Columns, Cores, Figure, Pinned, Result, Rounds, Seconds
from benchmarks.loop import TIMEOUT_SECONDS, Served, Unary, median_of, run_loop
from benchmarks.reference import InProcess, run_reference
from twinfer import Response, make_request
from twinfer.v1 import ensemble_service_pb2 as pb
from twinfer_server.demo import read_rows
from twinfer_server.spec import read_spec

COLUMNS: Columns = {
    "in_flight": ("in flight", "d"), "requests_per_second": ("requests/s", ",.0f"), "p50_ms": ("p50 ms", ".2f"),
    "p99_ms": ("p99 ms", ".2f"), "server_cpu_ms": ("server CPU ms a request", ".3f"), "batch_size": ("requests a batch", ".1f"),
    "in_process_per_second": ("in-process, requests/s", ",.0f"), "ratio": ("ratio", ".3f"),
    "models_per_second": ("models alone, requests/s", ",.0f"), "ratio_to_models": ("ratio", ".3f"),
}  # fmt: skip


class Digits(Unary):
    """Calls of `Infer` with the held-out rows, each with its image and its text."""

    def __init__(self) -> None:
        """Serialize all messages."""
        self.rows = read_rows(DIGITS)
        self.messages = [make_request({"image": row.image, "text": row.text}).SerializeToString() for row in self.rows]
        self.labels: list[str] = []
        """What each row's answer was when it was asked by itself."""

    def check(self, number: int, reply: bytes) -> int | None:
        response = Response.from_message(pb.InferResponse.FromString(reply))
        if response.degraded or response.label != self.labels[number]:
            raise RuntimeError(
                f"row {number}: found {response.label!r}, degraded {response.degraded}; right: {self.labels[number]!r}"
            )
        return response.timings.batch_size


@cache
def make_digits() -> Digits:
    """Write the messages, once a process."""
    return Digits()


def ask_each(address: str) -> float:
    """Ask every row by itself, keep what it was answered, and return the accuracy."""
    digits = make_digits()
    with grpc.insecure_channel(address) as channel:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(digits.method)
        replies = [call(message, timeout=TIMEOUT_SECONDS) for message in digits.messages]
    digits.labels = [Response.from_message(pb.InferResponse.FromString(reply)).label for reply in replies]
    return statistics.mean(label == row.label for label, row in zip(digits.labels, digits.rows, strict=True))


def summarise(in_flight: int, served: Sequence[Served], in_process: Sequence[InProcess]) -> Figure:
    """Return the medians over the runs of one level; ratios are of each run to the in-process one beside it."""
    median = median_of(served)
    pairs = list(zip(served, in_process, strict=True))
    return {
        "in_flight": in_flight,
        "requests_per_second": round(median.requests_per_second, 1),
        "p50_ms": round(median.p50_ms, 3),
        "p99_ms": round(median.p99_ms, 3),
        "server_cpu_ms": round(median.server_cpu_ms, 4),
        "batch_size": None if median.batch_size is None else round(median.batch_size, 1),
        "in_process_per_second": round(statistics.median(each.rows_per_second for each in in_process), 1),
        "ratio": round(statistics.median(one.requests_per_second / two.rows_per_second for one, two in pairs), 4),
        "models_per_second": round(statistics.median(each.model_rows_per_second for each in in_process), 1),
        "ratio_to_models": round(statistics.median(one.requests_per_second / two.model_rows_per_second for one, two in pairs), 4),
    }


def main(
    result: Result = None,
    seconds: Seconds = 2.0,
    rounds: Rounds = 5,
    concurrency: Annotated[str, typer.Option(help="Calls in flight, by comma.")] = "1,8,32,64",
    pinned: Pinned = None,
) -> None:
    """Measure the digits server and the same models in-process."""
    levels = [int(level) for level in concurrency.split(",")]
    machine, cores = harness.describe_machine(), Cores.choose(pinned)
    rows, max_batch_size = read_rows(DIGITS), read_spec(DIGITS).batching.max_batch_size
    stated = json.loads((DIGITS / "accuracies.json").read_text(encoding="utf-8"))["fused"]
    served: dict[int, list[Served]] = {level: [] for level in levels}
    in_process: dict[int, list[InProcess]] = {level: [] for level in levels}
    with (
        harness.worker(cores.load) as loader,
        harness.worker(cores.server) as referee,
        harness.serving(DIGITS, cores.server) as (address, pid),
    ):
        harness.pin(cores.load)
        accuracy = loader.submit(ask_each, address).result()
        if round(accuracy, 4) != stated:
            raise RuntimeError(f"the server's accuracy is {accuracy:.4f}; the folder states {stated}")
        for _ in range(rounds):  # all levels in turn, so that a slow spell hits them alike
            for level in levels:
                served[level].append(loader.submit(run_loop, make_digits, address, pid, level, seconds).result())
                batch = min(level, max_batch_size)
                in_process[level].append(referee.submit(run_reference, DIGITS, rows, batch, min(seconds, 1.0)).result())
    figures = [summarise(level, served[level], in_process[level]) for level in levels]
    table = harness.tabulate(figures, COLUMNS)
    # In process: plain torch on one thread, batches as large as the calls in flight, at most as the server's are.
    setup: dict[str, object] = {"rounds": rounds, "seconds": seconds, "cores": str(cores), "accuracy": round(accuracy, 4)}
    harness.report("benchmarks.serving", machine, setup, figures, [table], result)


if __name__ == "__main__":
    typer.run(main)
