"""The report: everything that was found, as JSON, and as one page with its pictures inside."""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from .metrics import Interval

TEMPLATE = "report.html.j2"


@dataclass(frozen=True, slots=True)
class Report:
    """`findings` is all that the page and the JSON say, in plain dicts, lists and numbers; `pictures` are PNGs by name."""

    findings: Mapping[str, Any]
    pictures: Mapping[str, bytes]

    def write(self, folder: Path) -> None:
        """Write `report.json` and `report.html` into `folder`, which is made where it is missing."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.json").write_text(json.dumps(self.findings, indent=1) + "\n", encoding="utf-8")
        (folder / "report.html").write_text(self.as_html(), encoding="utf-8")

    def as_html(self) -> str:
        """Render the page; it needs nothing from anywhere else."""
        import jinja2

        # Names of members and labels come from files: all of it is escaped.
        environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        environment.filters |= {"score": format_score, "percent": format_percent}
        template = environment.from_string(resources.files(__package__).joinpath(TEMPLATE).read_text(encoding="utf-8"))
        pictures = {name: base64.b64encode(content).decode("ascii") for name, content in self.pictures.items()}
        return template.render(self.findings, pictures=pictures)


def as_range(interval: Interval) -> dict[str, float]:
    """Write an interval as JSON has it."""
    return {"value": interval.value, "low": interval.low, "high": interval.high}


def format_score(interval: Mapping[str, float], name: str = "", is_signed: bool = False) -> str:
    """Write a score with its interval; accuracy in percent."""
    factor, digits = (100, 2) if name == "accuracy" else (1, 4)
    value, low, high = (factor * interval[key] for key in ("value", "low", "high"))
    sign = "+" if is_signed else ""
    return f"{value:{sign}.{digits}f} ({low:{sign}.{digits}f} to {high:{sign}.{digits}f})"


def format_percent(share: float) -> str:
    """Write a share in percent."""
    return f"{100 * share:.1f} %"
