"""Influence: what the answer would have been without a member, and so how far the member moved it (leave-one-out)."""

from collections.abc import Sequence

from ..fusion import FusionResult, attribution_delta
from ..types import Attribution, Request
from .flight import Flight


def find_influences(
    flight: Flight, rows: Sequence[Request], fused: FusionResult, places: Sequence[int]
) -> dict[tuple[int, int], Attribution]:
    """Fuse the rows at `places` once more without each member in turn, on the host.

    Gives the influence by (place in `rows`, member index), for rows and members where both sides have an answer; a likeness has
    none without either of its members. `fused` has `rows` in their order.
    """
    found: dict[tuple[int, int], Attribution] = {}
    chosen, task = [rows[place] for place in places], flight.crew.version.spec.task
    if task == "similarity":
        return found
    present = fused.present[list(places)]
    needs = flight.crew.version.host_fusion.needs
    for member in flight.crew.members:
        if member.index in needs:  # the others would have no answer
            continue
        others = present.clone()
        others[:, member.index] = False
        is_judged = (present[:, member.index] & others.any(-1)).tolist()
        if not any(is_judged):
            continue
        without = flight.fuse_now(chosen, without=member.index).prediction
        distances = attribution_delta(task, fused.prediction[list(places)], without).tolist()
        for place, is_it, distance, prediction in zip(places, is_judged, distances, without.numpy(), strict=True):
            if is_it:
                found[place, member.index] = Attribution(distance, prediction)
    return found
