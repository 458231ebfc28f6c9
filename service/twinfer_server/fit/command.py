"""`twinfer fit`: its options, and what it prints."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from ..device import open_device
from ..executor import load_ensemble
from ..fusion import FITTED_FILE
from ..inputs import InputLimits
from ..settings import InvalidSettings, read_settings
from ..spec import EnsembleSpec, read_spec
from ..terminal import Device, TrustCode, TrustList, open_console, plain_errors, stage_bars
from ..trust import Trust
from .fit import FitOptions, run_study, unfitted_spec
from .report import format_score, write_report
from .rows import read_halves

DEFAULT_TOLERANCE = 0.005


def fit_command(
    folder: Annotated[Path, typer.Argument(help="The ensemble folder; the fitted fusion and the report are written into it.")],
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
    seed: Annotated[int, typer.Option(min=0, help="Decides the split, the folds and the draws of the intervals.")] = 0,
    device: Device = None,
    trust_code: TrustCode = None,
    trust_list: TrustList = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print report.json on one line, and nothing else.")] = False,
) -> None:
    """Learn temperatures, weights or a stacking head from labelled rows, and report on rows held out from that."""
    with plain_errors():
        settings = read_settings(device=device, trust_code=trust_code, trust_list=trust_list or None)
        spec = read_spec(folder)
        method = method or spec.fusion.method
        first, tolerance = _find_first(spec, saving, tolerate), DEFAULT_TOLERANCE if tolerate is None else tolerate
        with stage_bars() as on_stage:
            opened = open_device(settings.device, streams=len(spec.members))
            opened.prepare_thread()
            trust = Trust.read(settings.trust_code, settings.trust_list)
            limits = InputLimits(settings.max_image_pixels, settings.max_text_bytes)
            ensemble = load_ensemble(folder, opened, trust, limits, unfitted_spec(spec, method))
            fitting, held_out = read_halves(data, heldout, seed, ensemble.spec, ensemble.labels, ensemble.classes)
            options = FitOptions(method, hidden, seed, first, saving, tolerance)
            findings = run_study(ensemble, fitting, held_out, options, on_stage)
        page = write_report(findings, folder / "report")
        if as_json:
            sys.stdout.write(json.dumps(findings) + "\n")
        else:
            _show(findings, page, spec)


def _find_first(spec: EnsembleSpec, saving: float | None, tolerance: float | None) -> str | None:
    """Return the member that a cascade asks first, ensemble.toml's or the first one; None where no cascade is to be fitted."""
    if saving is not None and tolerance is not None:
        raise InvalidSettings("--saving and --tolerate: found both; allowed: one of them")
    if saving is None and tolerance is None and spec.cascade is None:
        return None
    if spec.task != "classification":
        raise InvalidSettings(f"--saving, --tolerate: found with the task {spec.task!r}; allowed: classification")
    if len(spec.members) < 2:
        raise InvalidSettings("--saving, --tolerate: found one member; allowed: several")
    return spec.cascade.first if spec.cascade else next(iter(spec.members))


def _show(findings: Mapping[str, Any], page: Path, spec: EnsembleSpec) -> None:
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
    console.print(f"\nThe report: {page}\nTo serve what was fitted, have this in ensemble.toml:\n", soft_wrap=True)
    console.print("\n".join(lines), markup=False, soft_wrap=True)
