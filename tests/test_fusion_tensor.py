"""The mean of tensors, and the projection of concatenated embeddings."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.torch import save_file

from tests.fusions import Example
from twinfer_server.errors import InvalidEnsemble
from twinfer_server.fusion import Fused, build_fusion, concatenation, mean_tensor, renormalise


@given(data=st.data(), rows=st.integers(1, 4), members=st.integers(1, 3), shape=st.lists(st.integers(1, 3), max_size=3))
def test_equals_the_plain_reference_over_the_present_members(
    data: st.DataObject, rows: int, members: int, shape: list[int]
) -> None:
    values = data.draw(arrays.arrays(np.float32, (members, rows, *shape), elements=st.floats(-1e6, 1e6, width=32)))
    shares = data.draw(arrays.arrays(np.float32, (rows, members), elements=st.floats(0.0009765625, 1, width=32)))
    present = data.draw(arrays.arrays(np.bool_, (rows, members)))
    weights = renormalise(torch.from_numpy(shares), torch.from_numpy(present))
    expected = np.einsum("rm,mr...->r...", weights.double().numpy(), values.astype(np.float64))
    values[~present.T] = np.nan
    found = mean_tensor(list(torch.from_numpy(values)), weights)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=0.5)


@pytest.mark.parametrize("shapes", [((2, 3), (3, 2)), ((0,), (0,))], ids=["different shapes", "nothing in them"])
def test_tensors_that_have_no_mean_are_refused(shapes: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(InvalidEnsemble, match=r"members: found outputs of shapes .* allowed: the same shape for all, not empty"):
        Example("weighted_mean", "tensor", shapes).build()


def test_a_single_number_is_a_tensor() -> None:
    fusion = Example("weighted_mean", "tensor", ((), ())).build()
    fused: Fused = fusion([torch.tensor([1.0]), torch.tensor([4.0])], torch.tensor([[2.0, 1.0]]), torch.tensor([[1, 1]]))
    assert fused.prediction.tolist() == [2.0]
    assert fusion.belief(0, torch.tensor([1.0])).tolist() == [1.0]


def test_a_tensor_has_no_temperature() -> None:
    with pytest.raises(InvalidEnsemble, match=r"fusion\.temperatures: found .* takes no temperatures"):
        Example("weighted_mean", "tensor", options={"temperatures": {"left": 2.0}}).build()


@pytest.mark.parametrize("has_bias", [True, False], ids=["with a bias", "without a bias"])
def test_concatenated_embeddings_are_projected(has_bias: bool, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {"weight": torch.randn(4, 5, generator=generator)} | ({"bias": torch.ones(4)} if has_bias else {})
    save_file(tensors, tmp_path / "projection.safetensors")
    fusion = build(tmp_path)
    outputs = [torch.randn(3, size, generator=generator) for size in (2, 3)]
    weights = torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.2, 0.8]])
    fused: Fused = fusion(outputs, weights, torch.ones(3, 2, dtype=torch.int32))
    expected = concatenation(outputs, weights).double() @ tensors["weight"].double().T + tensors.get("bias", torch.zeros(4))
    torch.testing.assert_close(fused.prediction, expected.float())
    assert set(fusion.state_dict()) == set(tensors)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        pytest.param({"weight": torch.ones(4, 6)}, r"weight \[out, 5\], for the members' 5 features", id="other features"),
        pytest.param({"weight": torch.ones(4, 5), "bias": torch.ones(5)}, r"bias \[out\] or none", id="a bias that does not fit"),
        pytest.param({"bias": torch.ones(4)}, "has {'bias': ", id="no weight"),
        pytest.param({"weight": torch.ones(4, 5), "more": torch.ones(1)}, "'more'", id="a tensor that nobody knows"),
    ],
)
def test_a_projection_that_does_not_fit_is_refused(tensors: dict[str, torch.Tensor], message: str, tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "projection.safetensors")
    with pytest.raises(InvalidEnsemble, match=message):
        build(tmp_path)


def test_a_projection_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "projection.safetensors").write_bytes(b"no tensors")
    with pytest.raises(InvalidEnsemble, match=r"fusion\.projection: "):
        build(tmp_path)


def build(folder: Path) -> torch.nn.Module:
    """Build a concatenation of 2 and 3 features with the projection that lies in the folder."""
    spec = Example("concatenation", "embedding", ((2,), (3,))).spec
    spec = spec.model_copy(update={"fusion": spec.fusion.model_copy(update={"projection": "projection.safetensors"})})
    return build_fusion(spec, [(2,), (3,)], folder=folder)
