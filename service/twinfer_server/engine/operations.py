"""Operations: what operators change while rows fly. Event loop only."""

import asyncio
import logging
from collections.abc import Callable
from functools import partial

from ..errors import UnknownMember, quote
from ..executor import Ensemble, FusionChange, FusionVersions
from .batcher import Batcher
from .breaker import SwitchState
from .record import Recorder

logger = logging.getLogger(__name__)


class Operations:
    """Changes the fusion and the members' switches."""

    def __init__(self, ensemble: Ensemble, batcher: Batcher) -> None:
        """Begin with what was loaded; `batcher` has its switches."""
        self._ensemble = ensemble
        self._batcher = batcher
        self._versions = FusionVersions(ensemble, batcher.holding)
        self._changing = asyncio.Lock()
        self.recorder: Recorder | None = None

    async def update_fusion(self, change: FusionChange) -> None:
        """Put another fusion to use, for every flight from now on; raises InvalidOption and FusionConflict."""
        await asyncio.shield(self._change(partial(self._versions.update, change)))

    async def roll_back_fusion(self, version: int) -> None:
        """Put an earlier version of the fusion to use again, 0 for the one before; raises FusionConflict."""
        await asyncio.shield(self._change(partial(self._versions.roll_back, version)))

    async def set_member(self, name: str, is_on: bool) -> None:
        """Switch a member on or off by hand; raises UnknownMember."""
        names = [member.name for member in self._ensemble.members]
        if name not in names:
            raise UnknownMember(f"member: found {quote(name)}; allowed: {', '.join(map(repr, names))}")
        # Not behind other changes: one of them may be waiting for just the member that is to be switched off.
        await asyncio.to_thread(self._batcher.set_member, names.index(name), is_on)

    def note_switches(self) -> None:
        """Tell the recorder how the members are switched."""
        if self.recorder is not None:
            for member, breaker in zip(self._ensemble.members, self._batcher.switchboard.breakers, strict=True):
                self.recorder.on_switch(member.name, breaker.state.switch, breaker.trips)

    @property
    def breaker_states(self) -> list[SwitchState]:
        """The state of each member's breaker, in the ensemble's order."""
        return [breaker.state for breaker in self._batcher.switchboard.breakers]

    @property
    def switches(self) -> dict[str, bool]:
        """Whether each member is switched on, by name."""
        return self._batcher.switchboard.is_on

    async def _change(self, change: Callable[[], None]) -> None:
        """Make a change on a thread that may wait, one at a time, to its end even if its caller goes away."""
        async with self._changing:
            await asyncio.to_thread(change)
