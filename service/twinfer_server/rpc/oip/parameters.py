"""Parameters: values of several types under free names, read as what they have to be."""

from collections.abc import Collection, Mapping

from ...errors import InvalidOption, quote
from . import grpc_service_pb2 as pb

Parameters = Mapping[str, pb.InferParameter]

HINTS = ("triton_", "binary_data")
"""How the names of parameters begin that ask for nothing: Triton's own, and how bytes would travel over HTTP."""


MAX_PARAMETERS = 64


def check_known(field: str, parameters: Parameters, known: Collection[str]) -> None:
    """Raise InvalidOption for a parameter that nobody would look at; hints are let pass."""
    if len(parameters) > MAX_PARAMETERS:
        raise InvalidOption(f"{field}: found {len(parameters)}; allowed: at most {MAX_PARAMETERS}")
    for name in parameters:
        if name not in known and not name.startswith(HINTS):
            allowed = ", ".join(known) or "none"
            raise InvalidOption(f"{field}[{quote(name)}]: no such parameter; allowed: {allowed}")


def read_whole(field: str, parameters: Parameters, name: str) -> int | None:
    """Give a whole number of at least 0, None where it is not set; raises InvalidOption."""
    if name not in parameters:
        return None
    which = parameters[name].WhichOneof("parameter_choice")
    if which not in ("int64_param", "uint64_param"):
        raise InvalidOption(f"{field}[{name!r}]: found {which or 'no value'}; allowed: int64_param or uint64_param")
    value: int = getattr(parameters[name], which)
    if value < 0:
        raise InvalidOption(f"{field}[{name!r}]: found {value}; allowed: at least 0")
    return value


def read_text(field: str, parameters: Parameters, name: str) -> str:
    """Give a text, empty where it is not set; raises InvalidOption."""
    if name not in parameters:
        return ""
    which = parameters[name].WhichOneof("parameter_choice")
    if which != "string_param":
        raise InvalidOption(f"{field}[{name!r}]: found {which or 'no value'}; allowed: string_param")
    return parameters[name].string_param


def is_set(parameter: pb.InferParameter) -> bool:
    """Whether it has a value other than false, 0 or empty."""
    which = parameter.WhichOneof("parameter_choice")
    return which is not None and bool(getattr(parameter, which))
