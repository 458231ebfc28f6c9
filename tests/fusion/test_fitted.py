"""The two files of a fitted fusion: what is written is read again, and what no longer fits is refused."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from tests.fusions import EXAMPLES, Example, example_head
from twinfer_server.errors import InvalidEnsemble
from twinfer_server.fusion import FITTED_FILE, Fitted, build_fusion, read_fitted, use_fitted, write_fitted

DIGESTS = {"left": hashlib.sha256(b"left").hexdigest(), "right": ""}
FITTED = Fitted("log_opinion_pool", DIGESTS, {"left": 0.7, "right": 0.3}, {"left": 1.25, "right": 0.8}, gate=0.9, sharpness=0.5)
SPEC = Example("log_opinion_pool", "classification").spec


def change(folder: Path, **keys: Any) -> None:
    document = json.loads((folder / FITTED_FILE).read_text()) | keys
    (folder / FITTED_FILE).write_text(json.dumps(document))


@pytest.mark.parametrize(
    "fitted", [FITTED, example_head(), example_head(hidden=4)], ids=["a pool", "a linear head", "a hidden layer"]
)
def test_what_is_written_is_read_again(fitted: Fitted, tmp_path: Path) -> None:
    write_fitted(tmp_path, fitted)
    found = read_fitted(tmp_path, Example(fitted.method, "classification").spec, fitted.digests)
    assert vars_of(found) == vars_of(fitted)
    assert set(found.tensors) == set(fitted.tensors)
    assert all(torch.equal(found.tensors[name], fitted.tensors[name]) for name in fitted.tensors)


def vars_of(fitted: Fitted) -> dict[str, Any]:
    return {name: getattr(fitted, name) for name in Fitted.__dataclass_fields__ if name != "tensors"}


@given(
    weights=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    temperatures=st.tuples(st.floats(0.001, 1000), st.floats(0.001, 1000)),
    gate=st.none() | st.floats(0, 1),
)
def test_numbers_survive_to_the_last_bit(
    tmp_path_factory: pytest.TempPathFactory, weights: tuple[float, float], temperatures: tuple[float, float], gate: float | None
) -> None:
    folder = tmp_path_factory.mktemp("fitted")
    fitted = replace(
        FITTED,
        weights=dict(zip(DIGESTS, weights, strict=True)),
        temperatures=dict(zip(DIGESTS, temperatures, strict=True)),
        gate=gate,
    )
    write_fitted(folder, fitted)
    assert vars_of(read_fitted(folder, SPEC, DIGESTS)) == vars_of(fitted)


def test_the_file_can_be_read_by_eye_and_the_tensors_by_anyone(tmp_path: Path) -> None:
    write_fitted(tmp_path, FITTED)
    document = json.loads((tmp_path / "fusion.json").read_text())
    digest = hashlib.sha256((tmp_path / "fusion.safetensors").read_bytes()).hexdigest()
    assert document == {
        "format": 1,
        "method": "log_opinion_pool",
        "digests": DIGESTS,
        "weights": {"left": 0.7, "right": 0.3},
        "temperatures": {"left": 1.25, "right": 0.8},
        "hidden": 0,
        "gate": 0.9,
        "sharpness": 0.5,
        "tensors": {"file": "fusion.safetensors", "sha256": digest},
    }
    tensors = load_file(tmp_path / "fusion.safetensors")
    assert {name: tensor.tolist() for name, tensor in tensors.items()} == {"weights": [0.7, 0.3], "temperatures": [1.25, 0.8]}


def test_the_file_may_have_another_name(tmp_path: Path) -> None:
    write_fitted(tmp_path, FITTED)
    (tmp_path / FITTED_FILE).rename(tmp_path / "other.json")
    spec = SPEC.model_copy(update={"fusion": SPEC.fusion.model_copy(update={"fitted": "other.json"})})
    assert read_fitted(tmp_path, spec, DIGESTS).gate == 0.9


def test_a_stale_fusion_says_which_member_changed(tmp_path: Path) -> None:
    write_fitted(tmp_path, FITTED)
    now = hashlib.sha256(b"another").hexdigest()
    with pytest.raises(InvalidEnsemble) as refusal:
        read_fitted(tmp_path, SPEC, DIGESTS | {"left": now})
    assert str(refusal.value) == (
        f"{tmp_path / FITTED_FILE}: digests.left: fitted to a model with sha256 {DIGESTS['left']}, but the member 'left' has now "
        f"{now}; fit again, or remove fitted from [fusion]"
    )


def test_tensors_of_another_fit_are_refused(tmp_path: Path) -> None:
    write_fitted(tmp_path, FITTED)
    content = (tmp_path / "fusion.safetensors").read_bytes()
    write_fitted(tmp_path, replace(FITTED, gate=0.5, temperatures={"left": 2.0}))
    (tmp_path / "fusion.safetensors").write_bytes(content)
    with pytest.raises(InvalidEnsemble, match=r"fusion\.safetensors is not the file that was written with it; fit again"):
        read_fitted(tmp_path, SPEC, DIGESTS)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        pytest.param({"format": 2}, "format: found '2'; allowed: Input should be 1", id="another format"),
        pytest.param({"gate": 2.0}, "gate: found '2.0'", id="a gate that is no probability"),
        pytest.param({"weights": {"left": "0.5"}}, "weights.left: found '0.5'", id="a number written as text"),
        pytest.param({"more": 1}, "more: found '1'; allowed: Extra inputs are not permitted", id="a key that nobody knows"),
        pytest.param({"temperatures": {"left": 0.0}}, "temperatures.left: found '0.0'", id="a temperature of 0"),
        pytest.param({"weights": {"left": 0.5, "right": 0.5}}, "weights: other numbers than", id="weights edited by hand"),
        pytest.param({"method": "maximum"}, "was fitted for 'maximum'; allowed: the same method", id="another method"),
        pytest.param({"digests": {"left": ""}}, "fitted to the members ['left']; allowed: ['left', 'right']", id="other members"),
        pytest.param({"weights": {"third": 1.0}}, "names ['third']; allowed: ['left', 'right']", id="a weight of nobody"),
        pytest.param({"tensors": {"file": "../x", "sha256": "0" * 64}}, "tensors.file: found '../x'", id="a path that leaves"),
        pytest.param({"tensors": {"file": "none.safetensors", "sha256": "0" * 64}}, "cannot be read", id="tensors that are gone"),
    ],
)
def test_a_file_that_is_no_good_is_refused(keys: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_fitted(tmp_path, FITTED)
    change(tmp_path, **keys)
    with pytest.raises(InvalidEnsemble) as refusal:
        read_fitted(tmp_path, SPEC, DIGESTS)
    assert message in str(refusal.value)
    assert "fit again, or remove fitted from [fusion]" in str(refusal.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
def test_what_is_no_json_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / FITTED_FILE).write_bytes(content)
    with pytest.raises(InvalidEnsemble, match=r"fusion\.json: the whole: found"):
        read_fitted(tmp_path, SPEC, DIGESTS)


def test_a_folder_without_the_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidEnsemble, match=r"fusion\.json: cannot be read"):
        read_fitted(tmp_path, SPEC, DIGESTS)


def test_fitted_numbers_count_where_the_spec_has_none() -> None:
    assert use_fitted(SPEC, None) is SPEC
    assert use_fitted(SPEC, FITTED).member_weights() == [0.7, 0.3]
    own = Example("log_opinion_pool", "classification", options={"weights": {"left": 1.0, "right": 1.0}}).spec
    assert use_fitted(own, FITTED).member_weights() == [0.5, 0.5]
    assert use_fitted(own, FITTED).fusion.temperatures == FITTED.temperatures


def test_a_fusion_is_built_with_what_was_fitted() -> None:
    state = build_fusion(SPEC, [(5,), (5,)], FITTED).state_dict()
    torch.testing.assert_close(state["temperatures"], torch.tensor([1.25, 0.8]))
    assert state["sharpness"] == 0.5
    assert set(EXAMPLES["stacking for classification"].build().state_dict()) == {"temperatures", "head.out.weight", "head.out.bias"}
