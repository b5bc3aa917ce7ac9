"""What is done about gradients that were taken at parameters which others have changed since."""

import torch
from torch import Tensor


def step_for(lr: float, staleness: int, aware: bool) -> float:
    """The learning rate for a gradient that is so many updates old: lr / (1 + staleness) where one is aware of it.

    Zhang et al. 2016 (arXiv:1511.05950) divide by the staleness, where a gradient that is not stale counts as 1.
    """
    return lr / (1 + staleness) if aware else lr


@torch.no_grad()
def compensate_delay(gradient: Tensor, now: Tensor, then: Tensor, strength: float) -> None:
    """Adds lambda g^2 (theta_now - theta_then) to a gradient [P], in place (DC-ASGD, Zheng et al. 2017, equation 10).

    That is the first order of how it has changed since, with g^2 in the place of the Hessian.

    Args:
        gradient: g, taken at theta_then.
        now: [P], theta_now.
        then: [P], theta_then.
        strength: lambda; 0 leaves the gradient alone.
    """
    if strength:
        gradient.addcmul_(gradient.square(), now - then, value=strength)
