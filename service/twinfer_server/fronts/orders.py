"""What the device process tells a front, pickled: nothing that comes with every row."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..engine import Description
from ..rows import Policy
from ..settings import ServerSettings
from ..spec import EnsembleSpec


@dataclass(frozen=True, slots=True)
class Begin:
    """Make a server with these settings, which does not listen yet; the first order."""

    settings: ServerSettings


@dataclass(frozen=True, slots=True)
class Listen:
    """Listen; where the ensemble is warm already, the last of the orders to begin with, so that no caller meets a closed door."""


@dataclass(frozen=True, slots=True)
class Describe:
    """The ensemble is now so: `needs` are the indexes of the members that the fusion needs, `classes` as `Ensemble.classes`.

    `refusals` are packed errors, for the policies under which no row can be answered because members are off.
    """

    description: Description
    needs: frozenset[int]
    classes: int
    refusals: Mapping[Policy, bytes]


@dataclass(frozen=True, slots=True)
class Open:
    """Let callers in: the ensemble is warm."""

    folder: Path
    spec: EnsembleSpec
    now: Describe


@dataclass(frozen=True, slots=True)
class Report:
    """Health is now so, for the ensemble and for each member by name."""

    is_serving: bool
    members: Mapping[str, bool]


@dataclass(frozen=True, slots=True)
class Drain:
    """Take nothing more in hand and say when nothing is."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Close the listener and end; calls may take so long to end by themselves."""

    grace_seconds: float


Order = Begin | Listen | Open | Describe | Report | Drain | Stop
