"""The study behind `twinfer fit`: fit on some rows, judge on others, and write down both."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from typing import Any

from ..executor import Ensemble
from ..fusion import FITTED_FILE, write_fitted
from ..spec import EnsembleSpec, FusionSpec
from .cascade import CascadeTrial, CascadeWish, choose_gate, try_cascade
from .findings import (
    describe_agreement,
    describe_cascade,
    describe_classes,
    describe_differences,
    describe_scores,
    find_best_member,
)
from .fit import fit_fusion
from .metrics import judge, reliability
from .outputs import MemberOutputs, compute_outputs
from .pictures import draw_agreement, draw_cascade, draw_reliability
from .prediction import ServedFusion
from .report import Report
from .rows import LabelledRows

OnStage = Callable[[str, int, int], None]
"""Told what is being done, and how many of how many steps of it are."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What is to be fitted: the method, a stacking head's hidden width, and the cascade, if one is wanted."""

    method: str
    hidden: int
    seed: int
    cascade: CascadeWish | None


@dataclass(frozen=True, slots=True)
class Study:
    """The two sets of rows with what the members answer to them, and the ensemble, loaded by its unfitted spec."""

    ensemble: Ensemble
    fitting: LabelledRows
    held_out: LabelledRows
    wishes: Wishes
    on_stage: OnStage

    def run(self) -> Report:
        """Fit, write `fusion.safetensors` into the ensemble's folder, judge; gives the report.

        Raises InvalidRows and InvalidEnsemble. Call it on a thread that the device has prepared.
        """
        wishes, ensemble = self.wishes, self.ensemble
        outputs = [
            compute_outputs(ensemble, rows, lambda done, total, name=name: self.on_stage(name, done, total))  # type: ignore[misc]
            for name, rows in (("fitting rows", self.fitting), ("held-out rows", self.held_out))
        ]
        fit = fit_fusion(
            ensemble, wishes.method, outputs[0], self.fitting.targets, wishes.hidden, wishes.seed,
            lambda done, total: self.on_stage("fitting", done, total),
        )  # fmt: skip
        write_fitted(ensemble.folder, fit.fitted)
        served = self._load_fitted()
        trial = None
        if wishes.cascade:
            chosen = choose_gate(served, wishes.cascade, outputs[0], self.fitting.targets)
            write_fitted(ensemble.folder, replace(fit.fitted, gate=chosen.gate))
            served = self._load_fitted()
            sets = (outputs[0], self.fitting.targets), (outputs[1], self.held_out.targets)
            trial = try_cascade(served, wishes.cascade, chosen, *sets, wishes.seed)
        return self._judge(served, outputs[1], fit.findings, trial)

    def _load_fitted(self) -> ServedFusion:
        """Read what has been written, as the server will."""
        spec = fitted_spec(self.ensemble.spec, self.wishes.method)
        return ServedFusion(self.ensemble.fusion_builder.build(1, spec), is_fitted=True)

    def _judge(
        self, served: ServedFusion, outputs: MemberOutputs, fitted: Mapping[str, Any], trial: CascadeTrial | None
    ) -> Report:  # fmt: skip
        spec, seed = self.ensemble.spec, self.wishes.seed
        names = [self.ensemble.members[voter].name for voter in served.voters]
        plain = ServedFusion(self.ensemble.crew.version, is_fitted=False)
        before = [*plain.list_beliefs(names, outputs), plain.fuse(outputs)]
        after = [*served.list_beliefs(names, outputs), served.fuse(outputs)]
        predictions = [*before, *after, *([trial.prediction] if trial else [])]
        is_multi_label = spec.task == "multi_label"
        targets = self.held_out.targets
        diagrams = {
            one.name: reliability(one.probabilities[one.present], targets[one.present], is_multi_label) for one in predictions
        }
        judgements = {one.name: judge(one.probabilities, targets, one.present, is_multi_label) for one in predictions}
        self.on_stage("judging", 0, 1)
        scores = describe_scores(predictions, list(judgements.values()), seed)
        best = find_best_member(scores)
        fusions = [before[-1], after[-1]]
        pairs = [("fitted fusion", "unfitted fusion"), ("fitted fusion", best)]
        pairs += [("cascade", "fitted fusion")] if trial else []
        told = [next(one for one in before if one.name == best), *fusions]
        findings: dict[str, Any] = {
            "ensemble": {"name": spec.name, "version": spec.version, "task": spec.task, "labels": list(self.ensemble.labels)},
            "versions": {"twinfer": metadata.version("twinfer"), "torch": metadata.version("torch")},
            "method": self.wishes.method,
            "seed": seed,
            "rows": {
                name: {"file": str(rows.file), "count": len(rows), "numbers": list(rows.numbers)}
                for name, rows in (("fitting", self.fitting), ("held_out", self.held_out))
            },
            "fitted": dict(fitted),
            "scores": scores,
            "best_member": best,
            "differences": describe_differences(judgements, pairs, seed),
            "classes": describe_classes(told, targets, self.ensemble.labels, is_multi_label),
            "agreement": describe_agreement([*before, after[-1]], is_multi_label),
            "reliability": {name: [asdict(entry) for entry in diagram] for name, diagram in diagrams.items()},
            "cascade": describe_cascade(trial, self.ensemble.members[trial.wish.first].name) if trial else None,
        }
        agreement = findings["agreement"]
        pictures = {
            "reliability": draw_reliability(scores[: len(before + after)], diagrams, columns=len(before)),
            "agreement": draw_agreement(agreement["names"], agreement["shares"]),
        }
        if trial:
            pictures["cascade"] = draw_cascade(trial.curves, trial.chosen, trial.accuracies)
        self.on_stage("judging", 1, 1)
        return Report(findings, pictures)


def fitted_spec(spec: EnsembleSpec, method: str) -> EnsembleSpec:
    """Give the spec of an ensemble that serves what has been fitted."""
    return spec.model_copy(update={"fusion": FusionSpec.model_construct(method=method, fitted=FITTED_FILE)})
