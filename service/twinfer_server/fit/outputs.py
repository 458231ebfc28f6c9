"""What an ensemble's members and its fusion answer to labelled rows; all use that fitting makes of the executor is here."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..errors import InvalidEnsemble, InvalidRequest
from ..executor import Ensemble
from ..fusion import MAX_MAGNITUDE, OpinionFusion
from ..spec import EnsembleSpec
from ..terminal import OnProgress
from ..types import InferRequest, Policy, Request
from .labels import InvalidRows
from .rows import LabelledRows
from .scores import Flags, Floats


@dataclass(frozen=True, slots=True)
class MemberOutputs:
    """The members' raw outputs: `outputs` one float32 [rows, classes] per member, 0 where it is absent.

    `present` is bool [rows, members]: which have their inputs and answer with finite numbers. `targets` is the truth, bool
    [rows, classes].
    """

    outputs: Sequence[Tensor]
    present: Tensor
    targets: Flags


@dataclass(frozen=True, slots=True)
class Prediction:
    """What one member or one fusion says: `probabilities` float64 [rows, classes], `present` bool [rows].

    `is_fitted` says whether something fitted has a part in it.
    """

    name: str
    kind: Literal["member", "fusion"]
    is_fitted: bool
    probabilities: Floats
    present: Flags


class ServedFusion:
    """A fusion as the server has it: what is judged is what will be served.

    `names` are those of the ensemble's members, `weights` theirs, float64 [members]; `members` are the fused ones, by index.
    """

    def __init__(self, ensemble: Ensemble, fitted: EnsembleSpec | None = None) -> None:
        """Take the fusion that the ensemble was loaded with, or load the one that `fitted` names; raises InvalidEnsemble."""
        version = ensemble.fusion_builder.build(1, fitted) if fitted else ensemble.fusion
        assert isinstance(version.host_fusion, OpinionFusion)  # only these are fitted
        self.fusion = version.host_fusion
        self.method = version.spec.fusion.method
        self.names = [member.name for member in ensemble.members]
        self.weights = torch.from_numpy(version.weights)
        self.members = list(self.fusion.fused_members)
        self.is_fitted = fitted is not None

    def read_logits(self, outputs: MemberOutputs) -> Tensor:
        """Return the fused members' logits before calibration, float64 [members, rows, classes], or [..., labels, 2]."""
        return torch.stack([self.fusion.read_logits(index, outputs.outputs[index]).double() for index in self.members])

    def fuse(self, outputs: MemberOutputs) -> Prediction:
        """Fuse all rows."""
        with torch.inference_mode():
            weights = self.weights.float().expand(len(outputs.present), -1)
            fused = self.fusion(outputs.outputs, weights, outputs.present.to(torch.int32))
        name = "fitted fusion" if self.is_fitted else "unfitted fusion"
        present = (fused.present > 0).any(-1).numpy()
        return Prediction(name, "fusion", self.is_fitted, fused.prediction.double().numpy(), present)

    def predict(self, index: int, outputs: MemberOutputs) -> Prediction:
        """Return what one member says by itself, with the temperature that this fusion has for it."""
        probabilities = self.fusion.member_prediction(index, outputs.outputs[index]).double().numpy()
        name = self.names[index] + (", calibrated" if self.is_fitted else "")
        return Prediction(name, "member", self.is_fitted, probabilities, outputs.present[:, index].numpy())

    def predict_all(self, outputs: MemberOutputs) -> list[Prediction]:
        """Return what each fused member says by itself, and then what the fusion says."""
        return [*(self.predict(index, outputs) for index in self.members), self.fuse(outputs)]


def compute_outputs(ensemble: Ensemble, rows: LabelledRows, on_progress: OnProgress) -> MemberOutputs:
    """Compute what each member answers to all rows; call it on a thread that the device has prepared.

    Raises InvalidEnsemble where a member fails, InvalidRows for an input that cannot be decoded, or where a member never has its
    inputs.
    """
    outputs = [torch.zeros(len(rows), *member.output_shape) for member in ensemble.members]
    present = torch.zeros(len(rows), len(ensemble.members), dtype=torch.bool)
    step = ensemble.spec.batching.max_batch_size
    for start in range(0, len(rows), step):
        stop = min(start + step, len(rows))
        for column, index, output in _compute(ensemble, [_prepare(ensemble, rows, index) for index in range(start, stop)]):
            # As the fusion has it: what is not finite is not there. A NaN compares as false.
            if output.abs().max() <= MAX_MAGNITUDE:
                outputs[column][start + index], present[start + index, column] = output, True
        on_progress(stop, len(rows))
    for member, is_seen in zip(ensemble.members, present.any(0).tolist(), strict=True):
        if member.is_fused and not is_seen:
            inputs = [kind.name for kind in member.inputs]
            raise InvalidRows(f"{rows.file}: found no row with the inputs {inputs} of member {member.name!r}; allowed: some")
    return MemberOutputs(outputs, present, rows.targets)


def _prepare(ensemble: Ensemble, rows: LabelledRows, index: int) -> Request:
    request = InferRequest(inputs=rows.read(index, ensemble.spec.input_kinds()), arrived_at=0.0)
    try:
        samples = ensemble.processor.prepare(request)
    except InvalidRequest as error:
        raise InvalidRows(f"{rows.file}, row {rows.numbers[index]}: {error.text}") from None
    return Request(request, Policy.BEST_EFFORT, None, reply_by=math.inf, samples=samples)


def _compute(ensemble: Ensemble, requests: Sequence[Request]) -> Iterator[tuple[int, int, Tensor]]:
    """Run a batch; yields member, request, both by index, and the member's output for the request, float32 [classes]."""
    with torch.inference_mode():
        batch = ensemble.compute(requests)
    for run in batch.runs:
        for error in run.errors.values():
            raise InvalidEnsemble(f"members.{run.member.name}: failed on the rows: {error}")
        for index in run.indices if run.member.is_fused else ():
            yield run.member.index, index, torch.from_numpy(run.output_of(index))[0]
    ensemble.release(batch)
