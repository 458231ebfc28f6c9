"""Damage: what may have become of a file, drawn by number, so that each can be made again."""

import json
import os
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

DEEP = (100, 500, 900, 990, 2_000, 10_000)
"""How many arrays or tables lie in one another; Python's own limit is in between."""
TEXTS = (
    "", " ", "x", "x" * 100_000, "../../etc/passwd", "/etc/passwd", "/dev/zero", "hf:..", "a\nb", "\x1b[31m", "é" * 40, "\0",
    "label",
    "{{ 7 * 7 }}", "__class__", "%s%n", "torch.nn.modules.activation.Tanh", "os.system", "python:os:getcwd",
)  # fmt: skip
NUMBERS = (
    "0", "-1", "1", "2", "3", "0.5", "-0.0", "1e308", "-1e308", "1e-320", "255", "65536", str(2**31), str(-(2**31)), str(2**63),
    str(2**64), "9" * 400, "9" * 5000,
)  # fmt: skip
JSON_VALUES = (
    "null", "true", "false", *NUMBERS, "1e999", "NaN", "Infinity", "-Infinity", *map(json.dumps, TEXTS), '"\\ud800"', "[]",
    "[null]", "[[]]", "[1, 2, 3]", '["a"]', "[-1, 1e308]", "{}", '{"a": 1}', '{"": null}', '{"height": 8, "width": null}',
    *("[" * deep + "]" * deep for deep in DEEP), *('{"a":' * deep + "1" + "}" * deep for deep in DEEP),
)  # fmt: skip
TOML_VALUES = (
    "true", "false", *NUMBERS, "inf", "-inf", "nan", "0x" + "f" * 5000, "1979-05-27", "1979-05-27T07:32:00Z", "07:32:00",
    *(json.dumps(text, ensure_ascii=False).replace("\x1b", "\\u001b") for text in TEXTS), "'''\na\n'''", "[]", "[[]]", "[1, 2, 3]",
    '["a"]', "[{}]", "{}", "{a = 1}", '{"" = 1}', *("[" * deep + "]" * deep for deep in DEEP), "null", '"\\ud800"',
)  # fmt: skip
WHOLE: Sequence[Callable[[bytes, Random], bytes]] = (
    lambda content, random: b"",
    lambda content, random: content[: random.randrange(len(content))],
    lambda content, random: content[: random.randrange(len(content))],
    lambda content, random: b"\xef\xbb\xbf" + content,
    lambda content, random: content.decode(errors="replace").encode("utf-16"),
    lambda content, random: content + b"\0",
    lambda content, random: content + content,
    lambda content, random: b"\n \t\n",
    lambda content, random: b"\0" * len(content),
    lambda content, random: random.randbytes(len(content)),
    lambda content, random: random.randbytes(1 << 20),
    lambda content, random: b"[" + content + b"]",
    lambda content, random: random.choice([b"null", b"1", b'"x"', b"[]", b"{}", b"[null]", b"NaN", b"a = 1", b"[a]", b"[[a]]"]),
    lambda content, random: b"[" * random.choice(DEEP),
    lambda content, random: b'{"a":' * random.choice(DEEP),
    lambda content, random: b"a" * 1_000_000,
    lambda content, random: content.replace(b"\n", b"\r"),
    lambda content, random: content.replace(b",", b",,", 1),
)
"""What may have become of a text as a whole."""


def write_document(document: Any, is_toml: bool, at: tuple[object, ...], edit: Callable[[Any], Any]) -> bytes:
    """Write a document with one part, the one `at` a path, edited: a value's text, or the texts of a container's parts."""
    equals = " = " if is_toml else ": "

    def write(value: Any, path: tuple[object, ...]) -> str:
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
        if items is None:
            text = json.dumps(value, ensure_ascii=False)
            return str(edit(text)) if path == at else text
        parts = [(json.dumps(key) + equals if isinstance(value, dict) else "") + write(part, (*path, key)) for key, part in items]
        found = edit(parts) if path == at else parts
        if isinstance(found, str):
            return found
        if is_toml and not path:
            return "\n".join(found)
        return ("{%s}" if isinstance(value, dict) else "[%s]") % ", ".join(found)

    return write(document, ()).encode(errors="surrogatepass")


def list_paths(document: Any, path: tuple[object, ...] = ()) -> Iterator[tuple[object, ...]]:
    """Yield the paths of all parts of a document, at most some of each long list or table."""
    yield path
    items = document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    for key, value in list(items)[:40]:
        yield from list_paths(value, (*path, key))


def damage_document(document: Any, is_toml: bool, number: int, random: Random) -> bytes:
    """Give a part of the document another value, in turn each by each; or take a part away, double it, or add one."""
    paths = list(list_paths(document))
    values = TOML_VALUES if is_toml else JSON_VALUES
    at, turn = paths[number % len(paths)], number // len(paths)
    value = random.choice(values)

    def edit(found: Any) -> Any:
        added = f'"{random.choice(["unknown", "", "kind", "a b"])}"{" = " if is_toml else ": "}{value}'
        if isinstance(found, str) or not turn % 2:
            return value
        spare = [*found[:1], *found]
        return [found[1:], spare, [*found, added], found[::-1], [*found, value]][turn // 2 % 5]

    return write_document(document, is_toml, at, edit)


def damage_bytes(content: bytes, random: Random) -> bytes:
    """Flip, cut, zero, double or put in some bytes."""
    found = bytearray(content)
    at = random.randrange(len(found)) if random.random() < 0.6 else random.randrange(min(64, len(found)))
    end = min(len(found), at + random.choice([1, 1, 2, 4, 8, 64, 4096]))
    match random.randrange(7):
        case 0:
            for _ in range(random.choice([1, 1, 3, 30])):
                found[random.randrange(len(found))] ^= 1 << random.randrange(8)
        case 1:
            found[at] = random.choice([0, 1, 127, 128, 255, 0x2E, 0x63, 0x52])
        case 2:
            return bytes(found[:at])
        case 3:
            found[at:end] = bytes(end - at)
        case 4:
            found[at:at] = found[at:end]
        case 5:
            del found[at:end]
        case _:
            found[at:end] = random.randbytes(random.choice([1, 4, 8, 100]))
    return bytes(found)


def damage_safetensors(content: bytes, number: int, random: Random) -> bytes:
    """Damage the length of the header, the header as a document, or any bytes."""
    (length,) = struct.unpack("<Q", content[:8])
    header, tensors = json.loads(content[8 : 8 + length]), content[8 + length :]
    if number % 3 == 0:
        lengths = [0, 1, 2, length - 1, length + 1, len(content), 100_000_001, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1]
        return struct.pack("<Q", random.choice(lengths)) + content[8:]
    if number % 3 == 1 or not tensors:
        return damage_bytes(content, random)
    name = random.choice([key for key in header if key != "__metadata__"])
    offsets, shape = header[name]["data_offsets"], header[name]["shape"]
    changes = [
        {"data_offsets": [0, offsets[1] - offsets[0]]}, {"data_offsets": offsets[::-1]}, {"data_offsets": [offsets[0], 2**63]},
        {"dtype": random.choice(["F64", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "C64", "X"])}, {"shape": [*shape, 1]},
        {"shape": [2**62, 4]}, {"shape": [0]}, {"shape": []}, {"shape": shape[::-1]}, {"dtype": "F16", "shape": [*shape, 2]},
        {"dtype": "I32"}, {"dtype": "U32"},
    ]  # fmt: skip
    if random.random() < 0.5:
        text = json.dumps(header | {name: header[name] | random.choice(changes)}).encode()
    else:
        text = damage_document(header, False, number // 3, random)
    return struct.pack("<Q", len(text)) + text + tensors


def list_places(outside: Path) -> dict[str, Callable[[Path], None]]:
    """Return what may stand where a file should, each made by a function of its path."""

    def bind(path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            here = os.open(path.parent, os.O_RDONLY)
            try:
                listener.bind(f"/proc/self/fd/{here}/{path.name}")  # a socket's path may be no longer than 107 bytes
            finally:
                os.close(here)

    def close_off(path: Path) -> None:
        path.write_bytes(b"{}")
        path.chmod(0)

    return {
        "nothing": lambda path: None,
        "a folder": Path.mkdir,
        "a FIFO": os.mkfifo,
        "a socket": bind,
        "a device": lambda path: path.symlink_to("/dev/zero"),
        "an empty device": lambda path: path.symlink_to("/dev/null"),
        "a link to a file outside": lambda path: path.symlink_to(outside),
        "a link to nothing": lambda path: path.symlink_to("nowhere"),
        "a link to itself": lambda path: path.symlink_to(path.name),
        "a link to a folder": lambda path: path.symlink_to("."),
        "a file that may not be read": close_off,
    }
