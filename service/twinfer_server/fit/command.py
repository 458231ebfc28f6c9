"""`twinfer fit`: its options, and what it prints."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from ..device import open_device
from ..executor import Ensemble, load_ensemble
from ..fusion import FITTED_FILE
from ..inputs import InputLimits
from ..settings import InvalidSettings, ServerSettings, read_settings
from ..spec import EnsembleSpec, read_spec
from ..terminal import Device, TrustCode, TrustList, open_console, plain_errors, stage_bars
from ..trust import Trust
from .cascade import CascadeWish
from .fit import Wishes, run_study, unfitted_spec
from .report import format_score, write_report
from .rows import LabelledRows, check_count, read_rows, split_rows

DEFAULT_TOLERANCE = 0.005


def fit_command(
    folder: Annotated[Path, typer.Argument(help="The ensemble folder; the fitted fusion is written into it.")],
    data: Annotated[Path, typer.Option(help="A folder with labelled rows: rows.csv.")],
    heldout: Annotated[Path | None, typer.Option(help="Labelled rows to judge by. Default: half of those of --data.")] = None,
    method: Annotated[str | None, typer.Option(help="The method to fit. Default: the one in ensemble.toml.")] = None,
    hidden: Annotated[int, typer.Option(min=0, max=4096, help="The hidden width of a stacking head; 0 is a linear one.")] = 0,
    saving: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Find a cascade's gate that saves this share of rows, e.g. 0.5.")
    ] = None,
    tolerate: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Find a cascade's gate that loses at most this accuracy, e.g. 0.005.")
    ] = None,
    cascade_first: Annotated[
        str | None, typer.Option(help="The member that a cascade asks first. Default: ensemble.toml's, or the first one.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Where the report goes. Default: FOLDER/report.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Decides the split, the folds and the draws of the intervals.")] = 0,
    device: Device = None,
    trust_code: TrustCode = None,
    trust_list: TrustList = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, and nothing else.")] = False,
) -> None:
    """Learn temperatures, weights or a stacking head from labelled rows, and report on rows held out from that."""
    with plain_errors():
        settings = read_settings(device=device, trust_code=trust_code, trust_list=trust_list or None)
        spec = read_spec(folder)
        wishes = Wishes(method or spec.fusion.method, hidden, seed, _find_wish(spec, cascade_first, saving, tolerate))
        with stage_bars() as on_stage:
            ensemble = _load(folder, unfitted_spec(spec, method), settings)
            findings = run_study(ensemble, *_read(ensemble, data, heldout, seed), wishes, on_stage)
        where = report or folder / "report"
        write_report(findings, where)
        if as_json:
            sys.stdout.write(json.dumps(_summarise(findings) | {"report": str(where / "report.html")}) + "\n")
        else:
            _show(findings, where, spec)


def _find_wish(spec: EnsembleSpec, first: str | None, saving: float | None, tolerance: float | None) -> CascadeWish | None:
    if saving is not None and tolerance is not None:
        raise InvalidSettings("--saving and --tolerate: found both; allowed: one of them")
    if first is None and saving is None and tolerance is None and spec.cascade is None:
        return None
    if spec.task != "classification":
        raise InvalidSettings(f"--saving, --tolerate, --cascade-first: found with the task {spec.task!r}; allowed: classification")
    names = list(spec.members)
    first = first or (spec.cascade.first if spec.cascade else names[0])
    if first not in names or len(names) < 2:
        raise InvalidSettings(f"--cascade-first: found {first!r}; allowed: one of several members: {', '.join(names)}")
    return CascadeWish(names.index(first), saving, DEFAULT_TOLERANCE if saving is None and tolerance is None else tolerance)


def _load(folder: Path, spec: EnsembleSpec, settings: ServerSettings) -> Ensemble:
    opened = open_device(settings.device, streams=len(spec.members))
    opened.prepare_thread()
    trust = Trust.read(settings.trust_code, settings.trust_list)
    return load_ensemble(folder, opened, trust, InputLimits(settings.max_image_pixels, settings.max_text_bytes), spec)


def _read(ensemble: Ensemble, data: Path, heldout: Path | None, seed: int) -> tuple[LabelledRows, LabelledRows]:
    """Read the rows to fit to and those to judge on."""
    fitting = read_rows(data, ensemble.spec, ensemble.labels, ensemble.classes)
    if heldout is None:
        return split_rows(fitting, seed)
    held_out = read_rows(heldout, ensemble.spec, ensemble.labels, ensemble.classes)
    if fitting.file.samefile(held_out.file):
        raise InvalidSettings(f"--heldout: found {fitting.file}, which is fitted to; allowed: other rows, or none to split these")
    return check_count(fitting), check_count(held_out)


def _summarise(findings: dict[str, Any]) -> dict[str, Any]:
    """Return what a program wants to know; the rest stands in the report."""
    kept = {name: findings[name] for name in ("method", "seed", "fitted", "scores", "best_member", "differences")}
    cascade = findings["cascade"] and {name: value for name, value in findings["cascade"].items() if name != "curves"}
    return kept | {"cascade": cascade, "rows": {name: rows["count"] for name, rows in findings["rows"].items()}}


def _show(findings: dict[str, Any], where: Path, spec: EnsembleSpec) -> None:
    console, method, cascade = open_console(), findings["method"], findings["cascade"]
    fitting, held_out = (findings["rows"][name]["count"] for name in ("fitting", "held_out"))
    console.print(f"Fitted [bold]{method}[/] to {fitting} rows; judged on {held_out} held-out rows:\n")
    table = Table("", "accuracy %", "NLL", "Brier", "ECE", box=None, header_style="dim")
    for score in findings["scores"]:
        table.add_row(score["name"], *(format_score(score[name], name)[0] for name in ("accuracy", "nll", "brier", "ece")))
    console.print(table)
    console.print()
    table = Table("difference", "", "", "95 % interval", box=None, header_style="dim")
    for pair in findings["differences"]:
        for name, title in (("accuracy", "accuracy points"), ("nll", "NLL"), ("ece", "ECE")):
            about = f"{pair['one']} less {pair['other']}" if name == "accuracy" else ""
            table.add_row(about, title, *format_score(pair[name], name, is_signed=True))
    console.print(table)
    own = " and ".join(name for name in ("weights", "temperatures") if getattr(spec.fusion, name))
    lines = ["[fusion]" + f"  # without its {own}" * bool(own), f'method = "{method}"', f'fitted = "{FITTED_FILE}"']
    if cascade:
        saving, loss = (" ".join(format_score(cascade["held_out"][name], "accuracy")) for name in ("saving", "loss"))
        console.print(f"\ncascade, {cascade['first']} first, gate {cascade['gate']:.4f}")
        console.print(f"saves {saving} % of the rows\ncosts {loss} points of accuracy")
        lines += ["", "[cascade]", f'first = "{cascade["first"]}"']
    console.print(f"\nThe report: {where / 'report.html'}\nTo serve what was fitted, have this in ensemble.toml:\n", soft_wrap=True)
    console.print("\n".join(lines), markup=False, soft_wrap=True)
