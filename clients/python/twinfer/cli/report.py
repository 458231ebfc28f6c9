"""What the commands print: one JSON object, or tables for people."""

import base64
import json
from collections.abc import Iterable, MutableMapping, MutableSequence
from typing import Any

import typer
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from twinfer.errors import TwinferError


def print_json(value: dict[str, Any]) -> None:
    """Print one object on one line."""
    typer.echo(json.dumps(value))


def print_error(error: TwinferError, as_json: bool) -> None:
    """Print a failed call: to standard output as JSON, which a program reads there, or to standard error for people."""
    if as_json:
        parts = {"code": error.code.name, "reason": error.reason, "member": error.member, "stage": error.stage}
        print_json({"error": {**parts, "text": error.text}})
        return
    reason = f" ({error.reason})" if error.reason != "UNSPECIFIED" else ""
    member = f", member {error.member}" if error.member else ""
    typer.echo(f"{error.code.name}{reason}{member}: {error.text}", err=True)


def print_table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """Print a table, with an empty line above it."""
    # Imported here, as JSON needs none of it.
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*map(escape, row))
    Console().print(table)


def plain(message: Message) -> dict[str, Any]:
    """Return a message of the contract as plain values under the contract's names; unset optional fields are left out.

    Like protobuf's own JSON: bytes, such as a tensor's, become base64. Unlike it: integers stay integers, enums are named without
    their prefix, and a span becomes milliseconds under its name with `_ms` at the end.
    """
    values: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        if field.has_presence and not message.HasField(field.name):
            continue
        value = getattr(message, field.name)
        # Descriptors tell maps and lists apart differently in protobuf 5 and 7; their containers' types are the same.
        if isinstance(value, MutableMapping):
            item = field.message_type.fields_by_name["value"]  # type: ignore[union-attr] # a map is a list of key and value on the wire
            values[_name(field.name, item)] = {key: _plain_value(item, value[key]) for key in sorted(value)}
        elif isinstance(value, MutableSequence):
            values[_name(field.name, field)] = [_plain_value(field, item) for item in value]
        else:
            values[_name(field.name, field)] = _plain_value(field, value)
    return values


def _name(name: str, field: Any) -> str:
    is_span = field.message_type is not None and field.message_type.full_name == Duration.DESCRIPTOR.full_name
    return f"{name}_ms" if is_span else name


def _plain_value(field: Any, value: Any) -> Any:
    if isinstance(value, Duration):
        return value.ToNanoseconds() / 1e6
    if isinstance(value, Message):
        return plain(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if field.enum_type is not None:
        return _enum_name(field.enum_type, value)
    return value


def _enum_name(kind: Any, number: int) -> str | int:
    """Name an enum's value without its prefix, which is what stands before UNSPECIFIED in the name of value 0."""
    if number not in kind.values_by_number:
        return number  # from a newer server
    prefix = kind.values_by_number[0].name.removesuffix("UNSPECIFIED")
    name: str = kind.values_by_number[number].name
    return name.removeprefix(prefix)
