"""Fitting an ensemble's fusion, and a cascade's gate, to some rows, and judging them on others."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InvalidEnsemble
from ..executor import Ensemble
from ..fusion import (
    FITTED_FILE,
    METHODS,
    Fitted,
    Pool,
    flatten_questions,
    log_opinion_pool,
    maximum,
    weighted_mean,
    write_fitted,
)
from ..spec import EnsembleSpec, FusionSpec
from ..terminal import OnProgress, OnStage
from .labels import InvalidRows
from .learn import POOL_FOLDS, PoolData, PoolNumbers, fit_head, fit_pool
from .outputs import MemberOutputs, Prediction, ServedFusion, compute_outputs
from .report import judge_all
from .rows import LabelledRows, deal_folds
from .scores import Flags, Floats, measure_mean

TASKS = ("classification", "multi_label")
POOLS: dict[str, Pool] = {"weighted_mean": weighted_mean, "log_opinion_pool": log_opinion_pool, "maximum": maximum}
STACKING = "stacking"
UNREACHABLE = 2.0
"""A cascade's gate that no confidence reaches."""
STRICTEST = np.array([1.0, 0.0, 0.0])
"""The point of a cascade's curve whose gate saves and loses nothing."""
MAX_POINTS = 400
"""As many points of a cascade's curve as a picture can show."""


@dataclass(frozen=True, slots=True)
class FitOptions:
    """What is to be fitted: the method, a stacking head's hidden width, and a cascade's gate where `first` names a member.

    The gate saves at least `saving`, a share of the rows, or where that is None loses at most `tolerance`, accuracy.
    """

    method: str
    hidden: int = 0
    seed: int = 0
    first: str | None = None
    saving: float | None = None
    tolerance: float = 0.005


def unfitted_spec(spec: EnsembleSpec, method: str) -> EnsembleSpec:
    """Return the spec without anything fitted and without cascade, for the members to be loaded by; raises InvalidEnsemble.

    A stacking head learns from members that are pooled meanwhile as a logarithmic opinion pool does it: that is also what it is
    compared with.
    """
    now, allowed = spec.fusion, (*POOLS, STACKING)
    if spec.task not in TASKS:
        raise InvalidEnsemble(f"task: found {spec.task!r}; allowed to be fitted: {', '.join(map(repr, TASKS))}")
    if method not in allowed:
        raise InvalidEnsemble(f"fusion.method: found {method!r}; allowed to be fitted: {', '.join(map(repr, allowed))}")
    plain = next((name for name in (method, now.method) if name in POOLS), "log_opinion_pool")
    weights = now.weights if METHODS[plain].takes_weights else {}
    fusion = FusionSpec(method=plain, weights=weights, temperatures=now.temperatures)
    return spec.model_copy(update={"fusion": fusion, "cascade": None})


def fitted_spec(spec: EnsembleSpec, method: str) -> EnsembleSpec:
    """Return the spec of an ensemble that serves what has been fitted."""
    return spec.model_copy(update={"fusion": FusionSpec.model_construct(method=method, fitted=FITTED_FILE)})


def run_study(
    ensemble: Ensemble, fitting: LabelledRows, held_out: LabelledRows, options: FitOptions, on_stage: OnStage
) -> dict[str, Any]:  # fmt: skip
    """Fit, write the fitted fusion into the ensemble's folder, and judge it on held-out rows; returns the findings, as in JSON.

    `ensemble` is loaded by its unfitted spec. Raises InvalidRows and InvalidEnsemble. Call it on a thread that the device has
    prepared.
    """
    spec, plain = ensemble.spec, ServedFusion(ensemble)
    seen = compute_outputs(ensemble, fitting, partial(on_stage, "fitting rows"))
    shown = compute_outputs(ensemble, held_out, partial(on_stage, "held-out rows"))
    digests = {member.name: member.model.digest for member in ensemble.members}
    fitted, how = fit_fusion(plain, seen, options, digests, partial(on_stage, "fitting"))
    write_fitted(ensemble.folder, fitted)
    served, cascade = ServedFusion(ensemble, fitted_spec(spec, options.method)), None  # as the server will read it
    on_stage("judging", 0, 1)
    predictions = [*plain.predict_all(shown), *served.predict_all(shown)]
    if options.first is not None:
        cascade, answers = fit_cascade(served, options, seen, shown)
        predictions.append(answers)
        write_fitted(ensemble.folder, replace(fitted, gate=cascade["gate"]))
    return {
        "ensemble": {"name": spec.name, "version": spec.version, "task": spec.task, "labels": list(ensemble.labels)},
        "versions": {"twinfer": metadata.version("twinfer"), "torch": metadata.version("torch")},
        "method": options.method,
        "seed": options.seed,
        "rows": {
            name: {"file": str(rows.file), "count": len(rows), "numbers": list(rows.numbers)}
            for name, rows in (("fitting", fitting), ("held_out", held_out))
        },
        "fitted": how,
        **judge_all(predictions, shown.targets, plain.fusion.is_multi_label, options.seed),
        "cascade": cascade,
    }


def fit_fusion(
    plain: ServedFusion, outputs: MemberOutputs, options: FitOptions, digests: Mapping[str, str], on_progress: OnProgress
) -> tuple[Fitted, dict[str, Any]]:  # fmt: skip
    """Fit to outputs, from what `plain` has; returns what is fitted, and what the report says of how."""
    method, members = options.method, plain.members

    def by_name(values: Tensor) -> dict[str, float]:
        return dict(zip([plain.names[member] for member in members], values.tolist(), strict=True))

    weights = plain.weights[members]
    start = PoolNumbers(plain.fusion.temperatures.double()[members], weights / weights.sum(), torch.zeros((), dtype=torch.float64))
    logits, present = plain.read_logits(outputs), outputs.present[:, members]
    before = {"method": plain.method, "temperatures": by_name(start.temperatures), "weights": by_name(start.weights)}
    data = _ask_questions(logits, present, outputs.targets, options.seed)
    takes_weights = METHODS[method].takes_weights
    numbers, choice = fit_pool(POOLS.get(method, log_opinion_pool), data, start, takes_weights, on_progress)
    temperatures = by_name(numbers.temperatures)
    if method == STACKING:
        calibrated = logits / numbers.temperatures.view(-1, *(1,) * (logits.ndim - 1))
        exponents = numbers.weights * (1 + numbers.sharpness * (1 / numbers.weights.square().sum() - 1))
        truth = torch.from_numpy(outputs.targets)
        head, decay = fit_head(calibrated, present, truth, exponents, options.hidden, options.seed, on_progress)
        fitted = Fitted(method, digests, {}, temperatures, hidden=options.hidden, tensors=head.state_dict())
        return fitted, {"before": before, "temperatures": temperatures, "weight_decay": decay, "hidden": options.hidden}
    shares, sharpness = by_name(numbers.weights) if takes_weights else {}, numbers.sharpness.item()
    how = {"before": before, "temperatures": temperatures, "weights": shares, "sharpness": sharpness, "cross_validation": choice}
    return Fitted(method, digests, shares, temperatures, sharpness=sharpness), how


@dataclass(frozen=True, slots=True)
class CascadeRows:
    """The rows on which a cascade has a choice: they have the first member's inputs, and another's.

    `confidence`, float64 [rows], is the first member's calibrated one; `losses`, float64 [rows], what a row loses in accuracy where
    that member's answer stands alone: 1, 0, or -1 where it does better. `accuracy` is that of all members' fusion.
    """

    confidence: Floats
    losses: Floats
    accuracy: float


def fit_cascade(
    served: ServedFusion, options: FitOptions, fitting: MemberOutputs, held_out: MemberOutputs
) -> tuple[dict[str, Any], Prediction]:  # fmt: skip
    """Choose a gate on the rows that were fitted to; returns what it does, and its answers to the held-out rows.

    Raises InvalidRows where no row has what a cascade needs.
    """
    first, sets = served.names.index(options.first or ""), {}
    for name, outputs in (("fitting rows", fitting), ("held-out rows", held_out)):
        sets[name] = _run_cascade(served, first, outputs, UNREACHABLE)[0]
        if not len(sets[name].confidence):
            raise InvalidRows(f"cascade: found no {name} with the inputs of {options.first!r} and of another member; allowed: some")
    curves, rows = {name: trace_curve(rows) for name, rows in sets.items()}, sets["held-out rows"]
    gate, saving, loss = choose_gate(curves["fitting rows"], options.saving, options.tolerance).tolist()
    stops = rows.confidence >= gate
    found = {
        "first": options.first,
        "gate": gate,
        "wanted_saving": options.saving,
        "tolerated_loss": options.tolerance if options.saving is None else None,
        "fitting": {"rows": len(sets["fitting rows"].confidence), "saving": saving, "loss": loss},
        "held_out": {
            "rows": len(stops),
            "saving": measure_mean(stops.astype(np.float64), options.seed),
            "loss": measure_mean(np.where(stops, rows.losses, 0.0), options.seed),
        },
        "accuracies": {name: rows.accuracy for name, rows in sets.items()},
        "curves": {name: _list_columns(curve) for name, curve in curves.items()},
    }
    return found, _run_cascade(served, first, held_out, gate)[1]


def trace_curve(rows: CascadeRows) -> Floats:
    """Return the gates that make a difference, from the strictest to near 0, float64 [gates, 3].

    The columns are the gate, the share of rows that the other members never see, and the accuracy lost, as a share of all rows.
    """
    order = np.argsort(-rows.confidence, kind="stable")
    confidence, lost = rows.confidence[order], np.cumsum(rows.losses[order])
    # Rows of one confidence pass a gate together. A gate lies half-way to the next row, so that rounding moves no row past it.
    ends = np.append(np.flatnonzero(confidence[:-1] != confidence[1:]), len(confidence) - 1)
    gates = (confidence[ends] + np.append(confidence[ends[:-1] + 1], 0.0)) / 2
    points = np.column_stack([gates, (ends + 1) / len(confidence), lost[ends] / len(confidence)])
    return points if confidence[0] == 1 else np.vstack([STRICTEST, points])


def choose_gate(curve: Floats, saving: float | None, tolerance: float) -> Floats:
    """Choose a curve's strictest point that saves `saving`, or where that is None the last before more than `tolerance` is lost.

    Gates below the first that loses more are not looked at: that they seem to lose less is luck.
    """
    if saving is not None:
        chosen = curve[curve[:, 1] >= saving][:1]  # the last one saves all
    else:
        chosen = curve[np.logical_and.accumulate(curve[:, 2] <= tolerance)][-1:]
    return chosen.ravel() if len(chosen) else STRICTEST


def _run_cascade(served: ServedFusion, first: int, outputs: MemberOutputs, gate: float) -> tuple[CascadeRows, Prediction]:
    """Return the rows on which a cascade has a choice, and its answers to all rows at `gate`."""
    alone = torch.zeros_like(outputs.present)
    alone[:, first] = outputs.present[:, first]
    fused, single = served.fuse(outputs), served.fuse(replace(outputs, present=alone))
    confidence = served.predict(first, outputs).probabilities.max(-1)
    has_choice = (outputs.present[:, first] & (outputs.present.sum(-1) > 1)).numpy()
    single_right, fused_right = (
        (one.probabilities.argmax(-1) == outputs.targets.argmax(-1))[has_choice].astype(np.float64) for one in (single, fused)
    )
    stops = (has_choice & (confidence >= gate))[:, None]
    answers = Prediction("cascade", "fusion", True, np.where(stops, single.probabilities, fused.probabilities), fused.present)
    accuracy = fused_right.sum() / max(1, len(fused_right))
    return CascadeRows(confidence[has_choice], fused_right - single_right, float(accuracy)), answers


def _list_columns(curve: Floats) -> dict[str, list[float]]:
    """List the columns of a curve, of at most MAX_POINTS gates, the last one among them."""
    shown = np.linspace(0, len(curve) - 1, min(len(curve), MAX_POINTS)).astype(np.intp)
    return dict(zip(("gate", "saving", "loss"), curve[shown].T.tolist(), strict=True))


def _ask_questions(logits: Tensor, present: Tensor, targets: Flags, seed: int) -> PoolData:
    """Make a question of every row, or of every label of it."""
    fold, truth = torch.from_numpy(deal_folds(targets, POOL_FOLDS, seed)), torch.from_numpy(targets).to(torch.int64)
    if logits.ndim == 3:
        return PoolData(logits, present, truth.argmax(-1), fold)
    questions, shares = flatten_questions(logits, present.to(torch.float32))
    return PoolData(questions, shares > 0, truth.flatten(), fold.repeat_interleave(targets.shape[1]))
