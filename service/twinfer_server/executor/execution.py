"""Plans: which lane does which part of a flight."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..device import Device, Lane

if TYPE_CHECKING:
    from .member import Member


@dataclass(frozen=True, slots=True)
class Plan:
    """An assignment of a flight's parts to lanes; `members` has one lane per member of the ensemble."""

    name: str
    copy: Lane
    members: tuple[Lane, ...]
    fusion: Lane


def make_plans(device: Device, members: Sequence["Member"]) -> dict[str, Plan]:
    """Make the plans that `device`, where the fusion is, can fly, by name.

    `serial`: members one after the other, everything on one lane. `lanes`: members side by side, a lane each, forked after the
    copy and joined before the fusion. `graph`: the same, captured as one graph that begins and ends on one lane. A member on
    another device has its own lane there under every plan, and no graph spans devices.
    """
    serial, copy = device.serial_lane(), device.copy_lane()
    lanes = tuple(member.device.lane(member.name, member.spec.priority == "high") for member in members)
    at_home = [member.device is device for member in members]
    in_turn = tuple(serial if is_home else lane for lane, is_home in zip(lanes, at_home, strict=True))
    plans = [Plan("serial", serial, in_turn, serial), Plan("streams", copy, lanes, device.lane("fusion"))]
    if device.can_capture and all(at_home):
        root = device.lane("graph")
        plans.append(Plan("graph", root, lanes, root))
    return {execution.name: execution for execution in plans}
