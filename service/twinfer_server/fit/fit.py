"""Fitting an ensemble's fusion: from the members' outputs and the truth to what the server reads."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InvalidEnsemble
from ..executor import Ensemble
from ..fusion import METHODS, Fitted, OpinionFusion, Pool, flatten_questions, log_opinion_pool, maximum, weighted_mean
from ..spec import EnsembleSpec, FusionSpec
from .head import fit_head
from .outputs import MemberOutputs, OnProgress
from .pooling import FOLDS, PoolData, PoolNumbers, fit_pool
from .split import deal_folds

TASKS = ("classification", "multi_label")
POOLS: dict[str, Pool] = {"weighted_mean": weighted_mean, "log_opinion_pool": log_opinion_pool, "maximum": maximum}
STACKING = "stacking"


@dataclass(frozen=True, slots=True)
class Fit:
    """What was fitted, and what the report says of how."""

    fitted: Fitted
    findings: Mapping[str, Any]


def unfitted_spec(spec: EnsembleSpec, method: str | None) -> EnsembleSpec:
    """Give the spec without anything fitted and without cascade, for the members to be loaded by; raises InvalidEnsemble.

    `method` is the one that is to be fitted, if it is not the file's. A head to be learnt needs opinions to learn from, and these
    are pooled meanwhile as a logarithmic opinion pool does it: that is also what it is compared with.
    """
    if spec.task not in TASKS:
        raise InvalidEnsemble(f"task: found {spec.task!r}; allowed to be fitted: {', '.join(map(repr, TASKS))}")
    now = spec.fusion
    method = method or now.method
    if method not in (*POOLS, STACKING):
        raise InvalidEnsemble(f"fusion.method: found {method!r}; allowed to be fitted: {', '.join(map(repr, (*POOLS, STACKING)))}")
    plain = method
    if method == STACKING:
        plain = now.method if now.method in POOLS else "log_opinion_pool"
    weights = now.weights if METHODS[plain].takes_weights else {}
    fusion = FusionSpec(method=plain, weights=weights, temperatures=now.temperatures)
    return spec.model_copy(update={"fusion": fusion, "cascade": None})


def fit_fusion(
    ensemble: Ensemble, method: str, outputs: MemberOutputs, targets: NDArray[np.bool_], hidden: int, seed: int,
    on_progress: OnProgress,
) -> Fit:  # fmt: skip
    """Fit `method` for `ensemble`, which is loaded by its unfitted spec, to outputs and truth, bool [rows, classes]."""
    version = ensemble.crew.version
    fusion = version.host_fusion
    assert isinstance(fusion, OpinionFusion)
    voters = list(fusion.fused_members)
    names = [ensemble.members[voter].name for voter in voters]

    def by_name(values: Tensor) -> dict[str, float]:
        return dict(zip(names, values.tolist(), strict=True))

    digests = {member.name: member.model.digest for member in ensemble.members}
    weights = torch.from_numpy(version.weights)[voters]
    start = PoolNumbers(fusion.temperatures.double()[voters], weights / weights.sum(), 0.0)
    opinions = read_opinions(fusion, outputs)
    before = {
        "method": version.spec.fusion.method,
        "temperatures": by_name(start.temperatures),
        "weights": by_name(start.weights),
    }
    data = _ask_questions(opinions, outputs.present[:, voters], targets, fusion.is_multi_label, seed)
    if method == STACKING:
        pooled = fit_pool(log_opinion_pool, data, start, takes_weights=False, on_progress=lambda done, total: None).numbers
        calibrated = opinions / pooled.temperatures.view(-1, *(1,) * (opinions.ndim - 1))
        attribution = pooled.weights * (1 + pooled.sharpness * (1 / pooled.weights.square().sum() - 1))
        truth = torch.from_numpy(targets)
        head, decay = fit_head(calibrated, outputs.present[:, voters], truth, attribution, hidden, seed, on_progress)
        temperatures = by_name(pooled.temperatures)
        fitted = Fitted(method, digests, {}, temperatures, hidden=hidden, tensors=head.state_dict())
        return Fit(fitted, {"before": before, "temperatures": temperatures, "weight_decay": decay, "hidden": hidden})
    takes_weights = METHODS[method].takes_weights
    pool_fit = fit_pool(POOLS[method], data, start, takes_weights, on_progress)
    numbers = pool_fit.numbers
    temperatures, shares = by_name(numbers.temperatures), by_name(numbers.weights) if takes_weights else {}
    fitted = Fitted(method, digests, shares, temperatures, sharpness=numbers.sharpness)
    findings = {"before": before, "temperatures": temperatures, "weights": shares, "sharpness": numbers.sharpness}
    return Fit(fitted, findings | ({"cross_validation": asdict(pool_fit.choice)} if pool_fit.choice else {}))


def read_opinions(fusion: OpinionFusion, outputs: MemberOutputs) -> Tensor:
    """Give the voters' logits, without the temperatures that `fusion` has: float64 [voters, rows, classes], or [..., labels, 2]."""
    with torch.inference_mode():
        read = [fusion.read_logits(voter, outputs.outputs[voter]).double() for voter in fusion.fused_members]
    return torch.stack(read).clone()


def _ask_questions(opinions: Tensor, present: Tensor, targets: NDArray[np.bool_], is_multi_label: bool, seed: int) -> PoolData:
    """Make a question of every row, or of every label of it."""
    fold = torch.from_numpy(deal_folds(targets, FOLDS, seed))
    truth = torch.from_numpy(targets)
    if not is_multi_label:
        return PoolData(opinions, present, truth.to(torch.int64).argmax(-1), fold)
    logits, shares = flatten_questions(opinions, present.to(torch.float32))
    return PoolData(logits, shares > 0, truth.flatten().to(torch.int64), fold.repeat_interleave(targets.shape[1]))
