"""Weights: which files of a Hugging Face directory have a model's weights, in one file or in parts."""

from pathlib import Path

import torch
from safetensors import safe_open

from ..spec import find_file, read_json

PICKLE_SUFFIX = ".bin"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""In the order in which transformers looks for them; an index names the files that the weights are in."""


def list_weights(directory: Path) -> list[Path]:
    """Return the files that the weights are read from, with their index; empty where there are none.

    Raises ValueError for an index that cannot be followed: a file that is not there, or not in the directory.
    """
    name = next((name for name in WEIGHTS if (directory / name).is_file()), None)
    if name is None:
        return []
    if not name.endswith(".json"):
        return [find_file(directory, name)]
    places = read_json(directory / name).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(part, str) for part in places.values()):
        raise ValueError(f"{name}: found no weight_map; allowed: the name of a file for every weight")
    try:
        return [find_file(directory, name), *(find_file(directory, part) for part in sorted(set(places.values())))]
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def is_pickled(weights: list[Path]) -> bool:
    """Whether some of the files are pickles, which are programs."""
    return any(path.suffix == PICKLE_SUFFIX for path in weights)


def read_number(directory: Path, name: str) -> float | None:
    """Return a parameter of one number, None where the weights have none of this name; nothing in a pickle runs.

    Raises ValueError where the files cannot be read.
    """
    for path in list_weights(directory):
        try:
            if path.suffix == ".safetensors":
                with safe_open(path, "pt") as tensors:
                    found = tensors.get_tensor(name) if name in tensors.keys() else None  # noqa: SIM118  # no mapping
            elif path.suffix == PICKLE_SUFFIX:
                found = torch.load(path, map_location="cpu", weights_only=True, mmap=False).get(name)
            else:
                continue
            if found is not None:
                return float(found.reshape(-1)[0])
        except Exception as error:  # whatever a damaged file makes the libraries stumble over
            raise ValueError(f"{path.name}: cannot be read ({type(error).__name__}: {error})") from None
    return None
