"""What the members answer to labelled rows, through the same ensemble that is served."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InvalidEnsemble, InvalidRequest
from ..executor import Ensemble
from ..fusion import MAX_MAGNITUDE
from ..types import InferRequest, Policy, Request
from .rows import InvalidRows, LabelledRows

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class MemberOutputs:
    """The members' raw outputs: `outputs` one float32 [rows, classes] per member, 0 where it is absent.

    `present` is bool [rows, members]: who had its inputs and gave a finite output.
    """

    outputs: tuple[Tensor, ...]
    present: Tensor

    def __len__(self) -> int:
        """Give the number of rows."""
        return len(self.present)

    def pick(self, chosen: Tensor) -> "MemberOutputs":
        """Give the chosen rows; `chosen` holds places, int64 [n], or is bool [rows]."""
        return MemberOutputs(tuple(output[chosen] for output in self.outputs), self.present[chosen])


def compute_outputs(ensemble: Ensemble, rows: LabelledRows, on_progress: OnProgress) -> MemberOutputs:
    """Fly all rows and keep what each member answers; raises InvalidRows for an input that cannot be decoded.

    Call it on a thread that the device has prepared. Raises InvalidEnsemble where a member fails, or never has its inputs.
    """
    kinds = ensemble.spec.input_kinds()
    outputs = [torch.zeros(len(rows), *member.output_shape) for member in ensemble.members]
    present = torch.zeros(len(rows), len(ensemble.members), dtype=torch.bool)
    slots = {member.index: member.slots[0] for member in ensemble.members}
    step = ensemble.spec.batching.max_batch_size
    for start in range(0, len(rows), step):
        places = range(start, min(start + step, len(rows)))
        flown = [_prepare(ensemble, rows, place, kinds) for place in places]
        with torch.inference_mode():
            flight = ensemble.board(flown, slots, {}, "serial")
            flight.launch()
            flight.landed.wait()
        for run in flight.runs:
            if run.error is not None or run.host_output is None:
                raise InvalidEnsemble(f"members.{run.member.name}: failed on {rows.file}: {run.error}")
            index = run.member.index
            for number in run.rows:
                output = torch.from_numpy(run.sample_of(number))[0]
                # As the fusion has it: what is not finite is not there. A NaN compares as false.
                if output.abs().max() <= MAX_MAGNITUDE:
                    outputs[index][start + number], present[start + number, index] = output, True
        on_progress(places.stop, len(rows))
    for member, seen in zip(ensemble.members, present.any(0).tolist(), strict=True):
        if not seen:
            inputs = [kind.name for kind in member.inputs]
            raise InvalidRows(f"{rows.file}: found no row with the inputs {inputs} of member {member.name!r}; allowed: some")
    return MemberOutputs(tuple(outputs), present)


def _prepare(ensemble: Ensemble, rows: LabelledRows, place: int, kinds: dict[str, str]) -> Request:
    request = InferRequest(inputs=rows.read(place, kinds), arrived_at=0.0)
    try:
        samples = ensemble.prepare(request)
    except InvalidRequest as error:
        raise InvalidRows(f"{rows.file}, row {rows.numbers[place]}: {error.text}") from None
    return Request(request, Policy.BEST_EFFORT, None, reply_by=float("inf"), samples=samples)
