"""The fusion module: presence, rows that are not finite, who votes, and what a captured flight asks of it."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fusions import CLASSES, EXAMPLES, Example, assert_same, make_rows, pick
from twinfer_server.fusion import Fused, Fusion, log_opinion_pool, measure_disagreement

EQUAL = torch.tensor([[0.5, 0.5]])
BOTH = torch.tensor([[1, 1]], dtype=torch.int32)
FEW = settings(max_examples=15)
every_fusion = pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES)
every_opinion = pytest.mark.parametrize(
    "example", [pytest.param(one, id=name) for name, one in EXAMPLES.items() if one.task in ("classification", "multi_label")]
)


def pool(method: str = "log_opinion_pool", *kinds: str, classes: int = CLASSES) -> Fusion:
    return Example(method, "classification", ((classes,),) * 2, kinds).build()


def test_an_answer_holds_prediction_weights_disagreement_and_presence() -> None:
    outputs = [torch.randn(1, CLASSES, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    fused: Fused = pool()(outputs, torch.tensor([[3.0, 1.0]]), BOTH)
    shares = torch.tensor([[0.75, 0.25]])
    torch.testing.assert_close(fused.weights, shares)
    torch.testing.assert_close(fused.prediction, log_opinion_pool(torch.stack(outputs), shares).exp())
    torch.testing.assert_close(fused.disagreement, measure_disagreement(torch.stack(outputs), shares))
    assert fused.present.tolist() == [[True, True]]


@every_fusion
@FEW
@given(rows=st.integers(1, 6), seed=st.integers(0, 1000))
def test_a_row_alone_is_the_same_as_in_a_batch(example: Example, rows: int, seed: int) -> None:
    fusion = example.build()
    outputs, weights, samples = make_rows(example, rows, seed)
    together: Fused = fusion(outputs, weights, samples)
    for row in range(rows):
        one = slice(row, row + 1)
        assert_same(fusion([output[one] for output in outputs], weights[one], samples[one]), pick(together, one))


@every_fusion
@FEW
@given(seed=st.integers(0, 1000), data=st.data())
def test_the_order_of_the_rows_does_not_matter(example: Example, seed: int, data: st.DataObject) -> None:
    fusion = example.build()
    outputs, weights, samples = make_rows(example, 5, seed)
    order = torch.tensor(data.draw(st.permutations(range(5))))
    permuted: Fused = fusion([output[order] for output in outputs], weights[order], samples[order])
    assert_same(permuted, pick(fusion(outputs, weights, samples), order))


@every_fusion
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e35], ids=["NaN", "inf", "-inf", "beyond fp32's room"])
def test_a_row_that_is_not_finite_is_fused_without_its_member(example: Example, value: float) -> None:
    fusion = example.build()
    outputs = example.outputs(2, torch.Generator().manual_seed(0))
    outputs[1].view(2, -1)[0, -1] = value
    weights, samples = EQUAL.expand(2, 2), example.most_samples(2)
    fused: Fused = fusion(outputs, weights, samples)
    assert fused.present.tolist() == [[True, False], [True, True]]
    assert fused.weights.tolist() == [[1.0, 0.0], [0.5, 0.5]]
    assert fused.disagreement[0].isnan()
    assert_same(fused, fusion(outputs, weights, samples * torch.tensor([[1, 0], [1, 1]], dtype=torch.int32)))
    assert fused.prediction.isfinite().all()


@every_fusion
def test_presence_may_be_told_by_flags(example: Example) -> None:
    outputs, weights, samples = make_rows(example, 4)
    assert_same(example.build()(outputs, weights, samples > 0), example.build()(outputs, weights, (samples > 0).to(torch.int32)))


@every_opinion
def test_finite_outputs_never_fuse_to_nan(example: Example) -> None:
    outputs = [torch.tensor([[1e29, -1e29, 0.0, 1.0, 2.0]]), torch.tensor([[-1e29, 1e29, 0.0, -1.0, 2.0]])]
    fused: Fused = example.build()(outputs, EQUAL, BOTH)
    assert fused.present.all()
    assert fused.prediction.isfinite().all()


@every_fusion
def test_a_row_without_anybody_weighs_nothing(example: Example) -> None:
    outputs = [output * math.nan for output in example.outputs(1, torch.Generator())]
    fused: Fused = example.build()(outputs, EQUAL, 0 * BOTH)
    assert fused.weights.tolist() == [[0.0, 0.0]]
    assert fused.prediction.isfinite().all()
    assert fused.disagreement.isnan().all()


def test_a_member_that_weighs_nothing_is_still_present() -> None:
    fused: Fused = pool("weighted_mean", classes=3)([torch.ones(1, 3), torch.eye(3)[:1]], torch.tensor([[0.0, 1.0]]), BOTH)
    assert fused.present.all()
    torch.testing.assert_close(fused.prediction, torch.eye(3)[:1].softmax(-1))


@every_fusion
def test_members_that_only_feed_others_have_no_vote(example: Example) -> None:
    kinds = tuple(member.output.kind for member in example.spec.members.values())
    crowd = replace(example, shapes=((3, 4), *example.shapes), kinds=("features", *kinds))
    if example.fitted is not None:
        crowd = replace(crowd, fitted=replace(example.fitted, temperatures={"right": 2.0, "third": 0.5}))
    outputs, weights, samples = make_rows(example, 4)
    fused: Fused = crowd.build()(
        [torch.full((4, 3, 4), math.nan), *outputs],
        torch.nn.functional.pad(weights, (1, 0), value=0.5),
        torch.nn.functional.pad(samples, (1, 0), value=1),
    )
    expected: Fused = example.build()(outputs, weights, samples)
    assert_same(
        fused,
        replace(
            expected,
            weights=torch.nn.functional.pad(expected.weights, (1, 0)),
            present=torch.nn.functional.pad(expected.present, (1, 0)),
        ),
    )


def test_probabilities_and_logits_fuse_alike() -> None:
    logits = [torch.randn(4, CLASSES, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    weights, samples = EQUAL.expand(4, 2), BOTH.expand(4, 2)
    expected: Fused = pool()(logits, weights, samples)
    mixed: Fused = pool("log_opinion_pool", "logits", "probabilities")([logits[0], logits[1].softmax(-1)], weights, samples)
    assert_same(mixed, expected)


def test_probabilities_that_contradict_each_other_still_have_a_pool() -> None:
    fusion = pool("log_opinion_pool", "probabilities", "probabilities", classes=2)
    fused: Fused = fusion([torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])], EQUAL, BOTH)
    torch.testing.assert_close(fused.prediction, EQUAL)
    torch.testing.assert_close(fused.disagreement, torch.ones(1))


def test_a_negative_probability_fails_the_row_for_its_member() -> None:
    fusion = pool("weighted_mean", "probabilities", "probabilities", classes=2)
    fused: Fused = fusion([torch.tensor([[1.3, -0.3]]), torch.tensor([[0.2, 0.8]])], EQUAL, BOTH)
    assert fused.present.tolist() == [[False, True]]
    torch.testing.assert_close(fused.prediction, torch.tensor([[0.2, 0.8]]))


def test_probabilities_that_rounding_took_past_the_edge_are_at_the_edge() -> None:
    fusion = pool("weighted_mean", "probabilities", "probabilities", classes=2)
    rounded = torch.tensor([[1.0, -1e-8], [1.009, -0.009], [1.0 + 1e-6, 0.0], [torch.nan, -1e-8]])
    fused: Fused = fusion([rounded, torch.full((4, 2), 0.5)], EQUAL.expand(4, 2), BOTH.expand(4, 2))
    assert fused.present.tolist() == [[True, True]] * 3 + [[False, True]]
    torch.testing.assert_close(fused.prediction, torch.tensor([[0.75, 0.25]] * 3 + [[0.5, 0.5]]))


@every_fusion
def test_half_precision_outputs_fuse_in_fp32(example: Example) -> None:
    outputs, weights, samples = make_rows(example, 3)
    fused: Fused = example.build()([output.half() for output in outputs], weights, samples)
    assert fused.prediction.dtype == torch.float32
    assert_same(fused, example.build()([output.half().float() for output in outputs], weights, samples))


def test_a_belief_is_what_the_member_alone_would_answer() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0]])
    fusion = pool("weighted_mean", "logits", "probabilities", classes=3)
    torch.testing.assert_close(fusion.belief(0, logits), logits.softmax(-1))
    torch.testing.assert_close(fusion.belief(1, logits.softmax(-1)), logits.softmax(-1))
    assert torch.equal(Example("concatenation", "embedding").build().belief(0, logits.half()), logits)


@every_fusion
def test_no_value_reaches_the_host(example: Example) -> None:
    """A meta tensor has no values: whatever asks for one, or lets one decide a shape, raises."""
    outputs, weights, samples = make_rows(example, 3)
    expected: Fused = example.build()(outputs, weights, samples)
    fused: Fused = example.build().to("meta")([output.to("meta") for output in outputs], weights.to("meta"), samples.to("meta"))
    assert fused.prediction.shape == expected.prediction.shape


@every_fusion
def test_a_copy_for_late_rows_gives_the_same_answers(example: Example) -> None:
    fusion = example.build()
    outputs, weights, samples = make_rows(example, 4)
    assert_same(copy.deepcopy(fusion).to("cpu")(outputs, weights, samples), fusion(outputs, weights, samples))


@every_fusion
def test_the_inputs_are_left_as_they_were(example: Example) -> None:
    outputs, weights, samples = make_rows(example, 4)
    before = [tensor.clone() for tensor in (*outputs, weights, samples)]
    example.build()(outputs, weights, samples)
    for tensor, copied in zip((*outputs, weights, samples), before, strict=True):
        assert torch.equal(tensor.nan_to_num(7.0), copied.nan_to_num(7.0))
