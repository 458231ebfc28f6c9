"""What traces and metrics cost: the small pair with neither, with metrics, and with 1 % and all of the calls traced, in turns.

Every server runs in a process of its own on one core, the load on another. Spans go to a real receiver of OTLP over gRPC in a third
process, which discards them; it shares the load's core. The mark: with 1 % traced, at least 97 % of the requests/s of the server
that traces nothing, as the median of the rounds' ratios.

    python -m benchmarks.tracing --result benchmarks/results/tracing-cpu.json
"""

import os
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import grpc
import typer
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc

from benchmarks import harness
from benchmarks.harness import Columns, Cores, Figure, Pinned, Result, Rounds, Seconds
from benchmarks.loop import Served, median_of, run_loop
from benchmarks.peers.pairs import PAIRS
from benchmarks.peers.ways import make_way, prepare

WAY, OFF, MARKED, MARK = "Infer", "off", "1 % traced", 0.97
METRICS = ("--metrics-listen", "127.0.0.1:0")
SETUPS: Mapping[str, tuple[tuple[str, ...], str | None]] = {
    OFF: ((), None),
    "metrics": (METRICS, None),
    MARKED: ((), "0.01"),
    "100 % traced": ((), "1"),
    "metrics, 1 % traced": (METRICS, "0.01"),
}
"""By name: the server's further arguments, and the part of the calls that it traces."""
COLUMNS: Columns = {
    "setup": ("server", ""), "in_flight": ("in flight", "d"), "requests_per_second": ("requests/s", ",.0f"),
    "ratio": ("requests/s / off's", ".3f"), "p50_ms": ("p50 ms", ".3f"), "p99_ms": ("p99 ms", ".2f"),
    "server_cpu_ms": ("server CPU ms a request", ".4f"), "spans": ("spans received", ",d"),
}  # fmt: skip

received: dict[str, int] = {}
"""In the receiver's process: how many spans each server has sent, by its service.name."""


class Sink(trace_service_pb2_grpc.TraceServiceServicer):
    """Counts the spans that it receives."""

    def Export(self, request: pb.ExportTraceServiceRequest, context: object) -> pb.ExportTraceServiceResponse:
        for part in request.resource_spans:
            name = next(pair.value.string_value for pair in part.resource.attributes if pair.key == "service.name")
            received[name] = received.get(name, 0) + sum(len(scope.spans) for scope in part.scope_spans)
        return pb.ExportTraceServiceResponse()


def start_sink() -> str:
    """Begin to receive in this process; return the address."""
    server = grpc.server(ThreadPoolExecutor(1))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Sink(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    received.clear()
    globals()["_server"] = server  # it lives as long as the process
    return f"http://127.0.0.1:{port}"


def read_sink() -> dict[str, int]:
    """Return what has been received so far."""
    return dict(received)


@contextmanager
def serving(name: str, folder: Path, cores: Cores, sink: str) -> Iterator[tuple[str, int]]:
    """Serve the pair as the setup says; yield the address and the process id."""
    arguments, part = SETUPS[name]
    traces = {
        "OTEL_SERVICE_NAME": name, "OTEL_EXPORTER_OTLP_ENDPOINT": sink, "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": part or "0",
    }  # fmt: skip
    before = dict(os.environ)
    os.environ.update(traces if part is not None else {"OTEL_SDK_DISABLED": "true"})
    with harness.serving(folder, cores.server, ["--trust-code", *arguments]) as served:
        os.environ.clear()
        os.environ.update(before)
        yield served


def measure(
    levels: list[int], rounds: int, seconds: float, cores: Cores, loader: ProcessPoolExecutor, receiver: ProcessPoolExecutor
) -> tuple[dict[tuple[str, int], list[Served]], dict[str, int]]:
    """Run every setup at every level, `rounds` times in turn; return the runs, and the spans that came."""
    runs: dict[tuple[str, int], list[Served]] = {}
    make = partial(make_way, WAY, "small")
    loader.submit(prepare, "small", [WAY]).result()
    with tempfile.TemporaryDirectory() as root, ExitStack() as stack:
        folder = PAIRS["small"].write(Path(root) / "small")
        sink = receiver.submit(start_sink).result()
        servers = {name: stack.enter_context(serving(name, folder, cores, sink)) for name in SETUPS}
        for _ in range(rounds):
            for level in levels:
                for name, (address, pid) in servers.items():
                    runs.setdefault((name, level), []).append(loader.submit(run_loop, make, address, pid, level, seconds).result())
    return runs, receiver.submit(read_sink).result()


def main(
    result: Result = None,
    seconds: Seconds = 2.0,
    rounds: Rounds = 7,
    concurrency: Annotated[str, typer.Option(help="Requests in flight, by comma.")] = "1,32",
    pinned: Pinned = None,
) -> None:
    """Measure what traces and metrics cost."""
    levels = [int(level) for level in concurrency.split(",")]
    machine, cores = harness.describe_machine(), Cores.choose(pinned)
    with harness.worker(cores.load) as loader, harness.worker(cores.load) as receiver:
        runs, spans = measure(levels, rounds, seconds, cores, loader, receiver)
    figures: list[Figure] = []
    for (name, level), found in runs.items():
        rates = [run.requests_per_second for run in found]
        ratio = harness.paired(rates, [run.requests_per_second for run in runs[OFF, level]])
        figures.append({
            "setup": name, "in_flight": level, "ratio": round(ratio, 4), "spans": spans.get(name, 0), **asdict(median_of(found)),
        })  # fmt: skip
    setup: dict[str, object] = {"pair": "small", "rounds": rounds, "seconds": seconds, "cores": str(cores), "mark": MARK}
    harness.report("benchmarks.tracing", machine, setup, figures, [harness.tabulate(figures, COLUMNS)], result)
    least = min(float(str(figure["ratio"])) for figure in figures if figure["setup"] == MARKED)
    print(f"{MARKED}: at least {least:.3f} of the requests/s; the mark is {MARK}: {'reached' if least >= MARK else 'missed'}")


if __name__ == "__main__":
    typer.run(main)
