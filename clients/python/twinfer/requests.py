"""Makes requests: inputs and options in, the contract's own message out."""

from collections.abc import Mapping
from typing import Literal, TypedDict, Unpack, get_args

from twinfer.errors import MessageTooLarge
from twinfer.inputs import Inputs, make_input
from twinfer.v1 import ensemble_service_pb2 as pb

Request = Inputs | pb.InferRequest
"""Inputs by name, or a ready request, which has options of its own."""

PolicyName = Literal["require_all", "best_effort"]
PriorityName = Literal["low", "normal", "high"]


class Options(TypedDict, total=False):
    """How to answer; what is left out is the server's, or the ensemble's, own choice."""

    # The caller's own id, handed back in the answer.
    request_id: str
    # The ensemble's name and version; left out, the one that is served.
    ensemble: str
    version: int
    # What the answer needs: every member ("require_all"), or at least one ("best_effort").
    policy: PolicyName
    # Which requests go first when more wait than a batch holds.
    priority: PriorityName
    # How many classes, labels or texts of the ensemble's own are listed.
    top_k: int
    # Whether the members' own predictions come along.
    member_predictions: bool
    # Whether the answer is explained: the members' own predictions, and how far each moved the answer.
    explain: bool
    # The members' weights in the fusion instead of the ensemble's own; members left out weigh 0.
    fusion_weights: Mapping[str, float]


def make_request(inputs: Inputs, *, timeout: float | None = None, **options: Unpack[Options]) -> pb.InferRequest:
    """Return a request that is ready for `infer`, `infer_batch` and `infer_many`: one of many can so have options of its own.

    timeout: seconds that the server may take for the request, from its arrival.
    Raises TypeError or ValueError for what cannot be sent, OSError for a file that cannot be read.
    """
    own = pb.InferOptions(
        policy=_enum_name("policy", options.get("policy"), get_args(PolicyName)),
        priority=_enum_name("priority", options.get("priority"), get_args(PriorityName)),
        top_k=options.get("top_k", 0),
        member_predictions=options.get("member_predictions", False),
        explain=options.get("explain", False),
        fusion_weights=options.get("fusion_weights", {}),
    )
    if timeout is not None:
        own.timeout.FromNanoseconds(round(timeout * 1e9))
    return pb.InferRequest(
        ensemble=options.get("ensemble", ""),
        version=options.get("version", 0),
        request_id=options.get("request_id", ""),
        inputs={name: make_input(name, value) for name, value in inputs.items()},
        options=own,
    )


def as_request(request: Request, options: Options, *, are_of_many: bool = False) -> pb.InferRequest:
    """Return a ready request as it is, and make one of inputs and options otherwise.

    The options of many requests are for those that have none; options for a single ready request are a TypeError.
    """
    if not isinstance(request, pb.InferRequest):
        return make_request(request, **options)
    if options and not are_of_many:
        raise TypeError(f"a ready request has its own options; found besides: {', '.join(options)}.")
    return request


def check_size(message: pb.InferRequest | pb.InferStreamRequest | pb.BatchInferRequest, max_message_bytes: int) -> None:
    """Refuse a message over the limit: gRPC's own refusal would be a RESOURCE_EXHAUSTED that looks like overload.

    Raises MessageTooLarge.
    """
    size = message.ByteSize()
    if size > max_message_bytes:
        raise MessageTooLarge(
            f"the request has {size:,} bytes; allowed: {max_message_bytes:,} (max_message_bytes of the client; "
            "the server has such a limit of its own, see describe().limits)"
        )


def _enum_name(option: str, name: str | None, allowed: tuple[str, ...]) -> str:
    """Return the contract's name for a choice."""
    if name is None:
        return f"{option.upper()}_UNSPECIFIED"
    if name not in allowed:
        raise ValueError(f"{option} is {name!r}; allowed: {', '.join(allowed)}.")
    return f"{option.upper()}_{name.upper()}"
