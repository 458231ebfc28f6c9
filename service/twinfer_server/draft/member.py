"""What a source says about a member, before it is written into a folder."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

MAX_NAME_CHARS = 64


class CannotDraft(RuntimeError):
    """A source of which no member can be drafted: says why, and what would do."""


@dataclass(frozen=True, slots=True)
class MemberDraft:
    """A member to be: `source` is copied into the folder as `target`; `inputs` are tables of the file, by input name.

    `files` are further files to copy, by their paths in the folder. `fusion` has keys of `[fusion]` that the source knows.
    """

    name: str
    source: Path
    target: str
    model: str
    task: str
    inputs: Mapping[str, Mapping[str, object]]
    labels: tuple[str, ...] = ()
    output: Mapping[str, object] = field(default_factory=dict)
    fusion: Mapping[str, object] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)


def plain_name(name: str, gap: str, before: str, taken: Collection[str] = ()) -> str:
    """Turn any name into one that an ensemble's file may have, and that is not taken.

    `gap` stands for what such a name may not have, `before` where no letter begins it; a number behind it tells it from others.
    """
    plain = "".join(letter if letter.isascii() and letter.isalnum() else gap for letter in name.lower()).strip(gap)
    plain = plain if plain[:1].isalpha() else f"{before}{gap}{plain}".strip(gap)
    found, number = plain[:MAX_NAME_CHARS], 1
    while found in taken:
        number += 1
        end = f"{gap}{number}"
        found = plain[: MAX_NAME_CHARS - len(end)] + end
    return found
