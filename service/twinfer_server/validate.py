"""What `twinfer validate` says about a folder that loads: its members, its fusion and how its flights will run."""

import json
import sys

from rich.table import Table

from .engine import Description, describe
from .errors import InvalidEnsemble
from .executor import Ensemble
from .settings import ServerSettings
from .terminal import open_console


def report(ensemble: Ensemble, settings: ServerSettings, as_json: bool) -> None:
    """Print the description of a warm ensemble, readable or as one JSON object."""
    description = describe(ensemble, settings)
    if as_json:
        _print_json(_as_dict(description))
        return
    console = open_console()
    console.print(f"[bold]{description.name}[/] version {description.version}: {description.task}, policy {description.policy}")
    columns = "member", "loader", "precision", "acceleration", "error", "device", "inputs", "output", "parameters"
    members = Table(*columns, box=None, header_style="dim")
    for member in description.members:
        size = f"{member.parameter_bytes / 1e6:.3g} MB"
        is_tuned = (member.precision, member.acceleration) != ("fp32", "eager")
        error = f"{member.largest_error:.2g}" if is_tuned else ""
        how = (member.loader, member.precision, member.acceleration, error, member.device)
        members.add_row(member.name, *how, ", ".join(member.inputs), member.output, size)
    console.print(members)
    console.print(f"fusion {description.fusion.method} {dict(description.fusion.weights) or ''}")
    plans = Table("rows", "tokens", "execution", "ms by plan", "overlap", box=None, header_style="dim")
    for times in description.times:
        by_plan = ", ".join(f"{execution} {seconds * 1e3:.3g}" for execution, seconds in times.plan_seconds.items())
        plans.add_row(
            str(times.bucket.samples), str(times.bucket.tokens or "-"), times.execution, by_plan, f"{times.overlap_ratio:.2f}"
        )
    console.print(plans)
    console.print("[green]valid[/]")


def report_invalid(error: InvalidEnsemble) -> None:
    """Print, as one JSON object, why an ensemble folder cannot be served."""
    _print_json({"is_valid": False, "error": str(error)})


def _print_json(document: object) -> None:
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


def _as_dict(description: Description) -> dict[str, object]:
    return {
        "name": description.name,
        "version": description.version,
        "task": description.task,
        "policy": description.policy,
        "members": {
            member.name: {
                "loader": member.loader,
                "device": member.device,
                "parameter_bytes": member.parameter_bytes,
                "precision": member.precision,
                "acceleration": member.acceleration,
                "largest_error": member.largest_error,
            }
            for member in description.members
        },
        "fusion": {"method": description.fusion.method, "weights": dict(description.fusion.weights)},
        "plans": [
            {
                "rows": times.bucket.samples,
                "tokens": times.bucket.tokens,
                "execution": times.execution,
                "ms": {execution: seconds * 1e3 for execution, seconds in times.plan_seconds.items()},
                "overlap_ratio": times.overlap_ratio,
            }
            for times in description.times
        ],
        "is_valid": True,
    }
