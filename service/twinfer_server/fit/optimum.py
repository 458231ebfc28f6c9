"""Where a smooth function is smallest."""

from collections.abc import Callable

import torch
from torch import Tensor

MAX_STEPS = 200


def minimise(loss: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """Find the float64 vector near `start` at which `loss` is smallest, by L-BFGS with a strong Wolfe line search.

    Deterministic. Raises RuntimeError where that is not finite. Source: Nocedal & Wright 2006, "Numerical optimization", chapter 7.
    """
    with torch.inference_mode(mode=False), torch.enable_grad():
        found = start.detach().clone().double().requires_grad_()
        search = torch.optim.LBFGS(
            [found], max_iter=MAX_STEPS, tolerance_grad=1e-6, tolerance_change=1e-10, line_search_fn="strong_wolfe"
        )

        def step() -> Tensor:
            search.zero_grad()
            value = loss(found)
            value.backward()
            return value

        search.step(step)
        if not found.isfinite().all():
            raise RuntimeError("the fit found no finite numbers; this is a defect of twinfer, and nothing was written")
        return found.detach()
