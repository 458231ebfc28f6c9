"""The way of one call through the service: how many of its files a reader has to open."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import twinfer_server
from tests.servers import DIGITS, running
from twinfer import Client
from twinfer_server.demo import read_rows

SERVICE = str(Path(twinfer_server.__file__).parent)
MOST_FILES = 40


class Recording:
    """The service's files whose functions are called, by any thread, while it `is_on`."""

    def __init__(self) -> None:
        self.is_on = False
        self.files: set[str] = set()

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        if self.is_on and event == "call" and frame.f_code.co_filename.startswith(SERVICE):
            self.files.add(frame.f_code.co_filename.removeprefix(SERVICE + "/"))


@contextmanager
def recorded() -> Iterator[Recording]:
    recording = Recording()
    before = sys.getprofile()
    threading.setprofile(recording)
    try:
        yield recording
    finally:
        threading.setprofile(None)
        sys.setprofile(before)


def test_a_lone_infer_with_an_image_runs_code_of_few_files() -> None:
    row = read_rows(DIGITS)[0]
    with recorded() as recording, running(DIGITS) as server, Client(server.address) as client:
        inputs: dict[str, Path | str] = {"image": row.image, "text": row.text}
        client.infer(dict(inputs))
        recording.is_on = True
        client.infer(dict(inputs))
        recording.is_on = False
    assert "inputs/picture.py" in recording.files or "inputs/image.py" in recording.files
    assert "engine/scheduler.py" in recording.files
    assert len(recording.files) <= MOST_FILES, sorted(recording.files)
