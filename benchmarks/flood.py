"""What a flood of the largest requests makes a server hold, and what of it the server keeps.

Many calls at once bring a message as large as is allowed each: a text that is too long, which is refused once it is read, or a
picture with as many pixels as are allowed, blown up to that size. The limits are those of `docker-compose.yml`; the memory is the
resident set of the server's process, as `psutil` gives it.

    python -m benchmarks.flood --result benchmarks/results/flood-cpu.json
"""

import time
import zlib
from collections import Counter
from collections.abc import Mapping
from io import BytesIO
from threading import Event, Thread
from typing import Annotated, Any

import grpc
import psutil
import typer
from PIL import Image

from benchmarks import harness
from benchmarks.bare import METHOD
from benchmarks.harness import DIGITS, Columns, Figure, Result
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
COLUMNS: Columns = {
    "flood": ("flood", ""), "calls": ("calls", "d"), "before_mib": ("before, MiB", "d"), "peak_mib": ("at most", "d"),
    "at_end_mib": ("at its end", "d"), "rested_mib": ("after a rest", "d"), "ends": ("calls by their end", ""),
}  # fmt: skip


def make_picture(size_bytes: int) -> bytes:
    """Make a PNG of so many bytes: white, with a piece in it that no reader looks at."""
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
    with harness.serving(DIGITS, frozenset(), arguments) as (address, pid):
        process = psutil.Process(pid)
        before, peak, is_over = process.memory_info().rss, 0, Event()

        def look() -> None:
            nonlocal peak
            while not is_over.wait(LOOK_SECONDS):
                peak = max(peak, process.memory_info().rss)

        watcher = Thread(target=look)
        watcher.start()
        ends = Counter(_ask_at_once(address, message, calls))
        is_over.set()
        watcher.join()
        at_end = process.memory_info().rss
        time.sleep(REST_SECONDS)
        rested = process.memory_info().rss
    memory = {"before": before, "peak": peak, "at_end": at_end, "rested": rested}
    said = ", ".join(f"{count} {end}" for end, count in ends.items())
    return {"calls": calls, "ends": said} | {f"{name}_mib": round(size / MEBIBYTE) for name, size in memory.items()}


def _ask_at_once(address: str, message: bytes, calls: int) -> list[str]:
    options = (("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1))
    channels = [grpc.insecure_channel(address, options) for _ in range(CONNECTIONS)]
    methods: list[Any] = [channel.unary_unary(METHOD) for channel in channels]
    begun = [methods[number % CONNECTIONS].future(message, timeout=TIMEOUT_SECONDS) for number in range(calls)]
    ends = [call.code().name for call in begun]
    for channel in channels:
        channel.close()
    return ends


def main(
    calls: Annotated[int, typer.Option(min=1, help="How many come at once.")] = 640,
    result: Result = None,
) -> None:
    """Flood a server and print what it held."""
    machine = harness.describe_machine()
    figures: list[Figure] = [{"flood": name} | flood(inputs, calls) for name, inputs in FLOODS.items()]
    table = harness.tabulate(figures, COLUMNS)
    harness.report("benchmarks.flood", machine, {"limits": LIMITS, "connections": CONNECTIONS}, figures, [table], result)


if __name__ == "__main__":
    typer.run(main)
