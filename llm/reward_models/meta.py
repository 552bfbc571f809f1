"""MetaRM: a reward model that goes on telling apart the answers of a policy that has moved away from its data.

Each step first moves the weights a little to where answers of the *current policy* differ more in reward, takes the
gradient of the preference loss there, and applies it to the weights as they were:

    theta' = theta + eta grad J(X_s; theta)      X_s: k answers of the policy to each of some prompts
    theta <- theta - alpha grad L(X_t; theta')   X_t: preference pairs

It is of first order: no derivative is taken through the first line.

Source: Wang et al. 2024, MetaRM, arXiv:2405.00438, Algorithm 1. Departure: the second line takes any optimizer's step.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn.utils import get_total_norm

from raftdiff.recipes.config import Config


class MetaConfig(Config):
    """Learn as MetaRM, from pairs and from answers of the current policy (``policy_pool``)."""

    eta: float = Field(default=5e-6, ge=0)
    """How far the weights move up J before the gradient is taken, over the gradient of J; 0 is plain training. The
    paper's, for all weights of a 7B model at a learning rate of the same size. It does something where the ``ascent``
    that a run tells is no speck beside an optimizer's step, with AdamW about learning_rate * sqrt(weights)."""
    answers: int = Field(default=5, ge=2)
    """k: answers to each prompt."""
    batch_size: int = Field(default=16, ge=1)
    """Prompts per optimizer step whose answers are told apart."""


def meta_gradients(
    parameters: Sequence[Tensor], ascent: Callable[[], None], descent: Callable[[], None], eta: float
) -> Float[Tensor, ""]:
    """Leave in ``.grad`` the gradient that ``descent`` finds at theta' = theta + ``eta`` * (what ``ascent`` finds).

    Both add a gradient to ``.grad``, as ``backward`` does; ``ascent`` that of J, which is to rise. Afterwards the
    parameters are theta again, to the bit: copied, since subtracting the step would leave a rounding error behind.

    Returns:
        |theta' - theta|, in the unit of the weights.
    """
    theta = [parameter.detach().clone() for parameter in parameters]
    ascent()
    moved = eta * get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    with torch.no_grad():
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.add_(parameter.grad, alpha=eta)
                parameter.grad = None
    try:
        descent()
    finally:
        with torch.no_grad():
            for parameter, before in zip(parameters, theta, strict=True):
                parameter.copy_(before)
    return moved
