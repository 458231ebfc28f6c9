"""Where a smooth function is smallest."""

from collections.abc import Callable

import torch
from torch import Tensor

MAX_STEPS = 200


def minimise(loss: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """Find the float64 vector near `start` at which `loss` is smallest, by L-BFGS with a strong Wolfe line search.

    Deterministic. Source: Nocedal & Wright 2006, "Numerical optimization", chapter 7.
    """
    with torch.inference_mode(mode=False), torch.enable_grad():
        found = start.detach().clone().double().requires_grad_()
        search = torch.optim.LBFGS(
            [found], max_iter=MAX_STEPS, tolerance_grad=1e-8, tolerance_change=1e-12, line_search_fn="strong_wolfe"
        )

        def step() -> Tensor:
            search.zero_grad()
            value = loss(found)
            value.backward()
            return value

        search.step(step)
        return found.detach()
