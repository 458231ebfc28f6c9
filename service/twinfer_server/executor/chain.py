"""Chains: members that are fed by other members, in the order of the file."""

from collections.abc import Sequence

from ..errors import InvalidEnsemble, quote
from ..inputs import CropsInput, FedInput, OutputInput
from ..spec import CropsInputSpec, EnsembleSpec, FedInputSpec, OutputInputSpec
from .member import Member


def find_taps(name: str, spec: EnsembleSpec) -> list[int | str]:
    """List the outputs of the member `name` that others are fed with, each once."""
    inputs = [input_spec for member in spec.members.values() for input_spec in member.input.values()]
    return list(dict.fromkeys(fed.select for fed in inputs if isinstance(fed, OutputInputSpec) and fed.member == name))


def make_fed_input(key: str, name: str, spec: FedInputSpec, members: Sequence[Member]) -> FedInput:
    """Make a fed input of the member that comes behind `members`, which have been probed; raises InvalidEnsemble."""
    feeder = next((member for member in members if member.name == spec.member), None)
    if feeder is None:
        allowed = ", ".join(repr(member.name) for member in members) or "none, this is the first member"
        raise InvalidEnsemble(f"{key}.member: found {quote(spec.member)}; allowed: a member before this one: {allowed}")
    if isinstance(spec, OutputInputSpec):
        return OutputInput(name, spec, feeder.index, feeder.tap_shapes[feeder.taps.index(spec.select)], feeder.samples_per_row)
    return _make_crops(key, name, spec, feeder)


def _make_crops(key: str, name: str, spec: CropsInputSpec, feeder: Member) -> CropsInput:
    images = [staging for staging in feeder.stagings if staging.name == "pixels"]
    if feeder.spec.output.kind != "detections" or len(images) != 1:
        found = f"{feeder.name!r}, with an output of kind {feeder.spec.output.kind!r} and {len(images)} images"
        raise InvalidEnsemble(f"{key}.member: found {found}; allowed: a member that gives detections in its one image")
    channels = images[0].shape[2]
    for word, values in (("mean", spec.mean), ("std", spec.std)):
        if len(values) not in (0, channels):
            raise InvalidEnsemble(
                f"{key}.{word}: found {len(values)} values; allowed: none, or {channels}, as the image has channels"
            )
    return CropsInput(name, spec, feeder.index, channels)
