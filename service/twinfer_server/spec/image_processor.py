"""What a Hugging Face directory says about images: its image processor, in the words of an image input's table.

transformers' own class reads the files, for what an older one leaves out only its class knows. What the class then does has to be
what an input's table can say: resize, cut out the middle, scale, normalise, to one size. What is not known to do so is refused.
"""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import quote
from .files import Fault, read_json
from .image_processor_keys import MAX_SIDE, RESAMPLING, check_keys, is_number, is_side
from .tokenizer import import_transformers

KEYS = ("size", "color", "fit", "resize", "scaled_decoding", "mean", "std")
"""What the directory knows of an image input; nothing is read where the table has all of it."""
STEPS = (
    "__call__", "preprocess", "_preprocess_image_like_inputs", "_prepare_image_like_inputs", "process_image", "convert_to_rgb",
    "_preprocess", "resize", "center_crop", "rescale", "normalize", "pad",
)  # fmt: skip
"""What a class does not override whose steps are the library's plain ones."""
CONVNEXT, DPT, EFFICIENTNET, LEVIT, MOBILEVIT, POOLFORMER = (
    f"{name}ImageProcessor" for name in ("ConvNext", "DPT", "EfficientNet", "Levit", "MobileViT", "PoolFormer")
)
UNCROPPED = {
    f"{name}ImageProcessor"
    for name in ("ConditionalDetr", "DPT", "DeformableDetr", "Detr", "GroundingDino", "RTDetr", "Segformer", "Yolos")
}
"""Classes that resize and never cut out the middle."""
OWN_STEPS = UNCROPPED | {
    CONVNEXT, EFFICIENTNET, LEVIT, MOBILEVIT, POOLFORMER, "BeitImageProcessor", "MobileNetV2ImageProcessor",
}  # fmt: skip
"""Classes whose own steps are known here."""


def read_image(table: Mapping[str, Any], directory: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the directory's image processor says of an input, beside what its `table` says; raises ValueError.

    How a picture fits is said by one of them: where the table has a `fit`, or another size than the processor's plain one.
    """
    file, facts = read_processor_file(directory)
    processor = load_image_processor(directory)
    name = name_processor(processor)
    if not _has_known_steps(name, processor):
        allowed = f"a class without, or {', '.join(sorted(OWN_STEPS))}; or {', '.join(KEYS)} all in the ensemble's file"
        raise ValueError(f"{file}: found {name}, which has steps of its own; allowed: {allowed}")
    check_keys(file, facts)
    try:
        found = _read_geometry(name, processor)
        found |= _read_values(name, processor, _count_channels(config))
    except Fault as fault:
        raise ValueError(f"{file}: {fault}") from None
    if "fit" in table:
        found = {key: value for key, value in found.items() if key not in ("fit", "resize_to", "crop_offset")}
    elif found["fit"] == "crop" and table.get("size", found["size"]) != found["size"]:
        raise Fault("size", table["size"], f"{found['size']}, to which the image processor crops; or a fit beside it")
    return found


def read_processor_file(directory: Path) -> tuple[str, dict[str, Any]]:
    """Return the name of the file that has the image processor's keys, and these: a table, or a whole file."""
    nested = read_json(directory / "processor_config.json", is_optional=True).get("image_processor")
    if isinstance(nested, dict):
        return "processor_config.json: image_processor", nested
    return "preprocessor_config.json", read_json(directory / "preprocessor_config.json", is_optional=True)


def load_image_processor(directory: Path) -> Any:
    """Load the directory's own image processor, in its form that computes with Pillow; raises ValueError."""
    transformers = import_transformers()
    options = {"backend": "pil", "local_files_only": True, "trust_remote_code": False}
    try:
        return transformers.AutoImageProcessor.from_pretrained(directory, **options)
    except Exception as error:  # whatever its JSON makes it stumble over
        file, facts = read_processor_file(directory)
        why = quote(str(error).replace(f"{directory}", directory.name), 300)
        if not facts:
            raise ValueError(
                f"no image processor in {quote(directory.name)} ({why}); allowed: a preprocessor_config.json"
            ) from None
        check_keys(file, facts)
        found = quote(facts.get("image_processor_type") or facts.get("feature_extractor_type") or "no class")
        allowed = "an image processor that transformers has in a form that computes with Pillow"
        raise ValueError(f"{file}: found {found}, which transformers cannot load ({why}); allowed: {allowed}") from None


def name_processor(processor: Any) -> str:
    """Return the name of an image processor's class, as files have it."""
    return type(processor).__name__.removesuffix("Pil")


def _has_known_steps(name: str, processor: Any) -> bool:
    backend = importlib.import_module("transformers.image_processing_backends").PilBackend
    if not isinstance(processor, backend):
        return False
    return name in OWN_STEPS or all(getattr(type(processor), step) is getattr(backend, step) for step in STEPS)


def _count_channels(config: Mapping[str, Any]) -> int:
    tower = config.get("vision_config")
    channels = config.get("num_channels", tower.get("num_channels", 3) if isinstance(tower, dict) else 3)
    if type(channels) is not int or channels not in (1, 3):
        raise Fault("num_channels of config.json", quote(channels), "3, or 1 for grey")
    return channels


def _read_geometry(name: str, processor: Any) -> dict[str, Any]:
    """Return how the processor fits a picture, in a table's words; raises Fault where they cannot say it."""
    if not processor.do_resize:
        raise Fault("do_resize", "null" if processor.do_resize is None else "false", "true")
    resized, cropped = _read_size("size", processor.size), None
    if processor.do_center_crop and name not in UNCROPPED:
        cropped = _read_size("crop_size", processor.crop_size)
    if name == CONVNEXT:
        resized, cropped = _resize_convnext(resized, cropped, processor)
    elif name == LEVIT and isinstance(resized, int):
        resized = int(256 / 224 * resized)
    elif name == POOLFORMER and processor.crop_pct is not None:
        is_square = isinstance(resized, int) or resized[0] == resized[1]
        edges = [int(side / processor.crop_pct) for side in ([resized] if isinstance(resized, int) else resized)]
        resized = edges[0] if is_square else edges
    elif name == DPT:
        _check_dpt(resized, processor)
    if processor.do_pad and processor.pad_size is not None:
        raise Fault("pad_size", dict(processor.pad_size), "none, for all pictures become one size")
    if not all(map(is_side, resized if isinstance(resized, list) else [resized])):
        raise Fault("size", f"what makes {resized} pixels", f"1 to {MAX_SIDE}")
    if cropped is None:
        if isinstance(resized, int):
            allowed = "height and width, to which every picture is stretched; or do_center_crop and a crop_size beside it"
            raise Fault("size", f"{dict(processor.size)}, which keeps a picture's shape", allowed)
        return {"size": resized, "fit": "stretch"}
    if isinstance(cropped, int):
        raise Fault("crop_size", dict(processor.crop_size), "height and width")
    return {"size": cropped, "fit": "crop", "resize_to": resized, "crop_offset": "floor"}


def _read_size(key: str, size: Any) -> int | list[int]:
    """Return a size of the library's as one shorter edge, or as height and width."""
    found = dict(size or {})
    if set(found) == {"height", "width"}:
        return [found["height"], found["width"]]
    if set(found) == {"shortest_edge"}:
        edge: int = found["shortest_edge"]
        return edge
    raise Fault(key, found, "height and width, to which every picture is stretched; or shortest_edge")


def _resize_convnext(size: int | list[int], cropped: Any, processor: Any) -> tuple[int | list[int], Any]:
    """Cut a picture out of a larger one below 384 pixels, and stretch it from there on, as ConvNeXt's does."""
    if not isinstance(size, int):
        raise Fault("size", dict(processor.size), "shortest_edge")
    if cropped not in (None, [size, size]):
        raise Fault("crop_size", dict(processor.crop_size), f"height and width of {size}, or do_center_crop = false")
    if size >= 384:
        return [size, size], None
    if processor.crop_pct is None:
        raise Fault("crop_pct", "null", "a number")
    return int(size / processor.crop_pct), [size, size]


def _check_dpt(size: int | list[int], processor: Any) -> None:
    """Refuse where the size of a picture, or the padding, depends on the picture."""
    multiple, divisor = processor.ensure_multiple_of, processor.size_divisor
    if multiple is None:
        raise Fault("ensure_multiple_of", "null", "1 or more")
    if isinstance(size, int):
        raise Fault("size", dict(processor.size), "height and width")
    if processor.keep_aspect_ratio:
        raise Fault("keep_aspect_ratio", "true", "false, so that every picture is stretched to size")
    if any(side % multiple for side in size):
        raise Fault("size", dict(processor.size), f"multiples of {multiple}, its ensure_multiple_of")
    if processor.do_pad and divisor and any(side % divisor for side in size):
        raise Fault("size_divisor", divisor, f"one that divides {size}, or do_pad = false")


def _read_values(name: str, processor: Any, channels: int) -> dict[str, Any]:
    """Return how the processor scales and normalises: y = (x * factor - offset - mean) / std, in a table's 0..1."""
    if channels == 1 and processor.do_convert_rgb:
        raise Fault("do_convert_rgb", "true for a model of 1 channel", "false")
    is_offset, is_divided_again = False, False
    if name == EFFICIENTNET:
        is_offset, is_divided_again = bool(processor.do_rescale and processor.rescale_offset), bool(processor.include_top)
    if processor.do_rescale and processor.rescale_factor is None:
        raise Fault("rescale_factor", "null", "a number")
    mean, std = [0.0] * channels, [1.0] * channels
    if processor.do_normalize and name != MOBILEVIT:
        mean, std = (_spread(key, getattr(processor, key), channels) for key in ("image_mean", "image_std"))
    if is_divided_again:
        std = [one * two for one, two in zip(std, _spread("image_std", processor.image_std, channels), strict=True)]
    scale = 255 * float(processor.rescale_factor) if processor.do_rescale else 255.0
    is_flipped = name == MOBILEVIT and processor.do_flip_channel_order
    if processor.resample is None:
        raise Fault("resample", "null", "0 to 5")
    return {
        "color": "gray" if channels == 1 else "bgr" if is_flipped else "rgb",
        "resize": RESAMPLING[int(processor.resample)],
        "scaled_decoding": False,  # what the library does not do either
        "mean": [(value + is_offset) / scale for value in mean] if any(mean) or is_offset else [],
        "std": [value / scale for value in std] if {*std, scale} != {1.0} else [],
    }


def _spread(key: str, value: Any, channels: int) -> list[float]:
    """Return one number for each channel."""
    values = list(value) if isinstance(value, list | tuple) else [value] * channels
    if len(values) != channels or not all(map(is_number, values)):
        raise Fault(key, quote(value), f"a number, or a list of {channels}, as config.json's num_channels has it")
    return [float(one) for one in values]
