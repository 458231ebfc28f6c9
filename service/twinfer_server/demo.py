"""The demo: a real server on a free port, real held-out questions, and what each member and the fusion say to them."""

import asyncio
import csv
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.panel import Panel
from rich.progress import track
from rich.table import Table
from rich.text import Text

from twinfer import AsyncClient, Response

SHOWN_ROWS = 4
CALLS_IN_FLIGHT = 32
SHADES = " ░▒▓█"


@dataclass(frozen=True, slots=True)
class HeldOutRow:
    """One held-out row: a picture of a digit, a badly typed number word, and the truth."""

    image: Path
    text: str
    label: str


def read_rows(folder: Path) -> list[HeldOutRow]:
    """Read the held-out rows of an ensemble folder: `heldout/rows.csv` with the columns image, text, label."""
    held_out = folder / "heldout"
    with (held_out / "rows.csv").open(encoding="utf-8", newline="") as file:
        return [HeldOutRow(held_out / row["image"], row["text"], row["label"]) for row in csv.DictReader(file)]


@contextmanager
def running_server(folder: Path, device: str | None = None, arguments: Sequence[str] = ()) -> Iterator[str]:
    """Run `twinfer serve` on a free port in a process of its own; give its address, and stop it with SIGTERM afterwards."""
    command = [sys.executable, "-c", "from twinfer.cli import main; main()", "serve", str(folder), "--listen", "127.0.0.1:0"]
    command += ["--set", "log_level=warning", *(["--device", device] if device else []), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield read_address(process)
        finally:
            process.terminate()
    if process.returncode:
        raise RuntimeError(f"the server did not stop cleanly: exit code {process.returncode}")


def read_address(process: "subprocess.Popen[str]") -> str:
    """Read what the server prints until it is ready; give the address that it listens on."""
    address = ""
    for line in process.stdout or ():
        if line.startswith("listening on "):
            address = line.removeprefix("listening on ").strip()
        if line.strip() == "ready":
            return address
    raise RuntimeError(f"the server ended with exit code {process.wait()} before it was ready")


def demo(folder: Path, device: str | None, as_json: bool) -> None:
    """Serve `folder`, ask all its held-out rows, show a few answers and a summary; with `as_json` one JSON object alone."""
    console = Console(highlight=False, quiet=as_json)
    rows = read_rows(folder)
    console.print(f"Starting a server for [bold]{folder.name}[/] on a free port ...")
    with running_server(folder, device) as address:
        console.print(f"It listens on {address} and is ready.\n")
        answers, latencies, seconds = asyncio.run(_ask_all(address, rows, console))
    for row, answer in _pick(rows, answers):
        console.print(_show(row, answer))
    summary = _summarise(rows, answers, latencies, seconds)
    if as_json:
        sys.stdout.write(json.dumps(summary) + "\n")
        return
    _show_summary(console, summary)


async def _ask_all(
    address: str, rows: Sequence[HeldOutRow], console: Console
) -> tuple[list[Response], list[float], float]:  # fmt: skip
    """Ask every row, a bounded number at once; give the answers in order, each call's seconds, and the seconds for all."""
    room = asyncio.Semaphore(CALLS_IN_FLIGHT)
    latencies: list[float] = []

    async def ask(client: AsyncClient, row: HeldOutRow) -> Response:
        async with room:
            began = time.perf_counter()
            answer = await client.infer({"image": row.image.read_bytes(), "text": row.text}, member_predictions=True)
            latencies.append(time.perf_counter() - began)
            return answer

    async with AsyncClient(address) as client:
        await client.infer({"image": rows[0].image.read_bytes(), "text": rows[0].text})
        began = time.perf_counter()
        calls = [asyncio.create_task(ask(client, row)) for row in rows]
        for call in track(calls, f"Asking {len(rows)} held-out rows", console=console, transient=True):
            await call
        seconds = time.perf_counter() - began
    return [call.result() for call in calls], latencies, seconds


def _pick(rows: Sequence[HeldOutRow], answers: Sequence[Response]) -> list[tuple[HeldOutRow, Response]]:
    """Pick rows that show what fusing does: each member right where the other is wrong, and both in doubt, first come."""
    telling: dict[tuple[bool, ...], tuple[HeldOutRow, Response]] = {}
    for row, answer in zip(rows, answers, strict=True):
        verdicts = [*(says == row.label for says in _labels(answer).values()), answer.label == row.label]
        telling.setdefault(tuple(verdicts), (row, answer))
    # The rows where the fusion outdoes a member come first; a row where it fails comes too.
    return sorted(telling.values(), key=lambda pair: pair[1].label != pair[0].label)[:SHOWN_ROWS]


def _labels(answer: Response) -> Mapping[str, str]:
    return {name: member.prediction.label if member.prediction else "-" for name, member in answer.members.items()}


def _show(row: HeldOutRow, answer: Response) -> Table:
    pixels = np.asarray(Image.open(row.image).convert("L")).tolist()
    drawing = "\n".join("".join(SHADES[value * len(SHADES) // 256] * 2 for value in line) for line in pixels)
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_row("typed", f"[bold]{row.text}[/]")
    for name, member in answer.members.items():
        if member.prediction:
            table.add_row(f"{name} says", _verdict(member.prediction.label, member.prediction.probability, row.label))
    table.add_row("fused", _verdict(answer.label, answer.probability, row.label))
    table.add_row("truth", row.label)
    table.add_row("disagreement", "-" if answer.disagreement is None else f"{answer.disagreement:.2f}")
    timings = answer.timings
    table.add_row(
        "time",
        f"decode {timings.decode_ms:.2f} ms, queue {timings.queue_ms:.2f} ms, device {timings.device_ms:.2f} ms, "
        f"total {timings.total_ms:.2f} ms; shared a flight of {timings.batch_size}",
    )
    side_by_side = Table.grid(padding=(0, 2))
    side_by_side.add_row(Panel.fit(Text(drawing), padding=0), table)
    return side_by_side


def _verdict(label: str, probability: float, truth: str) -> str:
    color = "green" if label == truth else "red"
    return f"[{color}]{label}[/] {probability:.3f}"


def _summarise(
    rows: Sequence[HeldOutRow], answers: Sequence[Response], latencies: Sequence[float], seconds: float
) -> dict[str, object]:  # fmt: skip
    said = [{**_labels(answer), "fused": answer.label} for answer in answers]
    accuracy = {
        name: statistics.mean(labels[name] == row.label for labels, row in zip(said, rows, strict=True)) for name in said[0]
    }
    ratios = [answer.timings.overlap_ratio for answer in answers if answer.timings.overlap_ratio is not None]
    return {
        "accuracy": {name: round(value, 4) for name, value in accuracy.items()},
        "rows": len(rows),
        "requests_per_second": round(len(rows) / seconds, 1),
        "p50_ms": round(statistics.median(latencies) * 1e3, 2),
        "overlap_ratio": round(statistics.median(ratios), 2) if ratios else None,
    }


def _show_summary(console: Console, summary: Mapping[str, object]) -> None:
    accuracy = summary["accuracy"]
    assert isinstance(accuracy, dict)
    table = Table("", "accuracy", box=None, header_style="dim")
    for name, value in accuracy.items():
        table.add_row(f"[bold]{name}[/]" if name == "fused" else name, f"{value:.1%}")
    console.print(table)
    console.print(
        f"\n{summary['rows']} held-out rows, {CALLS_IN_FLIGHT} calls at once: "
        f"{summary['requests_per_second']} requests/s, p50 {summary['p50_ms']} ms, "
        f"overlap ratio {summary['overlap_ratio']}\n"
        "(1.0: as if one member ran after the other; below: cold caches, or other work on the same cores, held them up)."
    )
    console.print("The server has stopped cleanly.")
