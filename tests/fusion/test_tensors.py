"""The mean of tensors; and concatenation, of which the cosine is the weighted mean of the members' cosines."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from safetensors.torch import save_file

from tests.fusions import Example, draw_weights
from twinfer_server.errors import InvalidEnsemble
from twinfer_server.fusion import FusionResult, build_fusion
from twinfer_server.fusion.tensors import concatenation, mean_tensor

FEATURES = st.floats(-100, 100, width=32).filter(lambda value: value == 0 or abs(value) > 0.01)


@given(data=st.data(), requests=st.integers(1, 4), members=st.integers(1, 3), shape=st.lists(st.integers(1, 3), max_size=3))
def test_the_mean_equals_the_plain_reference_over_the_present_members(
    data: st.DataObject, requests: int, members: int, shape: list[int]
) -> None:
    values = data.draw(arrays.arrays(np.float32, (members, requests, *shape), elements=st.floats(-1e6, 1e6, width=32)))
    weights = draw_weights(data, requests, members)
    expected = np.einsum("rm,mr...->r...", weights.double().numpy(), values.astype(np.float64))
    values[weights.numpy().T == 0] = np.nan
    found = mean_tensor(list(torch.from_numpy(values)), weights)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=0.5)


def test_a_single_number_is_a_tensor() -> None:
    example = Example("weighted_mean", "tensor", ((), ()))
    fused = example.fuse([torch.tensor([1.0]), torch.tensor([4.0])], torch.tensor([[2.0, 1.0]]))
    assert fused.prediction.tolist() == [2.0]
    assert example.build().member_prediction(0, torch.tensor([1.0])).tolist() == [1.0]


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=-1, keepdims=True)
    return np.asarray(np.divide(vectors, lengths, out=np.zeros(vectors.shape), where=lengths > 0))


@given(data=st.data(), requests=st.integers(1, 5), sizes=st.lists(st.integers(1, 6), min_size=1, max_size=3))
def test_concatenation_equals_the_plain_reference_over_the_present_members(
    data: st.DataObject, requests: int, sizes: list[int]
) -> None:
    embeddings = [data.draw(arrays.arrays(np.float32, (requests, size), elements=FEATURES)) for size in sizes]
    weights = draw_weights(data, requests, len(sizes))
    roots = np.sqrt(weights.double().numpy())
    expected = np.concatenate([roots[:, m, None] * unit(one) for m, one in enumerate(embeddings)], axis=1)
    for member, embedding in enumerate(embeddings):
        embedding[weights[:, member].numpy() == 0] = np.nan
    fused = concatenation([torch.from_numpy(one) for one in embeddings], weights)
    np.testing.assert_allclose(fused.numpy(), expected, atol=1e-6)

    order = data.draw(st.permutations(range(requests)))
    permuted = concatenation([torch.from_numpy(one[order]) for one in embeddings], weights[order])
    torch.testing.assert_close(permuted, fused[order])


@pytest.mark.parametrize("size", [1e-25, 1e25], ids=["squares that underflow", "squares that overflow"])
def test_the_length_survives(size: float) -> None:
    fused = concatenation([torch.tensor([[3.0, 4.0]]) * size], torch.ones(1, 1))
    torch.testing.assert_close(fused, torch.tensor([[0.6, 0.8]]))


def test_a_zero_vector_has_no_direction_and_adds_nothing() -> None:
    fused = concatenation([torch.zeros(1, 2), torch.tensor([[0.0, 7.0]])], torch.tensor([[0.75, 0.25]]))
    torch.testing.assert_close(fused, torch.tensor([[0.0, 0.0, 0.0, 0.5]]))


@pytest.mark.parametrize("has_bias", [True, False], ids=["with a bias", "without a bias"])
def test_concatenated_embeddings_are_projected(has_bias: bool, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {"weight": torch.randn(4, 5, generator=generator)} | ({"bias": torch.ones(4)} if has_bias else {})
    save_file(tensors, tmp_path / "projection.safetensors")
    fusion = build(tmp_path)
    outputs = [torch.randn(3, size, generator=generator) for size in (2, 3)]
    weights = torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.2, 0.8]])
    fused: FusionResult = fusion(outputs, weights, torch.ones(3, 2, dtype=torch.int32))
    expected = concatenation(outputs, weights).double() @ tensors["weight"].double().T + tensors.get("bias", torch.zeros(4))
    torch.testing.assert_close(fused.prediction, expected.float())
    assert set(fusion.state_dict()) == set(tensors)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        pytest.param({"weight": torch.ones(4, 6)}, r"weight \[out, 5\], for the members' 5 features", id="other features"),
        pytest.param({"weight": torch.ones(4, 5), "bias": torch.ones(5)}, r"bias \[out\] or none", id="a bias that does not fit"),
        pytest.param({"bias": torch.ones(4)}, "has {'bias': ", id="no weight"),
        pytest.param({"weight": torch.ones(4, 5), "more": torch.ones(1)}, "'more'", id="a tensor of no use"),
        pytest.param(None, r"fusion\.projection: ", id="a file that cannot be read"),
    ],
)
def test_a_projection_that_does_not_fit_is_refused(tensors: dict[str, torch.Tensor] | None, message: str, tmp_path: Path) -> None:
    (tmp_path / "projection.safetensors").write_bytes(b"no tensors")
    if tensors:
        save_file(tensors, tmp_path / "projection.safetensors")
    with pytest.raises(InvalidEnsemble, match=message):
        build(tmp_path)


def build(folder: Path) -> torch.nn.Module:
    """Build a concatenation of 2 and 3 features with the projection that lies in the folder."""
    spec = Example("concatenation", "embedding", ((2,), (3,))).spec
    spec = spec.model_copy(update={"fusion": spec.fusion.model_copy(update={"projection": "projection.safetensors"})})
    return build_fusion(spec, [(2,), (3,)], folder=folder)
