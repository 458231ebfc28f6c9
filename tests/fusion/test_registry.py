"""From an ensemble's spec to its fusion: the table of methods and what is refused."""

import pytest

from tests.fusions import EXAMPLES, Example
from twinfer_server.errors import InvalidEnsemble
from twinfer_server.fusion import METHODS, Fusion, find_method
from twinfer_server.spec import FusionSpec

OPINIONS: tuple[str, ...] = ("classification", "multi_label")
BOXES = frozenset({"iou", "min_score", "max_boxes"})
LEARNT = frozenset({"temperatures", "fitted"})


def test_the_table_holds_every_method_with_its_tasks_and_keys() -> None:
    found: dict[str, tuple[tuple[str, ...], frozenset[str]]] = {
        name: (tuple(method.builds), method.takes) for name, method in METHODS.items()
    }
    assert found == {
        "weighted_mean": ((*OPINIONS, "tensor"), LEARNT | {"weights"}),
        "log_opinion_pool": (OPINIONS, LEARNT | {"weights"}),
        "maximum": (OPINIONS, LEARNT),
        "stacking": (OPINIONS, LEARNT),
        "reciprocal_rank": (("classification",), {"weights", "temperatures", "k"}),
        "concatenation": (("embedding",), {"weights", "projection"}),
        "cosine": (("similarity",), {"query", "texts", "scale", "bias", "activation"}),
        "nms": (("detection",), BOXES),
        "weighted_boxes": (("detection",), BOXES | {"weights"}),
        "classify_crops": (("detection",), {"temperatures", "min_score", "max_boxes"}),
    }


def test_methods_take_only_what_a_file_can_say() -> None:
    assert frozenset().union(*(method.takes for method in METHODS.values())) <= set(FusionSpec.model_fields) - {"method"}


@pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES)
def test_every_method_is_built_by_its_name(example: Example) -> None:
    assert find_method(example.spec) is METHODS[example.method]
    assert isinstance(example.build(), Fusion)


@pytest.mark.parametrize(
    ("example", "message"),
    [
        pytest.param(
            Example("median", "classification"),
            "fusion.method: found 'median'; allowed for task 'classification': 'weighted_mean', 'log_opinion_pool', 'maximum'",
            id="an unknown method",
        ),
        pytest.param(
            Example("maximum", "embedding"),
            "fusion.method: found 'maximum', a method for task 'classification' or 'multi_label'; "
            "allowed for task 'embedding': 'concatenation'",
            id="a method for another task",
        ),
        pytest.param(
            Example("maximum", "classification", options={"weights": {"left": 1.0}}),
            "fusion.weights: found {'left': 1.0}; allowed: none, 'maximum' takes no weights",
            id="weights for a method that takes none",
        ),
        pytest.param(
            Example("concatenation", "embedding", options={"temperatures": {"left": 2.0}}),
            "fusion.temperatures: found {'left': 2.0}; allowed: none, 'concatenation' takes no temperatures",
            id="temperatures for a method that takes none",
        ),
        pytest.param(
            Example("weighted_mean", "classification", options={"k": 60}),
            "fusion.k: found 60.0; allowed: none, 'weighted_mean' takes no k",
            id="a constant of another method",
        ),
        pytest.param(
            Example("weighted_mean", "classification", kinds=("embedding", "logits")),
            "members.left.output.kind: found 'embedding'; "
            "allowed for task 'classification': 'logits', 'probabilities', or 'features'",
            id="an embedding to classify with",
        ),
        pytest.param(
            Example("concatenation", "embedding", kinds=("embedding", "logits")),
            "members.right.output.kind: found 'logits'; allowed for task 'embedding': 'embedding', or 'features'",
            id="logits to embed with",
        ),
        pytest.param(
            Example("concatenation", "embedding", kinds=("features", "features")),
            "members: all outputs are of kind 'features'; allowed: at least one of 'embedding'",
            id="nobody who votes",
        ),
        pytest.param(
            Example("weighted_mean", "classification", kinds=("features", "logits"), options={"weights": {"left": 1.0}}),
            "fusion.weights.left: the member's output is of kind 'features'; allowed: members that vote",
            id="a weight for a member that does not vote",
        ),
    ],
)
def test_a_spec_that_does_not_fit_is_refused(example: Example, message: str) -> None:
    with pytest.raises(InvalidEnsemble) as refusal:
        find_method(example.spec)
    assert str(refusal.value).startswith(message)


@pytest.mark.parametrize(
    ("example", "message"),
    [
        pytest.param(
            Example("weighted_mean", "classification", ((10,), (9,))),
            "members: found {'left': 10, 'right': 9} classes; allowed: the same number for all, at least 2",
            id="different numbers of classes",
        ),
        pytest.param(
            Example("weighted_mean", "classification", ((1,), (1,))),
            "members: found {'left': 1, 'right': 1} classes; allowed: the same number for all, at least 2",
            id="a single class",
        ),
        pytest.param(
            Example("weighted_mean", "multi_label", ((2,), (1,))),
            "members: found {'left': 2, 'right': 1} labels; allowed: the same number for all, at least 1",
            id="different numbers of labels",
        ),
        pytest.param(
            Example("concatenation", "embedding", ((10,), (2, 5))),
            "members.right.output: a sample's output has shape [2, 5]; allowed: [features]",
            id="an embedding that is no vector",
        ),
        pytest.param(
            Example("stacking", "classification"),
            "fusion.fitted: found nothing; allowed: what `twinfer fit` has written, 'stacking' is learnt",
            id="a head that nobody has fitted",
        ),
        pytest.param(
            Example("stacking", "classification", ((3,), (3,)), fitted=EXAMPLES["stacking for classification"].fitted),
            "fusion.fitted: the head's tensors are {'out.weight': [5, 12], 'out.bias': [5]}; "
            "allowed: {'out.weight': [3, 8], 'out.bias': [3]}; fit again, or remove fitted from [fusion]",
            id="a head for other classes",
        ),
    ],
)
def test_outputs_that_do_not_fit_are_refused(example: Example, message: str) -> None:
    with pytest.raises(InvalidEnsemble) as refusal:
        example.build()
    assert str(refusal.value) == message


def test_one_label_and_embeddings_of_different_sizes_are_fine() -> None:
    assert Example("weighted_mean", "multi_label", ((1,), (1,))).build().voters == (0, 1)
    assert Example("concatenation", "embedding", ((10,), (9,))).build().needs == frozenset()
