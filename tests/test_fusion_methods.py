"""From an ensemble's spec to its fusion: the table of methods and what is refused."""

from typing import Any

import pytest

from twinfer_server.errors import InvalidEnsemble
from twinfer_server.fusion import METHODS, Fusion, build_fusion, find_method
from twinfer_server.spec import EnsembleSpec


def make_spec(method: str, task: str, kind: str, weights: dict[str, float] | None = None) -> EnsembleSpec:
    member = {"model": "python:m:a", "input": {"x": {"kind": "tensor", "dtype": "float32", "shape": [2]}}}
    document: dict[str, Any] = {
        "name": "pair",
        "version": 1,
        "task": task,
        "members": {name: {**member, "output": {"kind": kind}} for name in ("left", "right")},
        "fusion": {"method": method, "weights": weights or {}},
    }
    return EnsembleSpec.model_validate(document)


def test_the_table_holds_every_method_with_its_task() -> None:
    assert {name: (method.task, method.takes_weights) for name, method in METHODS.items()} == {
        "weighted_mean": ("classification", True),
        "log_opinion_pool": ("classification", True),
        "maximum": ("classification", False),
        "concatenation": ("embedding", True),
    }


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_built_by_its_name(name: str) -> None:
    task = METHODS[name].task
    spec = make_spec(name, task, "logits" if task == "classification" else "embedding")
    assert find_method(spec) is METHODS[name]
    assert isinstance(build_fusion(spec, [3, 3]), Fusion)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        pytest.param(
            make_spec("median", "classification", "logits"),
            "fusion.method: found 'median'; allowed for task 'classification': 'weighted_mean', 'log_opinion_pool', 'maximum'",
            id="an unknown method",
        ),
        pytest.param(
            make_spec("maximum", "embedding", "embedding"),
            "fusion.method: found 'maximum', a method for task 'classification'; allowed for task 'embedding': 'concatenation'",
            id="a method for another task",
        ),
        pytest.param(
            make_spec("maximum", "classification", "logits", {"left": 1.0}),
            "fusion.weights: found {'left': 1.0}; allowed: none, 'maximum' takes no weights",
            id="weights for a method that takes none",
        ),
        pytest.param(
            make_spec("weighted_mean", "classification", "embedding"),
            "members.left.output.kind: found 'embedding'; allowed for task 'classification': 'logits', 'probabilities'",
            id="an embedding to classify with",
        ),
        pytest.param(
            make_spec("concatenation", "embedding", "logits"),
            "members.left.output.kind: found 'logits'; allowed for task 'embedding': 'embedding'",
            id="logits to embed with",
        ),
    ],
)
def test_a_spec_that_does_not_fit_is_refused(spec: EnsembleSpec, message: str) -> None:
    with pytest.raises(InvalidEnsemble) as refusal:
        find_method(spec)
    assert str(refusal.value) == message


@pytest.mark.parametrize("features", [[10, 9], [1, 1]], ids=["different numbers of classes", "a single class"])
def test_classes_that_do_not_match_are_refused(features: list[int]) -> None:
    with pytest.raises(InvalidEnsemble, match=f"members: found .*{features[0]}.*{features[1]}.* classes; allowed: the same"):
        build_fusion(make_spec("weighted_mean", "classification", "logits"), features)


def test_embeddings_of_different_sizes_are_fine() -> None:
    assert build_fusion(make_spec("concatenation", "embedding", "embedding"), [10, 9]).kinds == (
        "embedding",
        "embedding",
    )
