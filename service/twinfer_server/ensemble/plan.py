"""Plans: which lane does which part of a flight."""

from collections.abc import Mapping
from dataclasses import dataclass

from ..device import Device, Lane


@dataclass(frozen=True, slots=True)
class Plan:
    """An assignment of a flight's parts to lanes; `members` has one lane per member of the ensemble."""

    name: str
    copy: Lane
    members: tuple[Lane, ...]
    fusion: Lane


def make_plans(device: Device, members: Mapping[str, bool]) -> dict[str, Plan]:
    """Make the plans that the device can fly, by name; `members` says by name whose lane has high priority.

    `serial`: members one after the other, everything on one lane. `lanes`: members side by side, a lane each, forked after the
    copy and joined before the fusion. `graph`: the same, captured as one graph that begins and ends on one lane.
    """
    serial, copy = device.serial_lane(), device.copy_lane()
    lanes = tuple(device.lane(name, is_high) for name, is_high in members.items())
    plans = [Plan("serial", serial, (serial,) * len(lanes), serial), Plan("lanes", copy, lanes, device.lane("fusion"))]
    if device.can_capture:
        root = device.lane("graph")
        plans.append(Plan("graph", root, lanes, root))
    return {plan.name: plan for plan in plans}
