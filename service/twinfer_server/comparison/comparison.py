"""The comparison: one member at every precision with every acceleration, each raced against itself in fp32, eagerly."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from ..device import Device
from ..executor import Ensemble, Member, make_probe_samples
from ..fit.rows import read_rows
from ..spec import EnsembleSpec
from ..tuning import ACCELERATIONS, PRECISIONS, Choice, ProbeSamples, Refused, Tuner
from ..types import InferRequest, Samples

OnEntry = Callable[[str, Choice], None]
"""Told which member is tried how, before it is."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One member, one precision, one acceleration.

    Where it is refused, `refused` says why, and nothing else means anything. By number of samples, `milliseconds` are medians, and
    `speed_ups` over fp32 eager. `activation_bytes` are what a call with the most samples holds at its peak. `largest_error`,
    `cosine` and `top_1` (None without classes) are against fp32 eager, on the most samples.
    """

    member: str
    choice: Choice
    refused: str = ""
    milliseconds: Mapping[int, float] | None = None
    speed_ups: Mapping[int, float] | None = None
    parameter_bytes: int = 0
    activation_bytes: int = 0
    largest_error: float = 0.0
    cosine: float = 1.0
    top_1: float | None = None
    held: float = 0.0

    def as_dict(self) -> dict[str, object]:
        """Write it as JSON has it."""
        document = asdict(self)
        head = {"member": document.pop("member"), **document.pop("choice")}
        refused = document.pop("refused")
        return head | ({"refused": refused} if refused else document)


def plain_spec(spec: EnsembleSpec) -> EnsembleSpec:
    """Give the spec with every member in fp32, eagerly: what the others are compared with."""
    plain = {"precision": "fp32", "acceleration": "eager", "tolerance": None}
    return spec.model_copy(update={"members": {name: member.model_copy(update=plain) for name, member in spec.members.items()}})


def read_samples(ensemble: Ensemble, data: Path) -> list[Mapping[int, Samples]]:
    """Read the labelled rows of a folder, and give each one's samples by member; raises InvalidRows and InvalidRequest."""
    rows = read_rows(data, ensemble.spec, ensemble.labels, ensemble.members[0].output_shape[0])
    kinds = ensemble.spec.input_kinds()
    return [ensemble.prepare(InferRequest(inputs=rows.read(place, kinds), arrived_at=0.0)) for place in range(len(rows))]


def compare(
    ensemble: Ensemble, rows: Sequence[Mapping[int, Samples]], cache: Path | None, on_entry: OnEntry
) -> Iterator[Entry]:  # fmt: skip
    """Try every member in every way, on `rows` or on made-up samples; nothing else may compute meanwhile.

    Call it on a thread that the device has prepared.
    """
    tuner = Tuner(ensemble.device, cache)
    with torch.inference_mode():
        for member in ensemble.members:
            samples = make_probe_samples(member, [row[member.index] for row in rows if member.index in row])
            for precision in PRECISIONS:
                for acceleration in ACCELERATIONS:
                    choice = Choice(precision, acceleration)
                    on_entry(member.name, choice)
                    yield _try(tuner, member, samples, choice, ensemble.device)


def _try(tuner: Tuner, member: Member, samples: ProbeSamples, choice: Choice, device: Device) -> Entry:
    try:
        trial = tuner.try_out(choice, member.spec, member.model, samples)
        count = max(samples.paced)
        activations = device.peak_bytes(lambda: samples.compute(trial.model.module, count))
    except Refused as error:
        return Entry(member.name, choice, str(error))
    agreement, race = trial.agreement, trial.race
    return Entry(
        member.name, choice,
        milliseconds={count: seconds * 1e3 for count, seconds in race.seconds.items()}, speed_ups=race.speed_ups,
        parameter_bytes=trial.model.parameter_bytes, activation_bytes=activations,
        largest_error=agreement.largest_error, cosine=agreement.cosine, top_1=agreement.top_1, held=race.held,
    )  # fmt: skip
