"""The ways in which libraries write the weights of a directory of Hugging Face: in parts, as pickles, in halves."""

import json
from pathlib import Path
from typing import Any

import torch


def save_in_parts(directory: Path, model: Any) -> None:
    (directory / "model.safetensors").unlink()
    model.save_pretrained(directory, max_shard_size="20KB")
    assert (directory / "model.safetensors.index.json").is_file()


def save_pickled(directory: Path, model: Any) -> None:
    (directory / "model.safetensors").unlink()
    torch.save(model.state_dict(), directory / "pytorch_model.bin")


def save_pickled_in_parts(directory: Path, model: Any) -> None:
    (directory / "model.safetensors").unlink()
    names = list(model.state_dict())
    places = {name: f"pytorch_model-0000{1 + index % 2}-of-00002.bin" for index, name in enumerate(names)}
    for place in set(places.values()):
        torch.save({name: model.state_dict()[name] for name in names if places[name] == place}, directory / place)
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def save_in_halves(directory: Path, model: Any) -> None:
    model.bfloat16().save_pretrained(directory)
    model.float()
