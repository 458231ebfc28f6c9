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

    Unlike protobuf's own `MessageToDict`: integers stay integers, enums are named without their prefix, and a span becomes
    milliseconds under its name with `_ms` at the end. Bytes, such as a tensor's, become base64 in both.
    """
    values: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        if field.has_presence and not message.HasField(field.name):
            continue
        value = getattr(message, field.name)
        # Descriptors tell maps and lists apart differently in protobuf 5 and 7; their containers' types are the same.
        if isinstance(value, MutableMapping):
            values[field.name] = dict(sorted(value.items()))  # the answers' maps are of numbers
        elif isinstance(value, MutableSequence):
            values[field.name] = [_plain_value(field, item) for item in value]
        else:
            values[f"{field.name}_ms" if isinstance(value, Duration) else field.name] = _plain_value(field, value)
    return values


def _plain_value(field: Any, value: Any) -> Any:
    if isinstance(value, Duration):
        return value.ToNanoseconds() / 1e6
    if isinstance(value, Message):
        return plain(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if field.enum_type is not None and value in field.enum_type.values_by_number:  # others are from a newer server
        names = {number: one.name for number, one in field.enum_type.values_by_number.items()}
        return names[value].removeprefix(names[0].removesuffix("UNSPECIFIED"))
    return value
