"""Models of two towers, which a Hugging Face directory has in one: how they compare an image with texts."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import quote
from ..loaders.weights import read_number
from ..spec import PREFIX, find_output_kind, read_config
from .lines import Asked
from .member import CannotDraft, MemberDraft, plain_name

MAX_TEXTS = 16
EXPONENTS = ("aimv2", "altclip", "chinese_clip", "clip", "metaclip_2", "siglip", "vision-text-dual-encoder")
"""Model types whose weights have the logarithm of what cosines are multiplied by."""
DIVISORS = ("align",)
"""Model types whose weights have what cosines are divided by."""
SIGMOIDS = ("siglip",)
"""Model types that were trained with a sigmoid and a bias (Zhai et al. 2023), not a softmax."""


def draft_towers(source: str) -> list[MemberDraft] | None:
    """Draft the two towers of a CLIP-like directory, `hf:DIR`, as members that are compared; None for any other source.

    Raises CannotDraft where the library compares them in a way of its own.
    """
    directory = Path(source.removeprefix(PREFIX))
    if not source.startswith(PREFIX):
        return None
    config = find_config(directory)
    if not {"text_config", "vision_config"} <= set(config) or find_output_kind(config) != "embedding":
        return None
    target, fusion = plain_name(directory.resolve().name, "-", "towers"), _read_likeness(directory, config)
    tables: dict[str, dict[str, object]] = {"image": {"kind": "image"}, "text": {"kind": "text", "max_samples": MAX_TEXTS}}
    return [
        MemberDraft(name, directory, target, f"{PREFIX}{target}", "similarity", {name: table}, fusion=fusion)
        for name, table in tables.items()
    ]


def find_config(directory: Path) -> dict[str, Any]:
    """Read a directory's configuration; raises CannotDraft."""
    try:
        return read_config(directory)
    except ValueError as error:
        raise CannotDraft(f"{directory}: {error}; wanted is a directory that save_pretrained has written") from None


def _read_likeness(directory: Path, config: Mapping[str, Any]) -> dict[str, object]:
    """Read how a model of two towers turns cosines into probabilities, from its weights; raises CannotDraft."""
    kind = config.get("model_type")
    if kind not in EXPONENTS + DIVISORS:
        allowed = ", ".join(sorted(EXPONENTS + DIVISORS))
        raise CannotDraft(f"{directory / 'config.json'}: model_type: found {quote(kind)}; allowed of two towers: {allowed}")
    name = "temperature" if kind in DIVISORS else "logit_scale"
    found: dict[str, object] = {"scale": _read(directory, name)}
    number = found["scale"]
    if isinstance(number, float):
        try:
            scale = 1 / number if kind in DIVISORS else math.exp(number)
        except (OverflowError, ZeroDivisionError):
            scale = math.inf
        if kind == "aimv2":
            scale = min(max(scale, 1.0), float(config.get("max_logit_scale", 100.0)))
        found["scale"] = float(f"{scale:.9g}")
        if not 0 < scale < math.inf:
            raise CannotDraft(f"{directory}: found {number:g} as {name}; allowed: what gives a scale above 0")
    if kind in SIGMOIDS:
        found |= {"bias": _read(directory, "logit_bias"), "activation": "sigmoid"}
    return found


def _read(directory: Path, name: str) -> float | Asked:
    try:
        number = read_number(directory, name)
    except ValueError as error:
        raise CannotDraft(f"{directory}: {error}; allowed: weights that can be read") from None
    return Asked(f"the weights have no {name}, with which the model was trained") if number is None else float(f"{number:.9g}")
