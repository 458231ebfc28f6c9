"""What the spans of requests say, where traces are recorded: how each was answered, and where its time went until its batch.

A batch's own spans are made of its record, which may come after the response.
"""

import time
from collections.abc import Sequence
from dataclasses import replace

from ..errors import DeadlinePassed, TwinferError
from ..executor import Member
from ..types import InferRequest, Request, Response, TraceSpan


def begin_spans(requests: Sequence[InferRequest]) -> Sequence[InferRequest]:
    """Give each request of several a span of its own inside their call's; a lone one is what its call's span stands for."""
    if len(requests) == 1:
        return requests
    return [replace(each, span=each.span.begin("request", each.arrived_at)) if each.span else each for each in requests]


def end_spans(requests: Sequence[InferRequest], made: Sequence[Request | TwinferError], members: Sequence[Member]) -> None:
    """Say in the spans of a call's requests what became of them, and end those that `begin_spans` began."""
    for request, way in zip(requests, made, strict=True):
        if request.span is None:
            continue
        if request.request_id:
            request.span.note({"twinfer.request.id": request.request_id})
        if request.caller:
            request.span.note({"twinfer.caller": request.caller})
        outcome = way.outcome if isinstance(way, Request) else way
        if isinstance(way, Request) and way.ready_at:
            _note_way(request.span, way, outcome)
        if isinstance(outcome, Response):
            _note_response(request.span, outcome, members)
        else:
            request.span.note_error(outcome.reason, outcome.text)
        if len(requests) > 1:
            request.span.end(time.monotonic())


def _note_way(span: TraceSpan, request: Request, outcome: Response | TwinferError) -> None:
    """Make the spans of a request's way to its batch; the wait of one that failed in its batch is not known here."""
    decode = span.begin("decode", request.ready_at - request.decode_seconds)
    decode.end(request.ready_at)
    if isinstance(outcome, Response):
        span.begin("queue", request.ready_at).end(request.ready_at + outcome.timings.queue_seconds)
    elif isinstance(outcome, DeadlinePassed):
        queue = span.begin("queue", request.ready_at)
        queue.note_error(outcome.reason)
        queue.end(time.monotonic())


def _note_response(span: TraceSpan, response: Response, members: Sequence[Member]) -> None:
    """Say how a request was answered."""
    timings = response.timings
    states = [f"{member.name}={result.state.name}" for member, result in zip(members, response.members, strict=True)]
    facts: dict[str, str | bool | int | float | Sequence[str]] = {
        "twinfer.member.states": states, "twinfer.degraded": response.is_degraded, "twinfer.batch.size": timings.batch_size,
        "twinfer.fusion.version": response.fusion_version,
    }  # fmt: skip
    if timings.overlap_ratio is not None:
        facts["twinfer.batch.overlap_ratio"] = timings.overlap_ratio
    span.note(facts)
