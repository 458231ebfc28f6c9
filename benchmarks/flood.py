"""What a flood of the largest requests makes a server hold, and what of it the server keeps.

Many calls at once bring a message as large as is allowed each: a text that is too long, which is refused once it is read, or a
picture with as many pixels as are allowed, blown up to that size. The limits are those of `docker-compose.yml`; the memory is the
resident set of the server's process, as `psutil` gives it.

    python -m benchmarks.flood --json benchmarks/results/flood-cpu.json
"""

import time
import zlib
from collections import Counter
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from threading import Event, Thread
from typing import Annotated, Any

import grpc
import psutil
import typer
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.harness import DIGITS, describe_machine, serving, write_result
from benchmarks.load import METHOD
from twinfer import make_request

MESSAGE_BYTES, SIDE = 4 * 2**20, 4000
LIMITS = {"max_message_bytes": MESSAGE_BYTES, "max_image_pixels": SIDE * SIDE, "decode_threads": 4}
ROOM_BYTES = 2**12
"""For what a message holds besides its text or its picture."""
CONNECTIONS = 8
TIMEOUT_SECONDS = 300.0
REST_SECONDS = 15.0
"""After that long without a request the server has given back what it does not keep."""
LOOK_SECONDS = 0.01
HEADER_BYTES = 33
"""Of a PNG, up to where further pieces of it may stand."""
MEBIBYTE = 2**20


def make_picture(size_bytes: int) -> bytes:
    """Make a PNG of so many bytes: white, with a piece in it that nobody reads."""
    written = BytesIO()
    Image.new("RGB", (SIDE, SIDE), "white").save(written, "PNG")
    content = written.getvalue()
    piece = b"twIn" + bytes(size_bytes - len(content) - 12)
    return content[:HEADER_BYTES] + (len(piece) - 4).to_bytes(4) + piece + zlib.crc32(piece).to_bytes(4) + content[HEADER_BYTES:]


FLOODS: dict[str, Mapping[str, Any]] = {
    "texts": {"text": "a" * (MESSAGE_BYTES - ROOM_BYTES)},
    "pictures": {"image": make_picture(MESSAGE_BYTES - ROOM_BYTES)},
}


def flood(inputs: Mapping[str, Any], calls: int) -> dict[str, object]:
    """Have a server flooded; gives its memory before, at the most, at the end and after a rest, and the calls by their end."""
    message = make_request(inputs, policy="best_effort").SerializeToString()
    arguments = [word for name, value in LIMITS.items() for word in ("--set", f"{name}={value}")]
    with serving(DIGITS, frozenset(), arguments) as server:
        process = psutil.Process(server.pid)
        before, peak, is_over = process.memory_info().rss, 0, Event()

        def look() -> None:
            nonlocal peak
            while not is_over.wait(LOOK_SECONDS):
                peak = max(peak, process.memory_info().rss)

        watcher = Thread(target=look)
        watcher.start()
        ends = Counter(_ask_at_once(server.address, message, calls))
        is_over.set()
        watcher.join()
        at_end = process.memory_info().rss
        time.sleep(REST_SECONDS)
        rested = process.memory_info().rss
    memory = {"before": before, "peak": peak, "at_end": at_end, "rested": rested}
    return {"calls": calls, "ends": dict(ends)} | {f"{name}_mib": round(size / MEBIBYTE) for name, size in memory.items()}


def _ask_at_once(address: str, message: bytes, calls: int) -> list[str]:
    options = (("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1))
    channels = [grpc.insecure_channel(address, options) for _ in range(CONNECTIONS)]
    methods: list[Any] = [channel.unary_unary(METHOD) for channel in channels]
    begun = [methods[number % CONNECTIONS].future(message, timeout=TIMEOUT_SECONDS) for number in range(calls)]
    ends = [call.code().name for call in begun]
    for channel in channels:
        channel.close()
    return ends


def show(figures: list[dict[str, Any]], console: Console) -> None:
    """Print a line for each flood."""
    table = Table("flood", "calls", "before, MiB", "at most", "at its end", "after a rest", "calls by their end", box=None)
    for each in figures:
        memory = [str(each[f"{name}_mib"]) for name in ("before", "peak", "at_end", "rested")]
        ends = ", ".join(f"{count} {end}" for end, count in each["ends"].items())
        table.add_row(each["flood"], str(each["calls"]), *memory, ends)
    console.print(table)


def main(
    calls: Annotated[int, typer.Option(min=1, help="How many come at once.")] = 640,
    json_file: Annotated[Path | None, typer.Option("--json", dir_okay=False, help="Write the figures here.")] = None,
) -> None:
    """Flood a server and print what it held."""
    machine = describe_machine()
    figures = [{"flood": name} | flood(inputs, calls) for name, inputs in FLOODS.items()]
    show(figures, Console(width=160))
    if json_file is not None:
        write_result(json_file, "benchmarks.flood", machine, {"limits": LIMITS, "connections": CONNECTIONS}, figures)


if __name__ == "__main__":
    typer.run(main)
