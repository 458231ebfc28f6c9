"""Outputs: what counts of whatever a model returns."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.models import load_members, register
from tests.servers import write_ensemble
from twinfer_server.errors import InvalidEnsemble
from twinfer_server.executor.output import read_output, select_output
from twinfer_server.spec import MemberSpec

RELATIVE = torch.tensor([[[0.1, 0.2, 0.5, 0.6]]])


def test_outputs_are_found_by_position_by_name_and_as_attributes() -> None:
    one, two = torch.zeros(1), torch.ones(1)
    assert select_output("key", (one, two), 1) is two
    assert select_output("key", {"a": one, "b": two}, "b") is two
    assert select_output("key", {"a": one, "b": two}, 1) is two
    assert select_output("key", SimpleNamespace(logits=two), "logits") is two
    with pytest.raises(InvalidEnsemble, match=r"key: 2 finds no tensor; found outputs 2 of type \['Tensor', 'Tensor'\]"):
        select_output("key", (one, two), 2)


def test_a_detector_without_scores_is_refused_by_name() -> None:
    tensor = {"kind": "tensor", "dtype": "float32", "shape": [1]}
    spec = MemberSpec.model_validate({"model": "python:m:a", "input": {"x": tensor}, "output": {"kind": "detections"}})
    with pytest.raises(InvalidEnsemble, match=r"members\.eye\.output\.scores: 1 finds no tensor"):
        read_output("eye", spec, (RELATIVE,))
    with pytest.raises(InvalidEnsemble, match=r"members\.eye\.output: found boxes"):
        read_output("eye", spec, (RELATIVE, torch.zeros(1, 7)))


def detect(x: Tensor) -> dict[str, Tensor]:
    """Find an object as wide as the image's brightest pixel says, in pixels, and another half as certain."""
    width = x.amax((1, 2, 3)) * 8
    zeros = torch.zeros_like(width)
    box = torch.stack([zeros, zeros, width, zeros + 4], dim=-1)
    return {"boxes": torch.stack([box / 2, box], dim=1), "scores": torch.stack([zeros + 0.4, zeros + 0.8], dim=1)}


def test_a_detectors_boxes_are_packed_where_it_computes(tmp_path: Path) -> None:
    toml = f"""
        name = "eye"
        version = 1
        task = "detection"
        [members.eye]
        model = "{register(lambda: detect)}"
        input.image = {{ kind = "image", size = [4, 8], color = "gray" }}
        output = {{ kind = "detections", select = "boxes", scores = "scores", box_units = "pixels" }}
        [fusion]
        method = "weighted_boxes"
        max_boxes = 5
    """
    [member] = load_members(write_ensemble(tmp_path, toml)).members
    assert member.output_shape == (2, 6)
    with torch.inference_mode():
        [packed] = member.compute_checked([(np.full((1, 4, 8, 1), 255, np.uint8),)])
    torch.testing.assert_close(packed, torch.tensor([[[0.0, 0.0, 1.0, 1.0, 0.8, 0.0], [0.0, 0.0, 0.5, 0.5, 0.4, 0.0]]]))
