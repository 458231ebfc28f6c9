"""Plans: which lane does which part of a flight."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..device import Device, Lane


@dataclass(frozen=True, slots=True)
class Plan:
    """An assignment of a flight's parts to lanes; `members` has one lane per member of the ensemble."""

    name: str
    copy: Lane
    members: tuple[Lane, ...]
    fusion: Lane


def serial_plan(device: Device, members: Sequence[str]) -> Plan:
    """Members one after the other: everything on one lane."""
    lane = device.serial_lane()
    return Plan("serial", lane, (lane,) * len(members), lane)


def lanes_plan(device: Device, members: Sequence[str]) -> Plan:
    """Members side by side: a lane each, forked after the copy and joined before the fusion."""
    return Plan("lanes", device.copy_lane(), tuple(device.lane(name) for name in members), device.lane("fusion"))
