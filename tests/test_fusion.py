"""The fusion module: presence, rows that are not finite, output kinds, and what a captured flight asks of it."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from twinfer_server.fusion import METHODS, Fused, Fusion, log_opinion_pool, measure_disagreement

UNTIMED = settings(deadline=None)
"""A busy machine is no failure: torch's first calls and a neighbour's load outlast any deadline."""

CLASSES = 5
EQUAL = torch.tensor([[0.5, 0.5]])
BOTH = torch.tensor([[True, True]])
every_method = pytest.mark.parametrize("name", METHODS)


def build(name: str, *kinds: str) -> Fusion:
    kind = "logits" if METHODS[name].task == "classification" else "embedding"
    return METHODS[name].build(kinds or (kind, kind))  # type: ignore[arg-type]


def make_rows(rows: int, seed: int = 0) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """Make outputs of two members, weights and presence; absent slots hold NaN."""
    generator = torch.Generator().manual_seed(seed)
    outputs = [torch.randn(rows, CLASSES, generator=generator) for _ in range(2)]
    weights = torch.rand(rows, 2, generator=generator)
    present = torch.rand(rows, 2, generator=generator) < 0.7
    for member, output in enumerate(outputs):
        output[~present[:, member]] = math.nan
    return outputs, weights, present


def assert_same(found: Fused, expected: Fused) -> None:
    for field in Fused.__dataclass_fields__:
        torch.testing.assert_close(getattr(found, field), getattr(expected, field), equal_nan=True)


def test_an_answer_holds_prediction_weights_disagreement_and_presence() -> None:
    outputs = [torch.randn(1, CLASSES, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    fused: Fused = build("log_opinion_pool")(outputs, torch.tensor([[3.0, 1.0]]), BOTH)
    shares = torch.tensor([[0.75, 0.25]])
    torch.testing.assert_close(fused.weights, shares)
    torch.testing.assert_close(fused.prediction, log_opinion_pool(torch.stack(outputs), shares).exp())
    torch.testing.assert_close(fused.disagreement, measure_disagreement(torch.stack(outputs), shares))
    assert torch.equal(fused.present, BOTH)


@every_method
@UNTIMED
@given(rows=st.integers(1, 6), seed=st.integers(0, 1000))
def test_a_row_alone_is_the_same_as_in_a_batch(name: str, rows: int, seed: int) -> None:
    fusion = build(name)
    outputs, weights, present = make_rows(rows, seed)
    together: Fused = fusion(outputs, weights, present)
    for row in range(rows):
        one = slice(row, row + 1)
        alone: Fused = fusion([output[one] for output in outputs], weights[one], present[one])
        assert_same(
            alone,
            Fused(together.prediction[one], together.weights[one], together.disagreement[one], together.present[one]),
        )


@every_method
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e31], ids=["NaN", "inf", "-inf", "beyond fp32's room"])
def test_a_row_that_is_not_finite_is_fused_without_its_member(name: str, value: float) -> None:
    fusion = build(name)
    good, bad = torch.randn(2, CLASSES, generator=torch.Generator().manual_seed(0)), torch.ones(2, CLASSES)
    bad[0, CLASSES - 1] = value
    weights, present = EQUAL.expand(2, 2), BOTH.expand(2, 2)
    fused: Fused = fusion([good, bad], weights, present)
    assert fused.present.tolist() == [[True, False], [True, True]]
    assert fused.weights.tolist() == [[1.0, 0.0], [0.5, 0.5]]
    assert fused.disagreement[0].isnan()
    assert_same(fused, fusion([good, bad], weights, torch.tensor([[True, False], [True, True]])))
    assert fused.prediction.isfinite().all()


@every_method
def test_finite_outputs_never_fuse_to_nan(name: str) -> None:
    outputs = [torch.tensor([[1e30, -1e30, 0.0]]), torch.tensor([[-1e30, 1e30, 0.0]])]
    fused: Fused = build(name)(outputs, EQUAL, BOTH)
    assert fused.present.all()
    assert fused.prediction.isfinite().all()


@every_method
def test_a_row_without_anybody_weighs_nothing(name: str) -> None:
    outputs = [torch.full((1, CLASSES), math.nan)] * 2
    fused: Fused = build(name)(outputs, EQUAL, ~BOTH)
    assert fused.weights.tolist() == [[0.0, 0.0]]
    assert fused.prediction.isfinite().all()
    assert fused.disagreement.isnan().all()


def test_a_member_that_weighs_nothing_is_still_present() -> None:
    fused: Fused = build("weighted_mean")([torch.ones(1, 3), torch.eye(3)[:1]], torch.tensor([[0.0, 1.0]]), BOTH)
    assert fused.present.all()
    torch.testing.assert_close(fused.prediction, torch.eye(3)[:1].softmax(-1))


def test_probabilities_and_logits_fuse_alike() -> None:
    logits = [torch.randn(4, CLASSES, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    weights, present = EQUAL.expand(4, 2), BOTH.expand(4, 2)
    expected: Fused = build("log_opinion_pool")(logits, weights, present)
    mixed: Fused = build("log_opinion_pool", "logits", "probabilities")([logits[0], logits[1].softmax(-1)], weights, present)
    assert_same(mixed, expected)


def test_probabilities_that_contradict_each_other_still_have_a_pool() -> None:
    fusion = build("log_opinion_pool", "probabilities", "probabilities")
    fused: Fused = fusion([torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])], EQUAL, BOTH)
    torch.testing.assert_close(fused.prediction, EQUAL)
    torch.testing.assert_close(fused.disagreement, torch.ones(1))


def test_a_negative_probability_fails_the_row_for_its_member() -> None:
    fusion = build("weighted_mean", "probabilities", "probabilities")
    fused: Fused = fusion([torch.tensor([[1.3, -0.3]]), torch.tensor([[0.2, 0.8]])], EQUAL, BOTH)
    assert fused.present.tolist() == [[False, True]]
    torch.testing.assert_close(fused.prediction, torch.tensor([[0.2, 0.8]]))


def test_half_precision_outputs_fuse_in_fp32() -> None:
    outputs, weights, present = make_rows(3)
    fused: Fused = build("weighted_mean")([output.half() for output in outputs], weights, present)
    assert fused.prediction.dtype == torch.float32
    expected: Fused = build("weighted_mean")([output.half().float() for output in outputs], weights, present)
    assert_same(fused, expected)


def test_a_belief_is_what_the_member_alone_would_answer() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0]])
    fusion = build("weighted_mean", "logits", "probabilities")
    torch.testing.assert_close(fusion.belief(0, logits), logits.softmax(-1))
    torch.testing.assert_close(fusion.belief(1, logits.softmax(-1)), logits.softmax(-1))
    assert torch.equal(build("concatenation").belief(0, logits.half()), logits)


@every_method
def test_no_value_reaches_the_host(name: str) -> None:
    """A meta tensor has no values: whatever asks for one, or lets one decide a shape, raises."""
    outputs, weights, present = make_rows(3)
    fused: Fused = build(name).to("meta")([output.to("meta") for output in outputs], weights.to("meta"), present.to("meta"))
    assert fused.prediction.shape == (3, CLASSES if METHODS[name].task == "classification" else 2 * CLASSES)


@every_method
def test_a_copy_for_late_rows_gives_the_same_answers(name: str) -> None:
    fusion = build(name)
    outputs, weights, present = make_rows(4)
    assert_same(copy.deepcopy(fusion).to("cpu")(outputs, weights, present), fusion(outputs, weights, present))


@every_method
def test_the_inputs_are_left_as_they_were(name: str) -> None:
    outputs, weights, present = make_rows(4)
    before = [tensor.clone() for tensor in (*outputs, weights, present)]
    build(name)(outputs, weights, present)
    for tensor, copied in zip((*outputs, weights, present), before, strict=True):
        assert torch.equal(tensor.nan_to_num(7.0), copied.nan_to_num(7.0))
