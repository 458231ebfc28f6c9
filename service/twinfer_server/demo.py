"""The demo: a real server on a free port, real held-out questions, and what each member and the fusion say to them."""

import csv
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from rich.console import Console

from twinfer import Client, Response

SHOWN_ROWS, CALLS_IN_FLIGHT = 4, 32
SHADES = " ░▒▓█"


@dataclass(frozen=True, slots=True)
class HeldOutRow:
    """One held-out row: a picture of a digit, a badly typed number word, and the truth."""

    image: Path
    text: str
    label: str


def read_rows(folder: Path) -> list[HeldOutRow]:
    """Return the held-out rows of an ensemble folder: `heldout/rows.csv` with the columns image, text, label."""
    held_out = folder / "heldout"
    with (held_out / "rows.csv").open(encoding="utf-8", newline="") as file:
        return [HeldOutRow(held_out / row["image"], row["text"], row["label"]) for row in csv.DictReader(file)]


@contextmanager
def running_server(folder: Path, device: str | None = None, arguments: Sequence[str] = ()) -> Iterator[str]:
    """Run `twinfer serve` on a free port in a process of its own; yield its address, and stop it with SIGTERM afterwards."""
    command = [sys.executable, "-c", "from twinfer.cli import main; main()", "serve", str(folder), "--listen", "127.0.0.1:0"]
    command += ["--set", "log_level=warning", *(["--device", device] if device else []), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield _read_address(process)
        finally:
            process.terminate()
    if process.returncode:
        raise RuntimeError(f"the server did not stop cleanly: exit code {process.returncode}")


def _read_address(process: "subprocess.Popen[str]") -> str:
    """Read what the server prints until it is ready; return the address that it listens on."""
    address = ""
    for line in process.stdout or ():
        if line.startswith("listening on "):
            address = line.removeprefix("listening on ").strip()
        if line.strip() == "ready":
            return address
    raise RuntimeError(f"the server ended with exit code {process.wait()} before it was ready")


def demo(folder: Path, device: str | None, as_json: bool) -> None:
    """Serve `folder`, ask all its held-out rows, show a few answers and a summary; with `as_json` one JSON object alone."""
    console, rows = Console(highlight=False, quiet=as_json), read_rows(folder)
    console.print(f"Starting a server for [bold]{folder.name}[/] on a free port ...")
    with running_server(folder, device) as address:
        console.print(f"It listens on {address}. Asking {len(rows)} held-out rows, {CALLS_IN_FLIGHT} at once ...\n")
        with Client(address) as client, ThreadPoolExecutor(CALLS_IN_FLIGHT) as threads:
            began = time.perf_counter()
            inputs = ({"image": row.image.read_bytes(), "text": row.text} for row in rows)
            answers = list(threads.map(lambda each: client.infer(each, member_predictions=True), inputs))
            seconds = time.perf_counter() - began
    said = [_labels(answer) for answer in answers]
    # A row for each set of those who are right, members and fusion; where the fusion is right first.
    kinds = {tuple(label == row.label for label in labels.values()): (row, labels) for row, labels in zip(rows, said, strict=True)}
    for row, labels in sorted(kinds.values(), key=lambda pair: pair[1]["fused"] != pair[0].label)[:SHOWN_ROWS]:
        console.print(_draw(row.image), f"typed [bold]{row.text}[/], in truth {row.label}", sep="\n")
        colored = (f"{name} [{'green' if label == row.label else 'red'}]{label}[/]" for name, label in labels.items())
        console.print("said:", ", ".join(colored), "\n")
    timings = [answer.timings for answer in answers]
    execution = statistics.mode(each.execution for each in timings)
    ratios = [each.overlap_ratio for each in timings if each.overlap_ratio is not None and execution == "streams"]
    right = {name: statistics.mean(each[name] == row.label for each, row in zip(said, rows, strict=True)) for name in said[0]}
    summary = {
        "accuracy": {name: round(value, 4) for name, value in right.items()}, "rows": len(rows), "execution": execution,
        "requests_per_second": round(len(rows) / seconds, 1),
        "p50_ms": round(statistics.median(each.total_ms for each in timings), 2),
        "overlap_ratio": round(statistics.median(ratios), 2) if ratios else None,
    }  # fmt: skip
    console.print("Right: " + ", ".join(f"{name} [bold]{value:.1%}[/]" for name, value in right.items()))
    console.print(f"{summary['requests_per_second']} requests/s; half of them took at most {summary['p50_ms']} ms in the server.")
    how = f'in turn (execution "{execution}"), which is the default on a CPU; on a GPU they run at once'
    if ratios:
        how = f"at once, on streams of their own: overlap ratio {summary['overlap_ratio']}, where 1.0 is no gain"
    console.print(f"The members ran {how}. The server has stopped cleanly.")
    if as_json:
        print(json.dumps(summary))


def _labels(answer: Response) -> dict[str, str]:
    """Return what each member says, and what they say together."""
    said = {name: member.prediction.label for name, member in answer.members.items() if member.prediction}
    return {**said, "fused": answer.label}


def _draw(file: Path) -> str:
    """Draw a picture with letters."""
    image = Image.open(file).convert("L")
    pixels = [SHADES[value * len(SHADES) // 256] * 2 for value in image.tobytes()]
    return "\n".join("".join(pixels[first : first + image.width]) for first in range(0, len(pixels), image.width))
