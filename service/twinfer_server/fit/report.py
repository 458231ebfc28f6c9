"""The report: everything that was found, as JSON, and as one page with its pictures inside."""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

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


def format_score(interval: Mapping[str, float], name: str = "", is_signed: bool = False) -> tuple[str, str]:
    """Write a score, and its range; accuracy in percent."""
    factor, form = (100, ".2f") if name == "accuracy" else (1, ".4f")
    value, low, high = (f"{factor * interval[key]:{'+' if is_signed else ''}{form}}" for key in ("value", "low", "high"))
    return value, f"({low} to {high})"


def format_percent(share: float) -> str:
    """Write a share in percent."""
    return f"{100 * share:.1f} %"
