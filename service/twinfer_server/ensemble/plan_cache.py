"""What warm-up measured, kept in a file, so that a restart on the same device need not measure again."""

import hashlib
import json
import logging
from importlib import metadata
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError

from ..spec import SPEC_FILE
from .ensemble import Ensemble
from .times import BucketTimes, TimesTable

logger = logging.getLogger(__name__)

_MEASURED = TypeAdapter(tuple[BucketTimes, ...])


def read_times(cache: Path, folder: Path, ensemble: Ensemble) -> TimesTable | None:
    """Read what an earlier warm-up of the same ensemble on the same device measured; None where there is nothing of use."""
    path = _path(cache, folder, ensemble)
    if path is None or not path.is_file():
        return None
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return TimesTable(_MEASURED.validate_python(document["measured"]), int(document["serial_threads"]))
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        logger.warning("the measured plans in %s cannot be used and are measured again: %s", path, error)
        return None


def write_times(cache: Path, folder: Path, ensemble: Ensemble) -> None:
    """Keep what this warm-up measured; where that cannot be written, the next start measures again."""
    path = _path(cache, folder, ensemble)
    if path is None or ensemble.times is None:
        return
    document = {
        "measured": _MEASURED.dump_python(ensemble.times.measured, mode="json"),
        "serial_threads": ensemble.times.serial_threads,
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Written aside and renamed: a server that starts meanwhile reads the old file or the new one, never half.
        half = path.with_suffix(f".{id(document)}.part")
        half.write_text(json.dumps(document), encoding="utf-8")
        half.replace(path)
    except OSError as error:
        logger.warning("the measured plans cannot be kept in %s: %s", path, error)


def _path(cache: Path, folder: Path, ensemble: Ensemble) -> Path | None:
    """Name the file after all that the times depend on; None where nothing says what a member computes."""
    digests = [member.model.digest or member.model.workload for member in ensemble.members]
    if not all(digests):
        return None
    parts = [
        metadata.version("twinfer"),
        torch.__version__,
        ensemble.device.fingerprint,
        *digests,
        *(str(member.tuned.choice) for member in ensemble.members),
        (folder / SPEC_FILE).read_text(encoding="utf-8"),
    ]
    return cache / f"plans-{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]}.json"
