"""From an ensemble's spec to its fusion: the table of methods and what is refused."""

from typing import Any

import pytest

from tests.fusions import EXAMPLES, TENSOR, Example
from twinfer_server.errors import InvalidEnsemble
from twinfer_server.fusion import METHODS, Fusion, build_fusion, find_method
from twinfer_server.spec import EnsembleSpec


@pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES)
def test_every_method_is_built_by_its_name(example: Example) -> None:
    assert find_method(example.spec) is METHODS[example.method]
    assert isinstance(example.build(), Fusion)


def change(example: Example, **members: dict[str, Any]) -> EnsembleSpec:
    """Give the example's spec with other keys of some members."""
    document = example.spec.model_dump(exclude_unset=True)
    for name, keys in members.items():
        document["members"][name] |= keys
    return EnsembleSpec.model_validate(document)


PAIR = Example("cosine", "similarity")
SEVERAL = {"x": TENSOR | {"max_samples": 2}}
CHAIN = Example("weighted_mean", "classification", kinds=("features", "logits"))


MISFITS: dict[str, tuple[EnsembleSpec, str]] = {
    "an unknown method": (
        Example("median", "classification").spec,
        "fusion.method: found 'median'; allowed for task 'classification': 'weighted_mean', 'log_opinion_pool', 'maximum'",
    ),
    "a method for another task": (
        Example("maximum", "embedding").spec,
        "fusion.method: found 'maximum', a method for task 'classification' or 'multi_label'; "
        "allowed for task 'embedding': 'concatenation'",
    ),
    "weights for a method that takes none": (
        Example("maximum", "classification", options={"weights": {"left": 1.0}}).spec,
        "fusion.weights: found {'left': 1.0}; allowed: none, 'maximum' takes no weights",
    ),
    "temperatures for a method that takes none": (
        Example("concatenation", "embedding", options={"temperatures": {"left": 2.0}}).spec,
        "fusion.temperatures: found {'left': 2.0}; allowed: none, 'concatenation' takes no temperatures",
    ),
    "temperatures for tensors": (
        Example("weighted_mean", "tensor", options={"temperatures": {"left": 2.0}}).spec,
        "fusion.temperatures: found {'left': 2.0}; allowed: none, 'weighted_mean' takes no temperatures",
    ),
    "a constant of another method": (
        Example("weighted_mean", "classification", options={"k": 60}).spec,
        "fusion.k: found 60.0; allowed: none, 'weighted_mean' takes no k",
    ),
    "an embedding to classify with": (
        Example("weighted_mean", "classification", kinds=("embedding", "logits")).spec,
        "members.left.output.kind: found 'embedding'; allowed for task 'classification': 'logits', 'probabilities', or 'features'",
    ),
    "logits to embed with": (
        Example("concatenation", "embedding", kinds=("embedding", "logits")).spec,
        "members.right.output.kind: found 'logits'; allowed for task 'embedding': 'embedding', or 'features'",
    ),
    "no member to fuse": (
        Example("concatenation", "embedding", kinds=("features", "features")).spec,
        "members: all outputs are of kind 'features'; allowed: at least one of 'embedding'",
    ),
    "a weight for a member that is not fused": (
        Example("weighted_mean", "classification", kinds=("features", "logits"), options={"weights": {"left": 1.0}}).spec,
        "fusion.weights.left: found a member whose output is of kind 'features'; allowed: members that are fused",
    ),
    "several opinions where one is fused": (
        change(Example("weighted_mean", "classification"), right={"input": SEVERAL}),
        "members.right.input.x: found several samples for a request; allowed: one, for 'weighted_mean' fuses one output",
    ),
    "several queries": (
        change(PAIR, left={"input": SEVERAL}),
        "members.left.input.x: found several samples for a request; allowed: one, for 'cosine' fuses one output",
    ),
    "several opinions by way of the upstream member": (
        change(CHAIN, left={"input": SEVERAL}, right={"input": {"x": {"kind": "output", "member": "left"}}}),
        "members.right.input.x: found several samples for a request; allowed: one, for 'weighted_mean' fuses one output",
    ),
    "three embeddings to compare": (
        Example("cosine", "similarity", ((2,), (2,), (2,))).spec,
        "members: ['left', 'right', 'third'] give embeddings; allowed: two that do",
    ),
    "a query that is not fused": (
        Example("cosine", "similarity", ((2,),) * 3, ("features", "embedding", "embedding"), {"query": "left"}).spec,
        "fusion.query: found 'left', whose output is of kind 'features'; allowed: ['right', 'third']",
    ),
    "pixels of nothing": (
        change(Example("weighted_boxes", "detection"), left={"output": {"kind": "detections", "box_units": "pixels"}}),
        "members.left.output.box_units: found 'pixels' of a member with 0 images; allowed: of one with one",
    ),
}


@pytest.mark.parametrize(("spec", "message"), MISFITS.values(), ids=MISFITS)
def test_a_spec_that_does_not_fit_is_refused_before_any_model_is_loaded(spec: EnsembleSpec, message: str) -> None:
    with pytest.raises(InvalidEnsemble) as refusal:
        find_method(spec)
    assert str(refusal.value).startswith(message)


BAD_OUTPUTS: dict[str, tuple[Example, str]] = {
    "different numbers of classes": (
        Example("weighted_mean", "classification", ((10,), (9,))),
        "members: found {'left': 10, 'right': 9} classes; allowed: the same number for all, at least 2",
    ),
    "a single class": (
        Example("weighted_mean", "classification", ((1,), (1,))),
        "members: found {'left': 1, 'right': 1} classes; allowed: the same number for all, at least 2",
    ),
    "different numbers of labels": (
        Example("weighted_mean", "multi_label", ((2,), (1,))),
        "members: found {'left': 2, 'right': 1} labels; allowed: the same number for all, at least 1",
    ),
    "an embedding that is no vector": (
        Example("concatenation", "embedding", ((10,), (2, 5))),
        "members.right.output: a sample's output has shape [2, 5]; allowed: [features]",
    ),
    "boxes of 5 numbers": (
        Example("weighted_boxes", "detection", ((8, 5), (8, 6))),
        "members.left.output: a sample's output has shape [8, 5]; allowed: [boxes, 6]",
    ),
    "tensors of different shapes": (
        Example("weighted_mean", "tensor", ((2, 3), (3, 2))),
        "members: found outputs of shapes {'left': [2, 3], 'right': [3, 2]}; allowed: the same shape for all, not empty",
    ),
    "tensors with nothing in them": (
        Example("weighted_mean", "tensor", ((0,), (0,))),
        "members: found outputs of shapes {'left': [0], 'right': [0]}; allowed: the same shape for all, not empty",
    ),
    "a head that has not been fitted": (
        Example("stacking", "classification"),
        "fusion.fitted: found nothing; allowed: what `twinfer fit` has written, 'stacking' is learnt",
    ),
    "a head for other classes": (
        Example("stacking", "classification", ((3,), (3,)), fitted=EXAMPLES["stacking for classification"].fitted),
        "fusion.fitted: the head's tensors are {'out.weight': [5, 12], 'out.bias': [5]}; "
        "allowed: {'out.weight': [3, 8], 'out.bias': [3]}; fit again, or remove fitted from [fusion]",
    ),
}


@pytest.mark.parametrize(("example", "message"), BAD_OUTPUTS.values(), ids=BAD_OUTPUTS)
def test_outputs_that_do_not_fit_are_refused(example: Example, message: str) -> None:
    with pytest.raises(InvalidEnsemble) as refusal:
        build_fusion(example.spec, example.shapes, example.fitted)
    assert str(refusal.value) == message


def test_one_label_and_embeddings_of_different_sizes_are_fine() -> None:
    assert Example("weighted_mean", "multi_label", ((1,), (1,))).build().fused_members == (0, 1)
    assert Example("concatenation", "embedding", ((10,), (9,))).build().needs == frozenset()
