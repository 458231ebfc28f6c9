"""Flights of the digits on a GPU, and on a CPU to compare with."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from tests.servers import DIGITS
from twinfer_server.demo import read_rows
from twinfer_server.device import CudaDevice, Device
from twinfer_server.executor import Ensemble, answer_rows, load_ensemble, warm_up
from twinfer_server.inputs import InputLimits
from twinfer_server.trust import Trust
from twinfer_server.types import InferRequest, Policy, RawInput, Request, Response


def load(folder: Path, device: Device) -> Ensemble:
    device.prepare_thread()
    ensemble = load_ensemble(folder, device, Trust.read(True, ()), InputLimits())
    warm_up(ensemble, None, lambda done, total: None)
    return ensemble


def cuda() -> CudaDevice:
    return CudaDevice(torch.device("cuda", 0))


def copy_digits(folder: Path, head: str) -> Path:
    shutil.copytree(DIGITS, folder, ignore=shutil.ignore_patterns("heldout", "fit", "*.py"))
    spec = folder / "ensemble.toml"
    spec.write_text(head + "\n" + spec.read_text(encoding="utf-8"), encoding="utf-8")
    return folder


def make_rows(ensemble: Ensemble, mix: Sequence[str]) -> list[Request]:
    rows = []
    for held_out, modalities in zip(read_rows(DIGITS), mix, strict=False):
        given: dict[str, RawInput] = {"image": held_out.image.read_bytes(), "text": held_out.text}
        request = InferRequest({name: given[name] for name in modalities.split("+")}, arrived_at=0.0)
        rows.append(Request(request, Policy.BEST_EFFORT, None, reply_by=float("inf"), samples=ensemble.prepare(request)))
    return rows


def fly(ensemble: Ensemble, rows: Sequence[Request], slot: int = 0, execution: str | None = None) -> list[Response]:
    flying = {index for row in rows for index in row.samples}
    with torch.inference_mode():
        flight = ensemble.board(rows, {index: ensemble.members[index].slots[slot] for index in sorted(flying)}, {}, execution)
        flight.launch()
        flight.landed.wait()
        assert flight.fused is not None
        answers = answer_rows(flight, rows, flight.fused, 0.0)
    assert all(isinstance(answer, Response) for answer in answers)
    return [answer for answer in answers if isinstance(answer, Response)]
