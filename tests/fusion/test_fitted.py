"""The file of a fitted fusion: what is written is read again, and what no longer fits is refused."""

import hashlib
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tests.fusions import Example, example_head
from twinfer_server.errors import InvalidEnsemble
from twinfer_server.fusion import FITTED_FILE, Fitted, read_fitted, read_fitted_method, use_fitted, write_fitted

DIGESTS = {"left": hashlib.sha256(b"left").hexdigest(), "right": ""}
FITTED = Fitted("log_opinion_pool", DIGESTS, {"left": 0.7, "right": 0.3}, {"left": 1.25, "right": 0.8}, gate=0.9, sharpness=0.5)
SPEC = Example("log_opinion_pool", "classification").spec
REMEDY = "fit again, or remove fitted from [fusion]"


def vars_of(fitted: Fitted) -> dict[str, Any]:
    return {one.name: getattr(fitted, one.name) for one in fields(fitted) if one.name != "tensors"}


def read_metadata(folder: Path) -> dict[str, str]:
    with safe_open(folder / FITTED_FILE, "pt") as file:
        metadata: dict[str, str] = file.metadata()
    return metadata


@pytest.mark.parametrize(
    "fitted", [FITTED, example_head(), example_head(hidden=4)], ids=["a pool", "a linear head", "a hidden layer"]
)
def test_what_is_written_is_read_again(fitted: Fitted, tmp_path: Path) -> None:
    write_fitted(tmp_path, example_head(seed=1))  # a file that stands there is replaced
    write_fitted(tmp_path, fitted)
    found = read_fitted(tmp_path, Example(fitted.method, "classification").spec, fitted.digests)
    assert vars_of(found) == vars_of(fitted)
    assert set(found.tensors) == set(fitted.tensors)
    assert all(torch.equal(found.tensors[name], fitted.tensors[name]) for name in fitted.tensors)
    assert read_fitted_method(tmp_path) == fitted.method
    assert [path.name for path in tmp_path.iterdir()] == [FITTED_FILE]


def test_any_reader_of_safetensors_finds_the_numbers_in_the_metadata_and_the_same_fit_writes_the_same_bytes(tmp_path: Path) -> None:
    write_fitted(tmp_path, FITTED)
    [document] = read_metadata(tmp_path).values()
    assert json.loads(document) == vars_of(FITTED)
    content = (tmp_path / FITTED_FILE).read_bytes()
    write_fitted(tmp_path, FITTED)
    assert (tmp_path / FITTED_FILE).read_bytes() == content


def test_the_file_may_have_another_name(tmp_path: Path) -> None:
    write_fitted(tmp_path, FITTED)
    (tmp_path / FITTED_FILE).rename(tmp_path / "other.safetensors")
    spec = SPEC.model_copy(update={"fusion": SPEC.fusion.model_copy(update={"fitted": "other.safetensors"})})
    assert read_fitted(tmp_path, spec, DIGESTS).gate == 0.9


def test_a_stale_fusion_says_which_member_changed(tmp_path: Path) -> None:
    write_fitted(tmp_path, FITTED)
    now = hashlib.sha256(b"another").hexdigest()
    with pytest.raises(InvalidEnsemble) as refusal:
        read_fitted(tmp_path, SPEC, DIGESTS | {"left": now})
    assert str(refusal.value) == (
        f"{tmp_path / FITTED_FILE}: digests.left: fitted to a model with sha256 {DIGESTS['left']}, but the member 'left' has now "
        f"{now}; {REMEDY}"
    )


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        pytest.param({"gate": 2.0}, "gate: found '2.0'", id="a gate that is no probability"),
        pytest.param({"weights": {"left": "0.5"}}, "weights.left: found '0.5'", id="a number written as text"),
        pytest.param({"more": 1}, "more: found '1'; allowed: Unexpected keyword argument", id="a key of no use"),
        pytest.param({"temperatures": {"left": 0.0}}, "temperatures.left: found '0.0'", id="a temperature of 0"),
        pytest.param({"digests": {"left": "0"}}, "digests.left: found '0'; allowed: String should match", id="no digest"),
        pytest.param({"method": "maximum"}, "was fitted for 'maximum'; allowed: the same method", id="another method"),
        pytest.param(
            {"digests": {"left": ""}}, "digests: found the members ['left']; allowed: ['left', 'right']", id="other members"
        ),
        pytest.param(
            {"weights": {"third": 1.0}}, "weights: found ['third']; allowed: ['left', 'right']", id="a weight of no member"
        ),
    ],
)
def test_numbers_that_are_no_good_are_refused(keys: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_fitted(tmp_path, FITTED)
    [(key, document)] = read_metadata(tmp_path).items()
    save_file({}, tmp_path / FITTED_FILE, {key: json.dumps(json.loads(document) | keys)})
    with pytest.raises(InvalidEnsemble) as refusal:
        read_fitted(tmp_path, SPEC, DIGESTS)
    assert message in str(refusal.value)
    assert REMEDY in str(refusal.value)


@pytest.mark.parametrize("content", [b"", b"{}", b'{"method": "maximum"}', b"\xff" * 99], ids=["nothing", "JSON", "more", "bytes"])
def test_what_is_no_safetensors_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / FITTED_FILE).write_bytes(content)
    with pytest.raises(InvalidEnsemble, match=r"fusion\.safetensors: cannot be read: .*; fit again"):
        read_fitted(tmp_path, SPEC, DIGESTS)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"twinfer_fusion_1": "[]"}], ids=["none", "another's", "no object"])
def test_tensors_without_the_numbers_are_refused(metadata: dict[str, str] | None, tmp_path: Path) -> None:
    save_file({"weight": torch.ones(2)}, tmp_path / FITTED_FILE, metadata)
    with pytest.raises(InvalidEnsemble, match=r"fusion\.safetensors: twinfer_fusion_1: found .*; allowed: .*; fit again"):
        read_fitted(tmp_path, SPEC, DIGESTS)


def test_a_folder_without_the_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidEnsemble, match=r"fusion\.safetensors: no such file"):
        read_fitted(tmp_path, SPEC, DIGESTS)
    with pytest.raises(InvalidEnsemble, match=r"fusion\.safetensors: no such file; `twinfer fit` writes it"):
        read_fitted_method(tmp_path)


def test_fitted_numbers_count_where_the_spec_has_none() -> None:
    assert use_fitted(SPEC, None) is SPEC
    assert use_fitted(SPEC, FITTED).member_weights() == [0.7, 0.3]
    own = Example("log_opinion_pool", "classification", options={"weights": {"left": 1.0, "right": 1.0}}).spec
    assert use_fitted(own, FITTED).member_weights() == [0.5, 0.5]
    assert use_fitted(own, FITTED).fusion.temperatures == FITTED.temperatures
