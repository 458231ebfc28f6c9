"""Batches computed on an ensemble itself, without a server: on any device, in either execution."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from tests.servers import DIGITS
from twinfer_server.demo import read_rows
from twinfer_server.device import Device, Execution
from twinfer_server.executor import Batch, Ensemble, load_ensemble, make_responses, warm_up
from twinfer_server.fusion import FusionResult
from twinfer_server.inputs import InputLimits
from twinfer_server.trust import Trust
from twinfer_server.types import InferRequest, Policy, RawInput, Request, Response, State

HELD_OUT = read_rows(DIGITS)


def load_warm(folder: Path, device: Device) -> Ensemble:
    """Load a trusted ensemble and warm it up, as a server does."""
    device.prepare_thread()
    ensemble = load_ensemble(folder, device, Trust(runs_any_code=True), InputLimits())
    warm_up(ensemble, lambda done, total: None)
    return ensemble


def copy_digits(folder: Path, head: str = "", **keys: str) -> Path:
    """Copy the digits with `head` as keys of the ensemble, and for each member named in `keys` a line of its own."""
    shutil.copytree(DIGITS, folder, ignore=shutil.ignore_patterns("heldout", "fit", "*.py"))
    spec = folder / "ensemble.toml"
    text = f"{head}\n{spec.read_text(encoding='utf-8')}"
    for name, line in keys.items():
        text = text.replace(f"[members.{name}]", f"[members.{name}]\n{line}", 1)
    spec.write_text(text, encoding="utf-8")
    return folder


def make_request(ensemble: Ensemble, inputs: Mapping[str, RawInput], policy: Policy = Policy.BEST_EFFORT) -> Request:
    """Make a prepared request that waits for nothing."""
    request = InferRequest(inputs, arrived_at=0.0)
    return Request(request, policy, None, reply_by=float("inf"), samples=ensemble.processor.prepare(request))


def make_digits(ensemble: Ensemble, mix: Sequence[str]) -> list[Request]:
    """Make a request of the digits for each entry of `mix`: "image", "text" or "image+text"."""
    requests = []
    for row, inputs in zip(HELD_OUT, mix, strict=False):
        given: dict[str, RawInput] = {"image": row.image.read_bytes(), "text": row.text}
        requests.append(make_request(ensemble, {name: given[name] for name in inputs.split("+")}))
    return requests


def form(ensemble: Ensemble, requests: Sequence[Request], execution: Execution | None = None, buffer_set: int = 0) -> Batch:
    """Form a batch in one of the sets of staging buffers."""
    asked = sorted({index for request in requests for index in request.members})
    return ensemble.form_batch(requests, {index: ensemble.members[index].buffers[buffer_set] for index in asked}, {}, execution)


def launch(batch: Batch) -> Batch:
    """Launch a batch, as the launch thread does."""
    with torch.inference_mode():
        batch.launch()
    return batch


def respond(batch: Batch, fused: FusionResult | None = None) -> list[Response]:
    """Make the responses of a batch, all of which are answers: from what the device fused, unless `fused` is given."""
    if fused is None:
        batch.completed.wait()
        fused = batch.result
        assert fused is not None
    with torch.inference_mode():
        responses = make_responses(batch, range(len(batch.requests)), fused, 0.0)
    answers = [response for response in responses if isinstance(response, Response)]
    assert answers == responses
    return answers


def compute(
    ensemble: Ensemble, requests: Sequence[Request], execution: Execution | None = None, buffer_set: int = 0
) -> list[Response]:  # fmt: skip
    """Launch a batch, wait for it, and release it."""
    batch = launch(form(ensemble, requests, execution, buffer_set))
    try:
        return respond(batch)
    finally:
        ensemble.release(batch)


def member_states(response: Response) -> list[State]:
    """List what became of each member."""
    return [member.state for member in response.members]


def assert_alike(ours: Sequence[Response], theirs: Sequence[Response], tolerance: float = 1e-5) -> None:
    """Compare responses: predictions, disagreements, and each member's state and weight."""
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(torch.from_numpy(one.prediction), torch.from_numpy(other.prediction), atol=tolerance, rtol=0)
        torch.testing.assert_close(one.disagreement, other.disagreement, atol=tolerance, rtol=0)
        assert member_states(one) == member_states(other)
        weights = [[member.weight for member in response.members] for response in (one, other)]
        torch.testing.assert_close(*weights, atol=1e-6, rtol=0)
