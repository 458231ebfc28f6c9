"""What the report says, as plain dicts, lists and numbers: scores, differences, classes, agreement."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cascade import CascadeTrial
from .gate import thin
from .metrics import Judgement, compare, measure, share_interval
from .prediction import Prediction


def describe_scores(predictions: Sequence[Prediction], judgements: Sequence[Judgement], seed: int) -> list[dict[str, Any]]:
    """List every prediction's scores with their intervals."""
    return [
        {"name": prediction.name, "kind": prediction.kind, "is_fitted": prediction.is_fitted, "rows": int(prediction.present.sum())}
        | {name: asdict(interval) for name, interval in measure(judgement, seed).items()}
        for prediction, judgement in zip(predictions, judgements, strict=True)
    ]


def describe_differences(judgements: Mapping[str, Judgement], pairs: Sequence[tuple[str, str]], seed: int) -> list[dict[str, Any]]:
    """List how much better or worse one prediction is than another on the same rows."""
    return [
        {"one": one, "other": other}
        | {name: asdict(interval) for name, interval in compare(judgements[one], judgements[other], seed).items()}
        for one, other in pairs
    ]


def find_best_member(scores: Sequence[Mapping[str, Any]]) -> str:
    """Find the member, as it is, that is right most often."""
    members = [score for score in scores if score["kind"] == "member" and not score["is_fitted"]]
    return str(max(members, key=lambda score: score["accuracy"]["value"])["name"])


def describe_classes(
    predictions: Sequence[Prediction], targets: NDArray[np.bool_], labels: Sequence[str], is_multi_label: bool
) -> list[dict[str, Any]]:  # fmt: skip
    """List, by class, how many rows have it, and the precision and recall of each prediction; None where there is none."""
    said = {prediction.name: decide(prediction, is_multi_label) for prediction in predictions}
    return [
        {
            "label": labels[index] if labels else str(index),
            "rows": int(targets[:, index].sum()),
            "predictions": {name: _class_scores(chosen[:, index], targets[:, index]) for name, chosen in said.items()},
        }
        for index in range(targets.shape[1])
    ]


def describe_agreement(predictions: Sequence[Prediction], is_multi_label: bool) -> dict[str, Any]:
    """Give, for every pair, the share of rows on which both give the same answer, of those that both answer."""
    said = [decide(prediction, is_multi_label) for prediction in predictions]

    def agree(one: int, other: int) -> dict[str, float]:
        both = predictions[one].present & predictions[other].present
        return asdict(share_interval(int((said[one] == said[other]).all(1)[both].sum()), int(both.sum())))

    places = range(len(predictions))
    names = [prediction.name for prediction in predictions]
    return {"names": names, "shares": [[agree(one, other) for other in places] for one in places]}


def describe_cascade(trial: CascadeTrial, first: str) -> dict[str, Any]:
    """Give the gate, what was wanted, and what it does on either set of rows."""
    wish, fitting = trial.wish, trial.chosen["fitting rows"]
    return {
        "first": first,
        "gate": fitting.gate,
        "wanted_saving": wish.saving,
        "tolerated_loss": wish.tolerance,
        "fitting": {"rows": trial.rows["fitting rows"], "saving": fitting.saving, "loss": fitting.loss},
        "held_out": {"rows": trial.rows["held-out rows"], "saving": asdict(trial.saving), "loss": asdict(trial.loss)},
        "accuracies": dict(trial.accuracies),
        "curves": {name: [asdict(point) for point in thin(curve)] for name, curve in trial.curves.items()},
    }


def decide(prediction: Prediction, is_multi_label: bool) -> NDArray[np.bool_]:
    """Say which classes a prediction names, bool [rows, classes]: the likeliest, or all above one half."""
    chances = np.where(prediction.present[:, None], prediction.probabilities, 0.0)
    if is_multi_label:
        return chances > 0.5
    named: NDArray[np.bool_] = np.arange(chances.shape[1]) == chances.argmax(1)[:, None]
    return named & prediction.present[:, None]


def _class_scores(named: NDArray[np.bool_], truth: NDArray[np.bool_]) -> dict[str, dict[str, float] | None]:
    hits = int((named & truth).sum())
    return {
        "precision": asdict(share_interval(hits, int(named.sum()))) if named.any() else None,
        "recall": asdict(share_interval(hits, int(truth.sum()))) if truth.any() else None,
    }
