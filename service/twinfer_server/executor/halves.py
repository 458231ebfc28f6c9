"""Halves: what a member raises on is computed again in parts, until the requests at which it raises are alone.

So these fail by themselves, and those beside them get their answers. Of n requests that is never more than 2n - 2 parts, and one
sample of the member's own where it answers none of them: is it the requests, or the member? What could be done only while a device
is whole ends with it.
"""

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

TIME_FACTOR = 3.0
TIME_SECONDS = 0.25
"""No part is begun after so many times the solo latency, and these seconds: a member that is stopped so is not behind yet."""


@dataclass(slots=True)
class Findings:
    """What came of it: by request index, what the member raised on it `alone`, and on a part of those that were `left` together.

    `fault` is what the member raised on its own sample, or with a device that is lost: then all fail of it. `computed` counts.
    """

    alone: dict[int, Exception] = field(default_factory=dict)
    left: dict[int, Exception] = field(default_factory=dict)
    fault: Exception | None = None
    computed: int = 0


def compute_in_halves(
    indices: Sequence[int], error: Exception, compute: Callable[[Sequence[int]], object], compute_own: Callable[[], object],
    is_lost: Callable[[], bool], is_over: Callable[[Sequence[int]], bool],
) -> Findings:  # fmt: skip
    """Compute the requests with these indices, on which the member raised `error`, in parts; those it answers have their outputs.

    `compute` computes some of them and `compute_own` a sample of the member's own; both raise what it raises. `is_over` says that
    no time is left for some of them, or that nothing waits for them.
    """
    findings, groups, has_answered = Findings(), [(tuple(indices), error)], False
    forget_frames(error)

    def tries(work: Callable[[], object]) -> Exception | None:
        if is_lost():
            return error
        findings.computed += 1
        try:
            work()
        except Exception as raised:
            forget_frames(raised)
            return raised
        return None

    while groups:
        group, error = groups.pop()
        if len(group) == 1:
            findings.alone[group[0]] = error
        elif is_over(group):
            findings.left.update(dict.fromkeys(group, error))
        else:
            for half in (group[: len(group) // 2], group[len(group) // 2 :]):
                raised = tries(partial(compute, half))
                has_answered = has_answered or raised is None
                if raised is not None:
                    groups.append((half, raised))
        is_at_fault = is_lost() or (not has_answered and tries(compute_own) is not None)
        if is_at_fault:
            findings.fault = error
            break
        has_answered = True
    return findings


def forget_frames(error: Exception) -> None:
    """Let go of what the frames that an error came through hold: with it a device whose memory was too small has room again."""
    traceback.clear_frames(error.__traceback__)
