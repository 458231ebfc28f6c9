"""Chains: members that are fed by other members, in the order of the file."""

from collections.abc import Sequence

from ..errors import InvalidEnsemble, quote
from ..inputs import FedInput, OutputInput
from ..spec import EnsembleSpec, UpstreamInputSpec
from .member import Member


def find_taps(name: str, spec: EnsembleSpec) -> list[int | str]:
    """List the outputs of the member `name` that others are fed with, each once."""
    inputs = [input_spec for member in spec.members.values() for input_spec in member.input.values()]
    return list(dict.fromkeys(fed.select for fed in inputs if isinstance(fed, UpstreamInputSpec) and fed.member == name))


def make_fed_input(key: str, name: str, spec: UpstreamInputSpec, members: Sequence[Member]) -> FedInput:
    """Make a fed input of the member that comes behind `members`, which have been probed; raises InvalidEnsemble."""
    feeder = next((member for member in members if member.name == spec.member), None)
    if feeder is None:
        allowed = ", ".join(repr(member.name) for member in members) or "none, this is the first member"
        raise InvalidEnsemble(f"{key}.member: found {quote(spec.member)}; allowed: a member before this one: {allowed}")
    return OutputInput(name, spec, feeder.index, feeder.tap_shapes[feeder.taps.index(spec.select)], feeder.samples_per_row)
