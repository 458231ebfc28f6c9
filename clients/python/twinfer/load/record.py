"""What was measured as plain values, with all that one must know to measure it again."""

import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from twinfer.load.loops import Load
from twinfer.load.sweep import Measurement

PACKAGES = ("twinfer", "grpcio", "protobuf", "hdrhistogram")


def describe(load: Load, title: str, measurements: Sequence[Measurement]) -> dict[str, Any]:
    """Give the figures of every point, and what they were measured with."""
    return {
        "title": title,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "client": {
            "machine": platform.machine(),
            "cores": len(os.sched_getaffinity(0)),
            "versions": {"python": platform.python_version()} | {package: metadata.version(package) for package in PACKAGES},
        },
        "load": {
            "target": load.target,
            "method": load.method,
            "requests": len(load.requests),
            "seconds": load.seconds,
            "warm_up_seconds": load.warm_up_seconds,
            "timeout_seconds": load.timeout,
            "batch": load.batch,
            "max_in_flight": load.max_in_flight,
            "seed": load.seed,
            "is_checked": load.agreement is not None,
        },
        "points": [
            {
                one.point.kind: one.point.value,
                "is_complete": one.is_complete,
                "repeats_per_second": one.rates,
                **one.tally.figures(),
            }
            for one in measurements
        ],
    }
