"""The keys of an image processor's file: which are read, which change nothing, and what each may be."""

from collections.abc import Callable, Mapping
from typing import Any

from ..errors import quote
from .files import Fault

MAX_SIDE = 8192
RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}


def is_side(value: Any) -> bool:
    """Whether the value is a number of pixels that a side may have."""
    return type(value) is int and 1 <= value <= MAX_SIDE


def _is_size(value: Any) -> bool:
    if isinstance(value, list):
        return len(value) == 2 and all(map(is_side, value))
    return is_side(value) or (isinstance(value, dict) and bool(value) and all(map(is_side, value.values())))


def is_number(value: Any) -> bool:
    """Whether the value is a number, and one that float32 holds with room to spare."""
    return type(value) in (int, float) and -1e6 <= value <= 1e6


def _is_positive(value: Any) -> bool:
    return is_number(value) and value >= 1e-6


def _are(is_one: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Make the check of one value for all channels, or a list of one for each."""
    return lambda value: all(map(is_one, value)) if isinstance(value, list) else is_one(value)


FLAG = (lambda value: isinstance(value, bool), "true or false")
NAME = (lambda value: isinstance(value, str), "the name of a class")
SIDE = (is_side, f"1 to {MAX_SIDE}")
SIZE = (_is_size, f"a table of height and width, or of shortest_edge, of 1 to {MAX_SIDE} each")
POSITIVE = (_is_positive, "a number from 0.000001 to 1000000")
READ: dict[str, tuple[Callable[[Any], bool], str]] = {
    "image_processor_type": NAME, "feature_extractor_type": NAME,
    "do_resize": FLAG, "size": SIZE, "resample": (lambda value: type(value) is int and value in RESAMPLING, "0 to 5"),
    "default_to_square": FLAG, "use_square_size": FLAG, "max_size": SIDE, "crop_pct": POSITIVE, "keep_aspect_ratio": FLAG,
    "ensure_multiple_of": SIDE, "size_divisor": SIDE,
    "do_center_crop": FLAG, "crop_size": SIZE, "do_pad": FLAG, "pad_and_return_pixel_mask": FLAG, "pad_size": SIZE,
    "do_convert_rgb": FLAG, "do_flip_channel_order": FLAG,
    "do_rescale": FLAG, "rescale_factor": POSITIVE, "rescale_offset": FLAG,
    "do_normalize": FLAG, "include_top": FLAG,
    "image_mean": (_are(is_number), "a number from -1000000 to 1000000, or a list of one for each channel"),
    "image_std": (_are(_is_positive), "a number from 0.000001 to 1000000, or a list of one for each channel"),
}  # fmt: skip
"""The keys that are read, and what each may be; or null, which leaves a step out."""
IRRELEVANT = {
    "_processor_class", "_valid_processor_keys", "auto_map", "data_format", "device", "disable_grouping", "do_convert_annotations",
    "do_reduce_labels", "do_resize_and_center_crop", "format", "image_seq_length", "input_data_format", "processor_class",
    "reduce_labels", "return_segmentation_masks", "return_tensors", "transformers_version",
}  # fmt: skip
"""The keys that change nothing of what a picture becomes: the library's names, its labels' and annotations' ways, and what a call
says for itself."""


def check_keys(file: str, facts: Mapping[str, Any]) -> None:
    """Raise Fault for a value that is none of the key's, and for a key that is unknown."""
    for key, value in facts.items():
        if key in READ and value is not None:
            is_right, allowed = READ[key]
            if not is_right(value):
                raise Fault(f"{file}: {key}", quote(value), allowed)
        elif key not in READ and key not in IRRELEVANT:
            raise Fault(
                f"{file}: {quote(key)}", "a key of which it is not known what it does", "the keys that docs/hugging-face.md lists"
            )
