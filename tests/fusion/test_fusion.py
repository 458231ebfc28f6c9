"""The fusion module: presence, outputs that are not finite, members that are not fused, and what a CUDA graph asks of it."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fusions import BOTH, CLASSES, EQUAL, EXAMPLES, Example, assert_same, make_requests, pick
from twinfer_server.fusion import FusionResult, renormalise

FEW = settings(max_examples=15)
every_fusion = pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES)
PROBABILITIES = ("probabilities", "probabilities")


def pool(method: str = "log_opinion_pool", *kinds: str, classes: int = CLASSES) -> Example:
    return Example(method, "classification", ((classes,),) * 2, kinds)


@every_fusion
@FEW
@given(requests=st.integers(1, 6), seed=st.integers(0, 1000), data=st.data())
def test_a_request_is_answered_the_same_alone_and_in_any_batch(
    example: Example, requests: int, seed: int, data: st.DataObject
) -> None:
    fusion = example.build()
    outputs, weights, samples = make_requests(example, requests, seed)
    together: FusionResult = fusion(outputs, weights, samples)
    for request in range(requests):
        one = slice(request, request + 1)
        assert_same(fusion([output[one] for output in outputs], weights[one], samples[one]), pick(together, one))
    order = torch.tensor(data.draw(st.permutations(range(requests))))
    assert_same(fusion([output[order] for output in outputs], weights[order], samples[order]), pick(together, order))


@every_fusion
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e35], ids=["NaN", "inf", "-inf", "beyond fp32's room"])
def test_an_output_that_is_not_finite_is_left_out_of_its_request(example: Example, value: float) -> None:
    outputs = example.outputs(2, torch.Generator().manual_seed(0))
    outputs[1].view(2, -1)[0, -1] = value
    samples = example.most_samples(2)
    fused = example.fuse(outputs, EQUAL, samples)
    assert fused.present.tolist() == [[True, False], [True, True]]
    assert fused.weights.tolist() == [[1.0, 0.0], [0.5, 0.5]]
    assert fused.disagreement[0].isnan()
    assert_same(fused, example.fuse(outputs, EQUAL, samples * torch.tensor([[1, 0], [1, 1]], dtype=torch.int32)))
    assert fused.prediction.isfinite().all()


@pytest.mark.parametrize(
    "example", [pytest.param(one, id=name) for name, one in EXAMPLES.items() if one.task in ("classification", "multi_label")]
)
def test_finite_opinions_never_fuse_to_nan(example: Example) -> None:
    fused = example.fuse([torch.tensor([[1e29, -1e29, 0.0, 1.0, 2.0]]), torch.tensor([[-1e29, 1e29, 0.0, -1.0, 2.0]])])
    assert fused.present.all()
    assert fused.prediction.isfinite().all()


@every_fusion
def test_a_request_without_any_member_weighs_nothing(example: Example) -> None:
    fused = example.fuse([output * math.nan for output in example.outputs(1, torch.Generator())], samples=0 * BOTH)
    assert fused.weights.tolist() == [[0.0, 0.0]]
    assert fused.prediction.isfinite().all()
    assert fused.disagreement.isnan().all()


def test_a_member_that_weighs_nothing_is_still_present() -> None:
    fused = pool("weighted_mean", classes=3).fuse([torch.ones(1, 3), torch.eye(3)[:1]], torch.tensor([[0.0, 1.0]]))
    assert fused.present.all()
    torch.testing.assert_close(fused.prediction, torch.eye(3)[:1].softmax(-1))


@every_fusion
def test_members_that_only_give_features_are_not_fused(example: Example) -> None:
    kinds = tuple(member.output.kind for member in example.spec.members.values())
    more = replace(example, shapes=((3, 4), *example.shapes), kinds=("features", *kinds))
    if example.fitted is not None:
        more = replace(more, fitted=replace(example.fitted, temperatures={"right": 2.0, "third": 0.5}))
    outputs, weights, samples = make_requests(example, 4)
    pad = torch.nn.functional.pad
    fused = more.fuse([torch.full((4, 3, 4), math.nan), *outputs], pad(weights, (1, 0), value=0.5), pad(samples, (1, 0), value=1))
    expected = example.fuse(outputs, weights, samples)
    assert_same(fused, replace(expected, weights=pad(expected.weights, (1, 0)), present=pad(expected.present, (1, 0))))


def test_probabilities_that_contradict_each_other_still_have_a_pool() -> None:
    certain = [torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])]
    fused = pool("log_opinion_pool", *PROBABILITIES, classes=2).fuse(certain)
    torch.testing.assert_close(fused.prediction, EQUAL)
    torch.testing.assert_close(fused.disagreement, torch.ones(1))


def test_probabilities_past_the_edge_are_at_the_edge_by_rounding_and_not_finite_by_more() -> None:
    rounded = torch.tensor([[1.0, -1e-8], [1.009, -0.009], [1.0 + 1e-6, 0.0], [torch.nan, -1e-8], [1.3, -0.3]])
    fused = pool("weighted_mean", *PROBABILITIES, classes=2).fuse([rounded, torch.full((5, 2), 0.5)])
    assert fused.present.tolist() == [[True, True]] * 3 + [[False, True]] * 2
    torch.testing.assert_close(fused.prediction, torch.tensor([[0.75, 0.25]] * 3 + [[0.5, 0.5]] * 2))


@every_fusion
def test_half_precision_outputs_fuse_in_fp32(example: Example) -> None:
    outputs, weights, samples = make_requests(example, 3)
    fused = example.fuse([output.half() for output in outputs], weights, samples)
    assert fused.prediction.dtype == torch.float32
    assert_same(fused, example.fuse([output.half().float() for output in outputs], weights, samples))


@every_fusion
def test_no_value_reaches_the_host(example: Example) -> None:
    """A meta tensor has no values: whatever asks for one, or lets one decide a shape, raises."""
    outputs, weights, samples = make_requests(example, 3)
    fused: FusionResult = example.build().to("meta")(
        [output.to("meta") for output in outputs], weights.to("meta"), samples.to("meta")
    )
    assert fused.prediction.shape == example.fuse(outputs, weights, samples).prediction.shape


@every_fusion
def test_a_copy_for_late_requests_answers_the_same_and_leaves_its_inputs_as_they_were(example: Example) -> None:
    fusion = example.build()
    outputs, weights, samples = make_requests(example, 4)
    before = [tensor.clone() for tensor in (*outputs, weights, samples)]
    assert_same(copy.deepcopy(fusion).to("cpu")(outputs, weights, samples), fusion(outputs, weights, samples))
    for tensor, copied in zip((*outputs, weights, samples), before, strict=True):
        assert torch.equal(tensor.nan_to_num(7.0), copied.nan_to_num(7.0))


@pytest.mark.parametrize(
    ("weights", "present", "expected"),
    [
        pytest.param([0.5, 0.3, 0.2], [True, True, True], [0.5, 0.3, 0.2], id="where all are present nothing changes"),
        pytest.param([0.5, 0.3, 0.2], [True, False, True], [5 / 7, 0.0, 2 / 7], id="the rest keeps its proportion"),
        pytest.param([1.0, 0.0], [False, True], [0.0, 1.0], id="all weight on an absent member goes to the present one"),
        pytest.param([1.0, 0.0, 0.0], [False, True, True], [0.0, 0.5, 0.5], id="members that all weigh 0 share equally"),
        pytest.param([0.0, 1.0], [True, True], [0.0, 1.0], id="a member that weighs 0 gains nothing from company"),
        pytest.param([3.0, 1.0], [True, True], [0.75, 0.25], id="weights that sum to more than 1 are scaled"),
        pytest.param([0.5, 0.5], [False, False], [0.0, 0.0], id="without any member all are 0"),
        pytest.param([1e-42, 0.0], [True, True], [0.5, 0.5], id="weights too small to divide by count as 0"),
    ],
)
def test_weights_are_renormalised_over_the_present(weights: list[float], present: list[bool], expected: list[float]) -> None:
    shares = renormalise(torch.tensor([weights]), torch.tensor([present]))
    torch.testing.assert_close(shares, torch.tensor([expected]))
