"""What warm-up measured, kept in a file, so that a restart on the same device need not measure again."""

from dataclasses import dataclass
from pathlib import Path

from ..kept_file import KeptFile
from ..spec import SPEC_FILE
from .ensemble import Ensemble
from .times import BucketTimes, TimesTable


@dataclass(frozen=True, slots=True)
class KeptTimes:
    """The measured buckets, and the threads that `serial` computed on."""

    measured: tuple[BucketTimes, ...]
    serial_threads: int


def read_times(cache: Path, folder: Path, ensemble: Ensemble) -> TimesTable | None:
    """Read what an earlier warm-up of the same ensemble on the same device measured; None where there is nothing of use."""
    file = _find_file(cache, folder, ensemble)
    kept = file.read() if file else None
    return TimesTable(kept.measured, kept.serial_threads) if kept else None


def write_times(cache: Path, folder: Path, ensemble: Ensemble) -> None:
    """Keep what this warm-up measured; where that cannot be written, the next start measures again."""
    file = _find_file(cache, folder, ensemble)
    if file and ensemble.times:
        file.write(KeptTimes(ensemble.times.measured, ensemble.times.serial_threads))


def _find_file(cache: Path, folder: Path, ensemble: Ensemble) -> KeptFile[KeptTimes] | None:
    """Name the file after all that the times depend on; None where nothing says what a member computes."""
    digests = [member.model.digest or member.model.workload for member in ensemble.members]
    if not all(digests):
        return None
    parts = [
        ensemble.device.fingerprint,
        *digests,
        *(f"{member.spec.precision} {member.spec.acceleration}" for member in ensemble.members),
        (folder / SPEC_FILE).read_text(encoding="utf-8"),
    ]
    return KeptFile(cache, "plans", KeptTimes, parts)
