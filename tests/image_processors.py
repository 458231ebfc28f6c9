"""Image processors as published checkpoints have them, and what their library makes of pictures."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image

from twinfer_server.inputs import InputLimits, make_input
from twinfer_server.inputs.image import ImageInput
from twinfer_server.spec import ImageInputSpec, read_spec
from twinfer_server.types import Array

IMAGENET: dict[str, Any] = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
HALF: dict[str, Any] = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
CLIP: dict[str, Any] = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
ENSEMBLE = """
name = "pictures"
version = 1
task = "classification"
[members.m]
model = "hf:m"
[members.m.input.image]
kind = "image"
{keys}
[fusion]
method = "weighted_mean"
"""


def square(side: int) -> dict[str, int]:
    """Say height and width as newer files do."""
    return {"height": side, "width": side}


def new(kind: str, **keys: Any) -> dict[str, Any]:
    """Make a file of a newer edition of the library, which says its class and each of its steps."""
    steps = {"do_resize": True, "do_rescale": True, "do_normalize": True, "rescale_factor": 1 / 255}
    return {"image_processor_type": f"{kind}ImageProcessor"} | steps | keys


def old(kind: str, **keys: Any) -> dict[str, Any]:
    """Make a file of an older edition, which calls the class a feature extractor, and says a size in one number."""
    return {"feature_extractor_type": f"{kind}FeatureExtractor", "do_resize": True, "do_normalize": True} | keys


def write(folder: Path, model: str, processor: Any, keys: str = "", *, nested: bool = False, **config: Any) -> Path:
    """Write an ensemble of one member with that image processor, and no weights; gives the member's directory."""
    directory = folder / "m"
    directory.mkdir(exist_ok=True)
    head = {"model_type": model, "architectures": ["AnyForImageClassification"]}
    (directory / "config.json").write_text(json.dumps(head | config))
    content = processor if isinstance(processor, str) else json.dumps({"image_processor": processor} if nested else processor)
    (directory / ("processor_config.json" if nested else "preprocessor_config.json")).write_text(content)
    (folder / "ensemble.toml").write_text(ENSEMBLE.format(keys=keys))
    return directory


def read(folder: Path) -> ImageInput:
    """Read the input of the ensemble in the folder; raises InvalidEnsemble."""
    spec = read_spec(folder).members["m"].input["image"]
    assert isinstance(spec, ImageInputSpec)
    made = make_input("m", "image", spec, folder, InputLimits(), torch.device("cpu"))
    assert isinstance(made, ImageInput)
    return made


def soften(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Make a picture of soft colours."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def ask_library(directory: Path, picture: Image.Image) -> Array:
    """Give what the directory's own image processor makes of a picture, [channels, height, width]."""
    processor = transformers.AutoImageProcessor.from_pretrained(directory, backend="pil", local_files_only=True)
    return np.asarray(processor(images=picture, return_tensors="np")["pixel_values"][0], dtype=np.float32)


def ask(kind: ImageInput, picture: Image.Image) -> Array:
    """Give what the member is called with, [channels, height, width]."""
    pixels = np.asarray(picture)
    [samples] = kind.prepare(kind.decode(pixels if pixels.ndim == 3 else pixels[:, :, np.newaxis]))
    [argument] = kind.arguments([torch.from_numpy(np.array(samples))])
    return np.asarray(argument[0])


def find_error(kind: ImageInput, directory: Path, picture: Image.Image) -> float:
    """Give the largest difference from the library's, in 255ths of what a pixel can be for the member."""
    expected, found = ask_library(directory, picture), ask(kind, picture)
    assert found.shape == expected.shape
    steps = 255 * np.array(kind.spec.std or [1.0] * kind.spec.channels).reshape(-1, 1, 1)
    return float(np.abs(np.subtract(found, expected) * steps).max())
