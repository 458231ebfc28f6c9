"""Fitting a stacking head: what the members' predictions are worth together, also where some of them are missing."""

import itertools

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from ..fusion import StackingHead, stacking_features
from .outputs import OnProgress
from .pool import minimise
from .rows import deal_folds

DECAYS = (0.1, 1.0, 10.0, 100.0)
"""Weight decays to choose from by cross-validation: half of it, times the weights' squared distance from what few rows are to
give, stands beside the summed NLL."""
FOLDS = 5
MAX_SUBSETS = 16
"""How many different sets of members the head is shown, at most, where there are more."""
WHOLE_SHARE = 0.5
"""How much of the loss is that of rows as they come; the rest is that of rows that have lost members."""


def fit_head(
    logits: Tensor, present: Tensor, targets: Tensor, exponents: Tensor, hidden: int, seed: int, on_progress: OnProgress
) -> tuple[StackingHead, float]:  # fmt: skip
    """Return a head fitted by its NLL, and the weight decay that cross-validation chose.

    logits: float64 [members, rows, classes], calibrated; or [members, rows, labels, 2] for multi_label.
    present: bool [rows, members]. targets: bool [rows, classes or labels].
    exponents: float64 [members]; how much each member counts in a logarithmic pool. Few rows keep a linear head near that pool; one
    with a hidden layer begins at random, and is kept near 0.
    Every row is also shown as if members were missing, so the head knows what each set of them is worth. Deterministic for a seed.
    """
    folds = torch.from_numpy(deal_folds(targets.numpy(), FOLDS, seed))
    losses = dict.fromkeys(DECAYS, 0.0)
    total = FOLDS * len(DECAYS) + 1
    for number, (decay, fold) in enumerate(itertools.product(DECAYS, range(FOLDS)), start=1):
        kept, out = folds != fold, folds == fold
        head = _fit(logits[:, kept], present[kept], targets[kept], exponents, hidden, decay, seed)
        with torch.no_grad():
            losses[decay] += _nll(head(stacking_features(logits[:, out], present[out])), targets[out], logits.ndim == 4).item()
        on_progress(number, total)
    best = min(DECAYS, key=lambda decay: losses[decay])
    head = _fit(logits, present, targets, exponents, hidden, best, seed).float()
    on_progress(total, total)
    return head, best


def _fit(
    logits: Tensor, present: Tensor, targets: Tensor, exponents: Tensor, hidden: int, decay: float, seed: int
) -> StackingHead:  # fmt: skip
    head = _start_head(len(logits), targets.shape[1], exponents, hidden, seed)
    names = [name for name, _ in head.named_parameters()]
    sizes = [parameter.numel() for parameter in head.parameters()]
    shapes = [parameter.shape for parameter in head.parameters()]

    def as_state(vector: Tensor) -> dict[str, Tensor]:
        parts = zip(names, vector.split(sizes), shapes, strict=True)
        return {name: part.view(shape) for name, part, shape in parts}

    start = parameters_to_vector(head.parameters()).detach()
    origin = {name: torch.zeros_like(part) if hidden else part for name, part in as_state(start).items() if "weight" in name}
    subsets = _list_subsets(len(logits), seed)
    views = [(present, WHOLE_SHARE if len(subsets) else 1.0)]
    views += [(present & subset, (1 - WHOLE_SHARE) / len(subsets)) for subset in subsets]
    shown = []  # features, truth and share of the loss of the rows that a view leaves a member
    for view, share in views:
        kept = view.any(-1)
        shown.append((stacking_features(logits[:, kept], view[kept]), targets[kept], share))

    def loss(vector: Tensor) -> Tensor:
        state = as_state(vector)
        value = 0.5 * decay * torch.stack([(state[name] - part).square().sum() for name, part in origin.items()]).sum()
        for features, truth, share in shown:
            value = value + share * _nll(torch.func.functional_call(head, state, (features,)), truth, logits.ndim == 4)
        return value

    vector_to_parameters(minimise(loss, start), head.parameters())
    return head


def _start_head(members: int, classes: int, exponents: Tensor, hidden: int, seed: int) -> StackingHead:
    """Make a head that begins at random, or, linear, as a logarithmic pool: each class adds up what the members say of it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = StackingHead(members, classes, hidden).double()
    if not hidden:
        pooled = torch.cat([exponent * torch.eye(classes, dtype=torch.float64) for exponent in exponents], dim=1)
        with torch.no_grad():
            head.out.weight.zero_()
            head.out.weight[:, : pooled.shape[1]] = pooled
            head.out.bias.zero_()
    return head


def _list_subsets(members: int, seed: int) -> Tensor:
    """List sets of members that may be left, bool [sets, members]: all that lack one, or MAX_SUBSETS drawn by `seed`."""
    subsets = torch.tensor(list(itertools.product((True, False), repeat=members)))[1:-1]  # neither all members nor none
    if len(subsets) > MAX_SUBSETS:
        subsets = subsets[torch.randperm(len(subsets), generator=torch.Generator().manual_seed(seed))[:MAX_SUBSETS]]
    return subsets


def _nll(answers: Tensor, targets: Tensor, is_multi_label: bool) -> Tensor:
    """Sum the NLL over rows, and over labels where a row may have several; answers: logits [rows, classes or labels]."""
    if not is_multi_label:
        return functional.cross_entropy(answers, targets.to(torch.int64).argmax(-1), reduction="sum")
    return functional.binary_cross_entropy_with_logits(answers, targets.to(answers.dtype), reduction="sum")
