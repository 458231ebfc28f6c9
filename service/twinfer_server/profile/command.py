"""`twinfer profile`: its options."""

import importlib
import json
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from ..device import open_device, usable_cores
from ..errors import InvalidRequest
from ..executor import Ensemble, load_ensemble
from ..fit.labels import InvalidRows
from ..fit.rows import read_rows
from ..inputs import InputLimits
from ..precision import ACCELERATIONS, PRECISIONS
from ..settings import InvalidSettings, read_settings
from ..spec import read_spec
from ..terminal import Device, TrustCode, TrustList, open_console, plain_errors, stage_bars
from ..trust import Trust
from ..types import InferRequest, Samples
from .measure import make_samples, measure_setups
from .report import Profile, draw_profile, print_report

MAX_ROWS = 256
"""How many labelled rows are computed in every setup."""


def profile_command(
    folder: Annotated[Path, typer.Argument(help="The ensemble folder.")],
    precision: Annotated[str, typer.Option(help=f"Of {', '.join(PRECISIONS)}, with commas. Default: the folder's own.")] = "",
    acceleration: Annotated[str, typer.Option(help=f"Of {', '.join(ACCELERATIONS)}, with commas. Default: the folder's own.")] = "",
    data: Annotated[Path | None, typer.Option(help="Labelled rows to compare with fp32 on. Default: made-up samples.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Where all figures go.")] = None,
    picture: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Where the picture goes.")] = None,
    device: Device = None,
    trust_code: TrustCode = None,
    trust_list: TrustList = None,
) -> None:
    """Measure whether the members go well together on this device, and at which batch size, precision and acceleration."""
    if picture:
        importlib.import_module("matplotlib")  # where it is missing, better now than after all is measured
    with plain_errors():
        precisions = _split("--precision", precision, PRECISIONS)
        accelerations = _split("--acceleration", acceleration, ACCELERATIONS)
        settings = read_settings(device=device, trust_code=trust_code, trust_list=trust_list or None)
        spec = read_spec(folder)
        if data is not None and spec.task not in ("classification", "multi_label"):
            raise InvalidSettings(f"--data: found for the task {spec.task!r}; allowed: classification, multi_label")
        load = os.getloadavg()[0]
        opened = open_device(settings.device, streams=len(spec.members))
        opened.prepare_thread()
        trust = Trust.read(settings.trust_code, settings.trust_list)
        limits = InputLimits(settings.max_image_pixels, settings.max_text_bytes)
        with stage_bars() as on_stage:
            setups = measure_setups(
                spec, precisions, accelerations,
                load=lambda wanted: load_ensemble(folder, opened, trust, limits, wanted),
                read_samples=lambda ensemble: _read_samples(ensemble, data) if data else make_samples(ensemble),
                on_stage=on_stage,
            )  # fmt: skip
        profile = Profile(
            f"{spec.name} version {spec.version}", opened.description, usable_cores(), load, tuple(spec.members),
            f"labelled rows of {data}" if data else "made-up samples", tuple(setups),
        )  # fmt: skip
        print_report(profile, open_console())
        if json_file:
            json_file.write_text(json.dumps(profile.as_dict(), indent=1) + "\n", encoding="utf-8")
        if picture and any(profile.walk()):
            draw_profile(profile, picture)
    raise typer.Exit(0 if any(profile.walk()) else 1)


def _split(option: str, text: str, known: Collection[str]) -> list[str]:
    """Split an option's value at its commas; raises InvalidSettings."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise InvalidSettings(f"{option}: found {name!r}; allowed: {', '.join(known)}")
    return list(dict.fromkeys(names))


def _read_samples(ensemble: Ensemble, data: Path) -> Sequence[Mapping[int, Samples]]:
    """Read the first labelled rows of a folder, and return each one's samples by member; raises InvalidRows."""
    rows = read_rows(data, ensemble.spec, ensemble.labels, ensemble.classes)
    kinds, samples = ensemble.spec.input_kinds(), []
    for index in range(min(len(rows), MAX_ROWS)):
        try:
            samples.append(ensemble.processor.prepare(InferRequest(inputs=rows.read(index, kinds), arrived_at=0.0)))
        except InvalidRequest as error:
            raise InvalidRows(f"{rows.file}, row {rows.numbers[index]}: {error.text}") from None
    return samples
