"""`twinfer fit`: its options, and what it prints."""

import importlib
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from ..device import open_device
from ..executor import Ensemble, load_ensemble
from ..inputs import InputLimits
from ..settings import InvalidSettings, ServerSettings, read_settings
from ..spec import EnsembleSpec, read_spec
from ..terminal import Device, OnStage, TrustCode, TrustList, open_console, plain_errors, stage_bars
from ..trust import Trust
from .cascade import CascadeWish
from .fit import unfitted_spec
from .report import Report, format_score
from .rows import InvalidRows, LabelledRows, read_rows
from .split import check_count, split_rows
from .study import Study, Wishes

DEFAULT_TOLERANCE = 0.005
EXTRA = ("polars", "matplotlib", "jinja2")
"""What the extra `fit` brings and this command would only miss at its end."""


def fit_command(
    folder: Annotated[Path, typer.Argument(help="The ensemble folder; fusion.safetensors is written into it.")],
    data: Annotated[Path, typer.Option(help="A folder with labelled rows: rows.csv or rows.parquet.")],
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
    for package in EXTRA:
        importlib.import_module(package)
    with plain_errors(InvalidRows):
        if saving is not None and tolerate is not None:
            raise InvalidSettings("--saving and --tolerate: found both; allowed: one of them")
        settings = read_settings(device=device, trust_code=trust_code, trust_list=trust_list or None)
        spec = read_spec(folder)
        wishes = Wishes(method or spec.fusion.method, hidden, seed, _find_wish(spec, cascade_first, saving, tolerate))
        with stage_bars() as on_stage:
            ensemble = _load(folder, unfitted_spec(spec, method), settings)
            found = _study(ensemble, data, heldout, wishes, on_stage).run()
        where = report or folder / "report"
        found.write(where)
        if as_json:
            sys.stdout.write(json.dumps(_summarise(found, where)) + "\n")
        else:
            _show(found, where, spec)


def _find_wish(spec: EnsembleSpec, first: str | None, saving: float | None, tolerance: float | None) -> CascadeWish | None:
    if first is None and saving is None and tolerance is None and spec.cascade is None:
        return None
    if spec.task != "classification":
        raise InvalidSettings(f"--saving, --tolerate, --cascade-first: found with the task {spec.task!r}; allowed: classification")
    names = list(spec.members)
    first = first or (spec.cascade.first if spec.cascade else names[0])
    if first not in names or len(names) < 2:
        raise InvalidSettings(f"--cascade-first: found {first!r}; allowed: one of several members: {', '.join(names)}")
    if saving is None and tolerance is None:
        tolerance = DEFAULT_TOLERANCE
    return CascadeWish(names.index(first), saving, tolerance)


def _load(folder: Path, spec: EnsembleSpec, settings: ServerSettings) -> Ensemble:
    opened = open_device(settings.device, lanes=len(spec.members))
    opened.prepare_thread()
    trust = Trust.read(settings.trust_code, settings.trust_list)
    return load_ensemble(folder, opened, trust, InputLimits(settings.max_image_pixels, settings.max_text_bytes), spec)


def _study(ensemble: Ensemble, data: Path, heldout: Path | None, wishes: Wishes, on_stage: OnStage) -> Study:
    classes = ensemble.members[ensemble.crew.version.host_fusion.fused_members[0]].output_shape[0]

    def read(folder: Path) -> LabelledRows:
        return read_rows(folder, ensemble.spec, ensemble.labels, classes)

    if heldout is None:
        fitting, held_out = split_rows(read(data), wishes.seed)
    else:
        fitting, held_out = read(data), read(heldout)
        if fitting.file.samefile(held_out.file):
            raise InvalidSettings(
                f"--heldout: found {fitting.file}, which is fitted to; allowed: other rows, or none to split these"
            )
        check_count(fitting)
        check_count(held_out)
    return Study(ensemble, fitting, held_out, wishes, on_stage)


def _summarise(report: Report, where: Path) -> dict[str, Any]:
    """Give what a program wants to know; the rest stands in the report."""
    findings = report.findings
    kept = {name: findings[name] for name in ("method", "seed", "fitted", "scores", "best_member", "differences")}
    cascade = findings["cascade"]
    kept["cascade"] = {name: value for name, value in cascade.items() if name != "curves"} if cascade else None
    kept["rows"] = {name: rows["count"] for name, rows in findings["rows"].items()}
    return kept | {"report": str(where / "report.html")}


def _show(report: Report, where: Path, spec: EnsembleSpec) -> None:
    findings = report.findings
    console = open_console()
    counts = {name: rows["count"] for name, rows in findings["rows"].items()}
    console.print(
        f"Fitted [bold]{findings['method']}[/] to {counts['fitting']} rows; judged on {counts['held_out']} held-out rows:\n"
    )
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
    if findings["cascade"]:
        cascade, held_out = findings["cascade"], findings["cascade"]["held_out"]
        saving, loss = (" ".join(format_score(held_out[name], "accuracy")) for name in ("saving", "loss"))
        console.print(f"\ncascade, {cascade['first']} first, gate {cascade['gate']:.4f}")
        console.print(f"saves {saving} % of the rows")
        console.print(f"costs {loss} points of accuracy")
    console.print(f"\nThe report: {where / 'report.html'}\nTo serve what was fitted, have this in ensemble.toml:\n", soft_wrap=True)
    console.print(_snippet(findings, spec), markup=False, soft_wrap=True)


def _snippet(findings: Any, spec: EnsembleSpec) -> str:
    lines = ["[fusion]", f'method = "{findings["method"]}"', 'fitted = "fusion.safetensors"']
    own = [name for name in ("weights", "temperatures") if getattr(spec.fusion, name)]
    if own:
        lines[0] += f"  # without its {' and '.join(own)}"
    if findings["cascade"]:
        lines += ["", "[cascade]", f'first = "{findings["cascade"]["first"]}"']
    return "\n".join(lines)
