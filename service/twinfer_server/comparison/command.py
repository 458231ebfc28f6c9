"""`twinfer compare`: its options, and what it prints."""

import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ..device import open_device
from ..executor import load_ensemble
from ..fit.rows import InvalidRows
from ..inputs import InputLimits
from ..settings import read_settings
from ..spec import read_spec
from ..terminal import Device, TrustCode, TrustList, open_console, plain_errors
from ..trust import Trust
from .comparison import Entry, compare, plain_spec, read_samples
from .picture import draw_comparison


def compare_command(
    folder: Annotated[Path, typer.Argument(help="The ensemble folder.")],
    data: Annotated[
        Path | None, typer.Option(help="A folder with labelled rows, as `twinfer fit` takes them. Default: made-up samples.")
    ] = None,
    png: Annotated[Path | None, typer.Option(help="Where to draw it.")] = None,
    device: Device = None,
    trust_code: TrustCode = None,
    trust_list: TrustList = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, and nothing else.")] = False,
) -> None:
    """Try every precision with every acceleration: time, memory and agreement with fp32, or why it is refused."""
    for package in ["polars"] * (data is not None) + ["matplotlib"] * (png is not None):
        importlib.import_module(package)
    with plain_errors(InvalidRows):
        settings = read_settings(device=device, trust_code=trust_code, trust_list=trust_list or None)
        spec = plain_spec(read_spec(folder))
        opened = open_device(settings.device, lanes=len(spec.members))
        opened.prepare_thread()
        trust = Trust.read(settings.trust_code, settings.trust_list)
        limits = InputLimits(settings.max_image_pixels, settings.max_text_bytes)
        ensemble = load_ensemble(folder, opened, trust, limits, spec)
        rows = read_samples(ensemble, data) if data else []
        cache = Path(settings.cache_dir).expanduser() if settings.cache_dir else None
        console = Console(stderr=True)
        with console.status("") as status:
            entries = list(compare(ensemble, rows, cache, lambda name, choice: status.update(f"{name}: {choice}")))
        if as_json:
            document = {"device": opened.fingerprint, "rows": len(rows), "entries": [entry.as_dict() for entry in entries]}
            sys.stdout.write(json.dumps(document) + "\n")
        else:
            _show(entries)
        if png:
            draw_comparison(entries, png)


def _show(entries: Sequence[Entry]) -> None:
    console = open_console()
    for name in dict.fromkeys(entry.member for entry in entries):
        mine = [entry for entry in entries if entry.member == name]
        counts = sorted(next((entry.milliseconds for entry in mine if entry.milliseconds), {}))
        columns = [f"{count} sample{'s' if count > 1 else ''}" for count in counts]
        table = Table(name, *columns, "size", "activations", "error", "cosine", "top-1", "holds", box=None, header_style="dim")
        for entry in mine:
            if entry.milliseconds is None or entry.speed_ups is None:
                continue
            figures = [f"{entry.milliseconds[count]:.2f} ms ×{entry.speed_ups[count]:.2f}" for count in counts]
            sizes = (f"{size / 1e6:.3g} MB" for size in (entry.parameter_bytes, entry.activation_bytes))
            top_1 = "" if entry.top_1 is None else f"{entry.top_1:.1%}"
            agreement = (f"{entry.largest_error:.2g}", f"{entry.cosine:.5f}", top_1)
            table.add_row(str(entry.choice), *figures, *sizes, *agreement, f"{entry.held:.0%}")
        console.print(table)
        for entry in mine:
            if entry.refused:
                console.print(f"  {entry.choice}: {entry.refused}", style="dim", markup=False)
    console.print(
        "×: times as fast as fp32 eager, at so many samples; error: largest absolute difference over the largest absolute output; "
        "holds: the part of a call in which no other thread may run Python",
        style="dim",
    )
