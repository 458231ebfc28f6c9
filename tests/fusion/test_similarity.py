"""Similarities: cosines and probabilities of the samples that a request brings, or of the texts that the ensemble brings."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.distance import cosine
from scipy.special import expit, softmax

from tests.fusions import BOTH, EQUAL, Example
from twinfer_server.errors import InvalidEnsemble
from twinfer_server.fusion import Fusion, FusionResult, build_fusion
from twinfer_server.fusion.similarity import measure_cosines

FEATURES = 4
MATCH = Example("cosine", "similarity", ((FEATURES,), (FEATURES,)), several=3, options={"scale": 7.0, "bias": -0.5})
Floats = NDArray[np.float64]


def with_texts(example: Example, texts: torch.Tensor) -> Fusion:
    spec = example.spec
    spec = spec.model_copy(update={"fusion": spec.fusion.model_copy(update={"texts": "texts.txt"})})
    return build_fusion(spec, example.shapes, cached_texts=texts)


def reference(query: Floats, compared: Floats, activation: str) -> Floats:
    """Give one request's cosines and probabilities, [compared, 2]."""
    cosines = np.array([1 - cosine(query, one) for one in compared])
    logits = 7.0 * cosines - 0.5
    return np.stack([cosines, softmax(logits) if activation == "softmax" else expit(logits)], axis=-1)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("texts", [0, 2, 5], ids=["no cached texts", "fewer cached texts", "more cached texts"])
@given(seed=st.integers(0, 10_000), requests=st.integers(1, 4), most=st.integers(1, 4))
def test_equals_the_plain_reference(activation: str, texts: int, seed: int, requests: int, most: int) -> None:
    random = np.random.default_rng(seed)
    query, compared = random.standard_normal((requests, FEATURES)), random.standard_normal((requests, most, FEATURES))
    cached = random.standard_normal((texts, FEATURES)).astype(np.float32)
    counts = random.integers(0, most + 1, requests)
    is_there = random.random(requests) < 0.8
    options = {**MATCH.options, "activation": activation}
    example = replace(MATCH, options=options)
    fusion = with_texts(example, torch.from_numpy(cached)) if texts else example.build()
    for request, count in enumerate(counts):
        compared[request, count:] = np.nan
    query[~is_there] = np.nan
    samples = torch.from_numpy(np.stack([is_there, counts], axis=-1).astype(np.int32))
    outputs = [torch.from_numpy(query).float(), torch.from_numpy(compared).float()]
    fused: FusionResult = fusion(outputs, EQUAL.expand(requests, 2), samples)
    expected = np.zeros((requests, max(most, texts), 2))
    for request, count in enumerate(counts):
        others = compared[request, :count] if count else cached.astype(np.float64)
        if is_there[request] and len(others):
            expected[request, : len(others)] = reference(query[request], others, activation)
            assert fusion.prediction_length({0: 1, 1: int(count)}) == len(others)
    np.testing.assert_allclose(fused.prediction.numpy(), expected, atol=2e-5)
    assert fused.present.tolist() == np.stack([is_there, counts > 0], axis=-1).tolist()

    order = torch.from_numpy(random.permutation(requests))
    permuted: FusionResult = fusion([output[order] for output in outputs], EQUAL.expand(requests, 2), samples[order])
    torch.testing.assert_close(permuted.prediction, fused.prediction[order])


def test_a_picture_among_three_texts() -> None:
    """CLIP's classification by texts, with its scale of 100: softmax(100 cosine)."""
    image, texts = torch.tensor([[1.0, 0.0]]), torch.tensor([[[2.0, 0.0], [0.0, 3.0], [0.999, 0.0447]]])
    fused = Example("cosine", "similarity", ((2,), (2,)), several=3).fuse([image, texts], samples=3 * BOTH)
    nearly = 0.999 / math.hypot(0.999, 0.0447)
    chances = softmax([100.0, 0.0, 100 * nearly])
    expected = torch.tensor([[[1.0, chances[0]], [0.0, chances[1]], [nearly, chances[2]]]], dtype=torch.float32)
    torch.testing.assert_close(fused.prediction, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("size", [1e-25, 1e25], ids=["squares that underflow", "squares that overflow"])
def test_the_cosine_survives_any_length(size: float) -> None:
    cosines = measure_cosines(torch.tensor([[3.0, 4.0]]) * size, torch.tensor([[[4.0, 3.0], [3.0, 4.0]]]) / size)
    torch.testing.assert_close(cosines, torch.tensor([[0.96, 1.0]]))


def test_a_zero_vector_is_like_nothing() -> None:
    assert measure_cosines(torch.zeros(1, 2), torch.ones(3, 2)).tolist() == [[0.0, 0.0, 0.0]]


def test_the_query_may_be_the_second_member() -> None:
    example = Example("cosine", "similarity", ((2,), (2,)), options={"query": "right"})
    fusion = example.build()
    fused = example.fuse([torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]), torch.tensor([[0.0, 1.0]])], samples=torch.tensor([[2, 1]]))
    assert fused.prediction[..., 0].tolist() == [[0.0, 1.0]]
    assert fusion.needs == {0, 1}
    assert fusion.prediction_length({0: 2, 1: 1}) == 2


def test_texts_of_the_ensemble_make_do_without_the_other_member() -> None:
    fusion = with_texts(MATCH, torch.eye(FEATURES))
    assert fusion.needs == {0}
    assert fusion.prediction_length({0: 1}) == FEATURES
    assert set(fusion.state_dict()) == {"texts"}
    fused: FusionResult = fusion(
        [torch.eye(FEATURES)[:1], torch.full((1, 1, FEATURES), math.nan)], EQUAL, BOTH * torch.tensor([1, 0])
    )
    assert fused.prediction[0, :, 0].tolist() == [1.0, 0.0, 0.0, 0.0]
    assert fused.weights.tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        pytest.param(torch.ones(2, 3), r"embedded as \[2, 3\]; allowed: finite numbers, \[texts, 4\]", id="other features"),
        pytest.param(torch.full((2, FEATURES), math.nan), "allowed: finite numbers", id="NaN"),
    ],
)
def test_texts_that_cannot_be_compared_are_refused(texts: torch.Tensor, message: str) -> None:
    with pytest.raises(InvalidEnsemble, match=message):
        with_texts(MATCH, texts)


def test_texts_that_have_not_been_asked_for_are_refused() -> None:
    with pytest.raises(InvalidEnsemble, match=r"fusion\.texts: found None with embeddings of texts"):
        build_fusion(MATCH.spec, MATCH.shapes, cached_texts=torch.ones(1, FEATURES))
