"""Ten thousand damaged files: each is read, or refused by file or key; nothing is run, printed or left behind, and nothing ends."""

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from tests.certificates import Authority
from tests.reference.damaged_files import list_kinds, try_all

CHUNK = 100
KINDS = list_kinds(Path("unused"))
CHUNKS = [
    pytest.param(name, range(first, min(first + CHUNK, kind.count)), id=f"{name}, {first} and on")
    for name, kind in KINDS.items()
    for first in range(0, kind.count, CHUNK)
]


class Trials:
    """A process that reads damaged files, and another one where that has come to its end."""

    def __init__(self, folder: Path, authority: Path) -> None:
        self.folder, self.authority = folder, authority
        self.started = 0
        self.pool: ProcessPoolExecutor | None = None

    def run(self, name: str, numbers: range) -> tuple[dict[str, int], list[str]]:
        if self.pool is None:
            self.started += 1
            self.pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        marker = self.folder / f"{self.started}"
        try:
            return self.pool.submit(try_all, marker, self.authority, name, numbers).result()
        except BrokenProcessPool:
            self.close()
            return {}, [f"{marker.read_text()}: it ended the process: {(self.folder / f'{marker.name}.said').read_text()[-2000:]}"]

    def close(self) -> None:
        if self.pool is not None:
            self.pool.shutdown()
        self.pool = None


@pytest.fixture(scope="session")
def trials(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trials]:
    folder = tmp_path_factory.mktemp("trials")
    found = Trials(folder, Authority.make(tmp_path_factory.mktemp("authority")).folder)
    yield found
    found.close()


def test_there_are_ten_thousand() -> None:
    assert sum(kind.count for kind in KINDS.values()) >= 10_000


@pytest.mark.parametrize(("name", "numbers"), CHUNKS)
def test_a_damaged_file_is_read_or_refused_by_name(
    trials: Trials, name: str, numbers: range, record_property: Callable[[str, object], None]
) -> None:
    tally, wrong = trials.run(name, numbers)
    record_property("tally", f"{name}: {tally}")
    assert not wrong, "\n".join(wrong)
    assert sum(tally.values()) == len(numbers)
