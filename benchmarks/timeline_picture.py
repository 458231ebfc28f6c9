"""Draws the README's timeline: a real server flies the small realistic pair under load, and is watched for two seconds.

python -m benchmarks.timeline_picture docs/timeline.png
"""

import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from benchmarks.encoders import write_pair
from twinfer import Client

CALLERS = 6


def main(png: Annotated[Path, typer.Argument(help="Where the picture goes.")], seconds: float = 2.0) -> None:
    """Serve, ask, watch, draw."""
    image = np.random.default_rng(0).integers(0, 255, (224, 224, 3), dtype=np.uint8)
    done = threading.Event()

    def ask(address: str) -> None:
        with Client(address) as client:
            while not done.is_set():
                client.infer({"image": image, "text": "w1 w2 w3"})

    with tempfile.TemporaryDirectory() as scratch:
        folder = write_pair(Path(scratch) / "pair", "small", max_batch_size=8, execution="streams")
        command = [sys.executable, "-c", "from twinfer.cli import main; main()"]
        serve = [*command, "serve", str(folder), "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--trust-code"]
        with subprocess.Popen([*serve, "--set", "log_level=warning"], stdout=subprocess.PIPE, text=True) as server:
            addresses = {}
            for line in server.stdout or ():
                if line.strip() == "ready":
                    break
                who, _, address = line.strip().partition(" on ")
                addresses[who] = address
            callers = [threading.Thread(target=ask, args=(addresses["listening"],)) for _ in range(CALLERS)]
            for caller in callers:
                caller.start()
            watch = ["timeline", "--server", addresses["operators"], "--seconds", str(seconds)]
            subprocess.run([*command, *watch, "-o", str(Path(scratch) / "trace.json"), "--png", str(png)], check=True)
            done.set()
            for caller in callers:
                caller.join()
            server.terminate()


if __name__ == "__main__":
    typer.run(main)
