"""Fitting a stacking head: what the members' opinions are worth together, also where some of them are missing."""

import itertools

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from ..fusion import StackingHead, stacking_features
from .optimum import minimise
from .outputs import OnProgress
from .split import deal_folds

DECAYS = (0.1, 1.0, 10.0, 100.0)
"""Weight decays to choose from by cross-validation: half of it, times the weights' squared distance from what few rows are to
give, stands beside the summed NLL."""
FOLDS = 5
MAX_CREWS = 16
"""How many different sets of members the head is shown, at most, where there are more."""
WHOLE_SHARE = 0.5
"""How much of the loss is that of rows as they come; the rest is that of rows that have lost members."""


def fit_head(
    opinions: Tensor, present: Tensor, targets: Tensor, attribution: Tensor, hidden: int, seed: int, on_progress: OnProgress
) -> tuple[StackingHead, float]:  # fmt: skip
    """Fit a head by its NLL; gives it with the weight decay that cross-validation chose.

    opinions: float64 [voters, rows, classes], calibrated logits, or [voters, rows, labels, 2] for multi_label.
    present: bool [rows, voters]. targets: bool [rows, classes or labels].
    influence: float64 [voters]; how much each opinion counts in a logarithmic pool. Few rows keep a linear head near that pool; one
    with a hidden layer begins at random, and is kept near 0.
    Every row is also shown as if members were missing, so the head knows what each set of them is worth. Deterministic for a seed.
    """
    folds = torch.from_numpy(deal_folds(targets.numpy(), FOLDS, seed))
    losses = dict.fromkeys(DECAYS, 0.0)
    total = FOLDS * len(DECAYS) + 1
    for number, (decay, fold) in enumerate(itertools.product(DECAYS, range(FOLDS)), start=1):
        kept, out = folds != fold, folds == fold
        head = _fit(opinions[:, kept], present[kept], targets[kept], attribution, hidden, decay, seed)
        with torch.no_grad():
            losses[decay] += _nll(head(stacking_features(opinions[:, out], present[out])), targets[out], opinions.ndim == 4).item()
        on_progress(number, total)
    best = min(DECAYS, key=lambda decay: losses[decay])
    head = _fit(opinions, present, targets, attribution, hidden, best, seed).float()
    on_progress(total, total)
    return head, best


def list_crews(voters: int, seed: int) -> Tensor:
    """List sets of members that may be left, bool [sets, voters]: all that lack somebody, or so many drawn by `seed`."""
    crews = torch.tensor(list(itertools.product((True, False), repeat=voters)))[1:-1]  # neither everybody nor nobody
    if len(crews) > MAX_CREWS:
        crews = crews[torch.randperm(len(crews), generator=torch.Generator().manual_seed(seed))[:MAX_CREWS]]
    return crews


def _fit(
    opinions: Tensor, present: Tensor, targets: Tensor, attribution: Tensor, hidden: int, decay: float, seed: int
) -> StackingHead:  # fmt: skip
    voters = len(opinions)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = StackingHead(voters, targets.shape[1], hidden).double()
    if not hidden:
        _begin_as_pool(head, attribution)
    start = parameters_to_vector(head.parameters()).detach()
    origin = {name: values for name, values in _as_state(head, start).items() if "weight" in name}
    if hidden:
        origin = {name: torch.zeros_like(values) for name, values in origin.items()}
    crews = list_crews(voters, seed)
    views = [(present, WHOLE_SHARE if len(crews) else 1.0), *((present & crew, (1 - WHOLE_SHARE) / len(crews)) for crew in crews)]
    seen = [(view.any(-1), share) for view, share in views]
    features = [stacking_features(opinions[:, kept], view[kept]) for (view, _), (kept, _) in zip(views, seen, strict=True)]

    def loss(vector: Tensor) -> Tensor:
        state = _as_state(head, vector)
        value = 0.5 * decay * torch.stack([(state[name] - values).square().sum() for name, values in origin.items()]).sum()
        for part, (kept, share) in zip(features, seen, strict=True):
            value = value + share * _nll(torch.func.functional_call(head, state, (part,)), targets[kept], opinions.ndim == 4)
        return value

    vector_to_parameters(minimise(loss, start), head.parameters())
    return head


def _begin_as_pool(head: StackingHead, attribution: Tensor) -> None:
    """Make a linear head say what a logarithmic pool says: each class adds up what the voters believe of it."""
    classes = head.out.out_features
    opinions = torch.cat([count * torch.eye(classes, dtype=torch.float64) for count in attribution], dim=1)
    with torch.no_grad():
        head.out.weight.zero_()
        head.out.weight[:, : opinions.shape[1]] = opinions
        head.out.bias.zero_()


def _as_state(head: StackingHead, vector: Tensor) -> dict[str, Tensor]:
    sizes = [parameter.numel() for parameter in head.parameters()]
    parts = vector.split(sizes)
    return {name: part.view_as(old) for part, (name, old) in zip(parts, head.named_parameters(), strict=True)}


def _nll(answers: Tensor, targets: Tensor, is_multi_label: bool) -> Tensor:
    """Sum the NLL over rows, and over labels where a row may have several; answers: logits [rows, classes or labels]."""
    if not is_multi_label:
        return functional.cross_entropy(answers, targets.to(torch.int64).argmax(-1), reduction="sum")
    return functional.binary_cross_entropy_with_logits(answers, targets.to(answers.dtype), reduction="sum")
