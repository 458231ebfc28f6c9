"""The request processor: each input is decoded once, and every member whose inputs are there gets its samples."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from tests.pictures import encode, make_kind
from twinfer_server.errors import InvalidInput, MissingInput
from twinfer_server.inputs import InputKind, InputLimits, RequestProcessor, UpstreamInput, make_input
from twinfer_server.spec import EnsembleSpec, UpstreamInputSpec
from twinfer_server.types import InferRequest, RawInput

PIXELS = np.zeros((4, 4, 3), np.uint8)
NUMBERS = {"kind": "tensor", "dtype": "float32", "shape": [2], "max_samples": 4}
MANY = {"kind": "tensor", "dtype": "int64", "shape": [100_000]}
SMALL, TALL, WIDE = ({"kind": "image", "size": size} for size in ([28, 28], [112, 20], [20, 168]))


def make(**members: Mapping[str, Mapping[str, Any]]) -> RequestProcessor:
    """Make the processor of members that take these inputs."""
    names, inputs = list(members), []
    tables = {name: {"model": "m.pt2", "input": given} for name, given in members.items()}
    document = {"name": "e", "version": 1, "task": "classification", "members": tables, "fusion": {"method": "weighted_mean"}}
    spec = EnsembleSpec.model_validate(document, context={"folder": Path()})
    for member, member_spec in spec.members.items():
        kinds: list[InputKind[Any] | UpstreamInput] = []
        for name, kind in member_spec.input.items():
            if isinstance(kind, UpstreamInputSpec):
                kinds.append(UpstreamInput(name, names.index(kind.member), kind.select, (3,), 4))
            else:
                kinds.append(make_input(member, name, kind, Path(), InputLimits(), torch.device("cpu")))
        inputs.append(kinds)
    return RequestProcessor(spec, inputs)


def output(member: str) -> dict[str, str]:
    """Return the table of an input that is an output of `member`."""
    return {"kind": "output", "member": member}


def ask(**inputs: RawInput) -> InferRequest:
    return InferRequest(inputs, arrived_at=0.0)


def test_a_picture_is_decoded_once_for_the_most_demanding_of_its_members() -> None:
    content = encode(Image.fromarray(load_sample_image("flower.jpg")), "JPEG")
    samples = make(small={"image": SMALL}, tall={"image": TALL}, wide={"image": WIDE}).prepare(ask(image=content))
    half = make_kind(size=(28, 28)).decode(content, (213, 320))
    assert half.scale == 2
    for index, table in enumerate((SMALL, TALL, WIDE)):
        assert np.array_equal(samples[index][0], make_kind(size=table["size"]).prepare(half)[0])  # type: ignore[arg-type]


def test_a_member_takes_part_only_if_all_its_inputs_are_there() -> None:
    processor = make(one={"x": NUMBERS}, both={"x": NUMBERS, "y": NUMBERS})
    value = np.ones(2, np.float32)
    assert set(processor.prepare(ask(x=value))) == {0}
    assert set(processor.prepare(ask(x=value, y=value))) == {0, 1}
    with pytest.raises(MissingInput, match=r"no member has all its inputs; found \['y'\], allowed: all of a member's"):
        processor.prepare(ask(y=value))


def test_an_upstream_members_output_is_one_sample_for_each_of_that_members() -> None:
    processor = make(first={"x": NUMBERS}, second={"features": output("first")}, third={"features": output("second")})
    samples = processor.prepare(ask(x=np.ones((3, 2), np.float32)))
    assert {index: len(arrays[0]) for index, arrays in samples.items()} == {0: 3, 1: 3, 2: 3}
    assert samples[1][0].size == 0


def test_what_comes_from_upstream_is_missing_with_its_member_and_counts_beside_other_inputs() -> None:
    processor = make(first={"x": NUMBERS}, second={"features": output("first"), "y": NUMBERS})
    two, three = np.ones((2, 2), np.float32), np.ones((3, 2), np.float32)
    assert set(processor.prepare(ask(x=two, y=two))) == {0, 1}
    with pytest.raises(MissingInput, match="no member has all its inputs"):
        processor.prepare(ask(y=two))
    with pytest.raises(InvalidInput, match=r"found {'features': 2, 'y': 3} samples for member 'second'; allowed: as many of each"):
        processor.prepare(ask(x=two, y=three))


@pytest.mark.parametrize(
    ("value", "is_light"),
    [
        pytest.param({"x": np.ones(2, np.float32)}, True, id="a small tensor"),
        pytest.param({"x": np.ones(2, np.float32), "many": np.zeros(100_000, np.int64)}, False, id="a large tensor"),
        pytest.param({"image": PIXELS}, False, id="pixels to be resized"),
        pytest.param({"image": b"\xff\xd8"}, False, id="an encoded image"),
    ],
)
def test_only_small_ready_tensors_are_light(value: Mapping[str, RawInput], is_light: bool) -> None:
    processor = make(one={"x": NUMBERS}, two={"many": MANY}, three={"image": SMALL})
    assert processor.is_light(ask(**value)) is is_light
