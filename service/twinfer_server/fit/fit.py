"""Fitting an ensemble's fusion to some rows, and judging it on others."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from typing import Any

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
from .cascade import CascadeWish, try_cascade
from .head import fit_head
from .outputs import MemberOutputs, OnProgress, ServedFusion, compute_outputs, load_fusion
from .pool import FOLDS, PoolData, PoolNumbers, fit_pool
from .report import judge_all
from .rows import LabelledRows, deal_folds
from .scores import Flags

TASKS = ("classification", "multi_label")
POOLS: dict[str, Pool] = {"weighted_mean": weighted_mean, "log_opinion_pool": log_opinion_pool, "maximum": maximum}
STACKING = "stacking"


@dataclass(frozen=True, slots=True)
class Wishes:
    """What is to be fitted: the method, a stacking head's hidden width, and the cascade, if one is wanted."""

    method: str
    hidden: int
    seed: int
    cascade: CascadeWish | None


def unfitted_spec(spec: EnsembleSpec, method: str | None) -> EnsembleSpec:
    """Return the spec without anything fitted and without cascade, for the members to be loaded by; raises InvalidEnsemble.

    `method` is the one that is to be fitted, if it is not the file's. A head learns from members that are pooled meanwhile as a
    logarithmic opinion pool does it: that is also what it is compared with.
    """
    now, allowed = spec.fusion, (*POOLS, STACKING)
    method = method or now.method
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
    ensemble: Ensemble, fitting: LabelledRows, held_out: LabelledRows, wishes: Wishes, on_stage: Callable[[str, int, int], None]
) -> dict[str, Any]:  # fmt: skip
    """Fit, write the fitted fusion into the ensemble's folder, and judge it on held-out rows; returns the findings, as in JSON.

    `ensemble` is loaded by its unfitted spec. `on_stage` is told what is done, and how many of how many steps of it are. Raises
    InvalidRows and InvalidEnsemble. Call it on a thread that the device has prepared.
    """
    spec, seed, plain = ensemble.spec, wishes.seed, load_fusion(ensemble)
    seen = compute_outputs(ensemble, fitting, partial(on_stage, "fitting rows"))
    shown = compute_outputs(ensemble, held_out, partial(on_stage, "held-out rows"))
    digests = {member.name: member.model.digest for member in ensemble.members}
    fitted, how = fit_fusion(plain, seen, wishes, digests, partial(on_stage, "fitting"))
    write_fitted(ensemble.folder, fitted)
    served, cascade = load_fusion(ensemble, fitted_spec(spec, wishes.method)), None  # as the server will read it
    on_stage("judging", 0, 1)
    predictions = [*plain.predict_all(shown), *served.predict_all(shown)]
    if wishes.cascade:
        cascade, answers = try_cascade(served, wishes.cascade, seen, shown, seed)
        predictions.append(answers)
        write_fitted(ensemble.folder, replace(fitted, gate=cascade["gate"]))
    findings = {
        "ensemble": {"name": spec.name, "version": spec.version, "task": spec.task, "labels": list(ensemble.labels)},
        "versions": {"twinfer": metadata.version("twinfer"), "torch": metadata.version("torch")},
        "method": wishes.method,
        "seed": seed,
        "rows": {
            name: {"file": str(rows.file), "count": len(rows), "numbers": list(rows.numbers)}
            for name, rows in (("fitting", fitting), ("held_out", held_out))
        },
        "fitted": how,
        **judge_all(predictions, shown.targets, ensemble.labels, plain.fusion.is_multi_label, seed),
        "cascade": cascade,
    }
    on_stage("judging", 1, 1)
    return findings


def fit_fusion(
    plain: ServedFusion, outputs: MemberOutputs, wishes: Wishes, digests: Mapping[str, str], on_progress: OnProgress
) -> tuple[Fitted, dict[str, Any]]:  # fmt: skip
    """Fit to outputs, from what `plain` has; returns what is fitted, and what the report says of how."""
    method, members = wishes.method, plain.members

    def by_name(values: Tensor) -> dict[str, float]:
        return dict(zip([plain.names[member] for member in members], values.tolist(), strict=True))

    weights = plain.weights[members]
    start = PoolNumbers(plain.fusion.temperatures.double()[members], weights / weights.sum(), torch.zeros((), dtype=torch.float64))
    logits, present = plain.read_logits(outputs), outputs.present[:, members]
    before = {"method": plain.method, "temperatures": by_name(start.temperatures), "weights": by_name(start.weights)}
    data = _ask_questions(logits, present, outputs.targets, wishes.seed)
    if method == STACKING:
        pooled, _ = fit_pool(log_opinion_pool, data, start, takes_weights=False, on_progress=lambda done, total: None)
        temperatures = by_name(pooled.temperatures)
        calibrated = logits / pooled.temperatures.view(-1, *(1,) * (logits.ndim - 1))
        exponents = pooled.weights * (1 + pooled.sharpness * (1 / pooled.weights.square().sum() - 1))
        truth = torch.from_numpy(outputs.targets)
        head, decay = fit_head(calibrated, present, truth, exponents, wishes.hidden, wishes.seed, on_progress)
        fitted = Fitted(method, digests, {}, temperatures, hidden=wishes.hidden, tensors=head.state_dict())
        return fitted, {"before": before, "temperatures": temperatures, "weight_decay": decay, "hidden": wishes.hidden}
    takes_weights = METHODS[method].takes_weights
    numbers, choice = fit_pool(POOLS[method], data, start, takes_weights, on_progress)
    temperatures, shares = by_name(numbers.temperatures), by_name(numbers.weights) if takes_weights else {}
    sharpness = numbers.sharpness.item()
    findings = {"before": before, "temperatures": temperatures, "weights": shares, "sharpness": sharpness}
    findings |= {"cross_validation": choice} if choice else {}
    return Fitted(method, digests, shares, temperatures, sharpness=sharpness), findings


def _ask_questions(logits: Tensor, present: Tensor, targets: Flags, seed: int) -> PoolData:
    """Make a question of every row, or of every label of it."""
    fold, truth = torch.from_numpy(deal_folds(targets, FOLDS, seed)), torch.from_numpy(targets).to(torch.int64)
    if logits.ndim == 3:
        return PoolData(logits, present, truth.argmax(-1), fold)
    questions, shares = flatten_questions(logits, present.to(torch.float32))
    return PoolData(questions, shares > 0, truth.flatten(), fold.repeat_interleave(targets.shape[1]))
