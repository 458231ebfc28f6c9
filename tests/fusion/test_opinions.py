"""Opinions, calibrated and put together: temperatures, labels as questions of their own, and the stacking head."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from scipy.special import erf, expit, log_softmax, logit, softmax

from tests.fusions import Example, draw_weights, example_head
from twinfer_server.fusion import StackingHead, sharpen
from twinfer_server.fusion.pools import measure_disagreement
from twinfer_server.spec import Task

LOGITS = st.floats(-15, 15, width=32)
TEMPERATURES = {"left": 2.0, "right": 0.5}
WARMTH = np.array([2.0, 0.5])[:, None, None]
PROBABILITIES = ("probabilities", "probabilities")
Floats = NDArray[np.float64]


def draw_requests(data: st.DataObject, outputs: int) -> tuple[NDArray[np.float32], torch.Tensor, torch.Tensor]:
    """Draw logits [2, requests, outputs], NaN where absent, weights that sum to 1, and presence."""
    requests = data.draw(st.integers(1, 4))
    logits = data.draw(arrays.arrays(np.float32, (2, requests, outputs), elements=LOGITS))
    weights = draw_weights(data, requests, 2)
    logits[weights.numpy().T == 0] = np.nan
    return logits, weights, (weights > 0).to(torch.int32)


def pool_labels(method: str, chances: Floats, weights: Floats) -> Floats:
    """Pool the chances of one request's present members, [members, labels], label by label."""
    if method == "weighted_mean":
        return np.asarray(weights @ chances)
    if method == "log_opinion_pool":
        return np.asarray(expit(weights @ logit(chances)))
    most, least = chances.max(0), (1 - chances).max(0)
    return np.asarray(most / (most + least))


@pytest.mark.parametrize("method", ["weighted_mean", "log_opinion_pool", "maximum"])
@given(data=st.data(), labels=st.integers(1, 4))
def test_every_label_is_pooled_by_itself(method: str, data: st.DataObject, labels: int) -> None:
    logits, weights, samples = draw_requests(data, labels)
    example = Example(method, "multi_label", ((labels,),) * 2, options={"temperatures": TEMPERATURES})
    fused = example.fuse(list(torch.from_numpy(logits)), weights, samples)
    chances = expit(logits.astype(np.float64) / WARMTH)
    for request, (found, shares) in enumerate(zip(fused.prediction.numpy(), weights.double().numpy(), strict=True)):
        kept = shares > 0
        expected = pool_labels(method, chances[kept, request], shares[kept]) if kept.any() else np.full(labels, 0.5)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_labels_disagree_by_the_mean_of_their_disagreements() -> None:
    logits = [torch.tensor([[50.0, 0.0]]), torch.tensor([[-50.0, 0.0]])]
    fused = Example("weighted_mean", "multi_label", ((2,), (2,))).fuse(logits)
    torch.testing.assert_close(fused.disagreement, torch.tensor([0.5]))


def test_chances_past_the_edge_are_at_the_edge_by_rounding_and_not_finite_by_more() -> None:
    chances = torch.tensor([[0.0, 1.0], [1.0 + 2e-7, -1e-8], [1.009, -0.009], [torch.nan, 0.5], [0.5, 1.5], [0.5, -0.5]])
    fused = Example("weighted_mean", "multi_label", ((2,), (2,)), PROBABILITIES).fuse([chances, torch.full((6, 2), 0.5)])
    assert fused.present.tolist() == [[True, True]] * 3 + [[False, True]] * 3
    expected = torch.tensor([[0.25, 0.75], [0.75, 0.25], [0.75, 0.25], [0.5, 0.5], [0.5, 0.5], [0.5, 0.5]])
    torch.testing.assert_close(fused.prediction, expected)


@given(data=st.data())
def test_temperatures_divide_the_logits(data: st.DataObject) -> None:
    logits, weights, samples = draw_requests(data, 4)
    example = Example("log_opinion_pool", "classification", ((4,), (4,)), options={"temperatures": TEMPERATURES})
    fused = example.fuse(list(torch.from_numpy(logits)), weights, samples)
    cooled = logits.astype(np.float64) / WARMTH
    for request, shares in enumerate(weights.double().numpy()):
        kept = shares > 0
        expected = softmax(shares[kept] @ cooled[kept, request]) if kept.any() else np.full(4, 0.25)
        np.testing.assert_allclose(fused.prediction[request], expected, rtol=1e-4, atol=1e-6)
    expected_apart = measure_disagreement(torch.from_numpy(cooled).float(), weights)
    torch.testing.assert_close(fused.disagreement, expected_apart, equal_nan=True)


@pytest.mark.parametrize(
    ("task", "kind", "output", "expected"),
    [
        pytest.param("classification", "logits", [4.0, 0.0], softmax([2.0, 0.0]), id="logits of classes"),
        pytest.param("classification", "probabilities", [0.9, 0.1], [0.75, 0.25], id="probabilities of classes"),
        pytest.param("multi_label", "logits", [4.0], [expit(2.0)], id="a logit of a label"),
    ],
)
def test_a_members_own_prediction_is_calibrated(task: Task, kind: str, output: list[float], expected: list[float]) -> None:
    shape = (len(output),)
    fusion = Example("weighted_mean", task, (shape, shape), (kind, kind), {"temperatures": {"left": 2.0}}).build()
    np.testing.assert_allclose(fusion.member_prediction(0, torch.tensor([output])), [expected], rtol=1e-5)
    logits = torch.tensor([output]).log() if kind == "probabilities" else torch.tensor([output])
    answers = logits.sigmoid() if task == "multi_label" else logits.softmax(-1)
    torch.testing.assert_close(fusion.member_prediction(1, torch.tensor([output])), answers)  # it has no temperature


@pytest.mark.parametrize("task", ["classification", "multi_label"])
def test_a_fitted_pool_is_sharpened(task: Task) -> None:
    example = Example("log_opinion_pool", task, ((2,), (2,)))
    fitted = replace(example_head(), method="log_opinion_pool", tensors={}, temperatures={}, sharpness=1.0)
    logits = [torch.tensor([[1.0, -1.0]]), torch.tensor([[0.5, 0.5]])]
    fused = replace(example, fitted=fitted).fuse(logits)
    total = logits[0] + logits[1]  # equal weights and sharpness 1 are the product of the distributions
    torch.testing.assert_close(fused.prediction, total.sigmoid() if task == "multi_label" else total.softmax(-1))
    if task == "classification":
        flat = example.fuse(logits).prediction.log()
        torch.testing.assert_close(fused.prediction, sharpen(flat, torch.tensor([[0.5, 0.5]]), torch.tensor(1.0)).exp())


def reference_features(logits: Floats, present: NDArray[np.bool_], *, is_multi_label: bool) -> Floats:
    """Write out one request's opinions, [members, outputs], as the head takes them."""
    opinions = np.clip(logits, -20, 20) if is_multi_label else np.maximum(log_softmax(logits, axis=-1), -20)
    return np.concatenate([*np.where(present[:, None], opinions, 0.0), present.astype(np.float64)])


def reference_head(features: Floats, head: StackingHead) -> Floats:
    weight, bias = (parameter.double().numpy() for parameter in head.out.parameters())
    if head.hidden is not None:
        inner, offset = (parameter.double().numpy() for parameter in head.hidden.parameters())
        inside = inner @ features + offset
        features = inside * (1 + erf(inside / math.sqrt(2))) / 2
    return np.asarray(weight @ features + bias)


@pytest.mark.parametrize("task", ["classification", "multi_label"])
@pytest.mark.parametrize("hidden", [0, 7], ids=["linear", "a hidden layer"])
@given(data=st.data())
def test_the_head_equals_the_plain_reference(task: Task, hidden: int, data: st.DataObject) -> None:
    logits, weights, samples = draw_requests(data, 5)
    fitted = example_head(hidden=hidden)
    head = StackingHead(2, 5, hidden).requires_grad_(requires_grad=False)
    head.load_state_dict(dict(fitted.tensors))
    fused = Example("stacking", task, fitted=fitted).fuse(list(torch.from_numpy(logits)), weights, samples)
    for request, present in enumerate(samples.numpy() > 0):
        calibrated = logits[:, request].astype(np.float64) / WARMTH[:, 0]
        features = reference_features(calibrated, present, is_multi_label=task == "multi_label")
        fused_logits = reference_head(features, head)
        expected = expit(fused_logits) if task == "multi_label" else softmax(fused_logits)
        np.testing.assert_allclose(fused.prediction[request], expected, rtol=1e-4, atol=1e-6)


def test_a_member_without_weight_is_absent_to_the_head() -> None:
    example = Example("stacking", "classification", fitted=example_head())
    outputs = [torch.randn(1, 5, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    alone = example.fuse(outputs, torch.tensor([[1.0, 1.0]]), torch.tensor([[1, 0]]))
    torch.testing.assert_close(example.fuse(outputs, torch.tensor([[1.0, 0.0]])).prediction, alone.prediction)
