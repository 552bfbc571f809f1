"""Muon (Jordan et al. 2024): the momentum of a matrix is made orthogonal before the step, so that every direction of it
is learnt at the same pace. PyTorch has one from 2.9 on, which iterates in bfloat16: too slow on a CPU without
instructions for that."""

from collections.abc import Iterable, Sequence
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from raftdiff.embedded.scenes.training.timing import adamw

LEAST = 32
"""Rows and columns of what counts as a matrix; AdamW takes the rest."""


@torch.no_grad()
def orthogonal(matrices: Float[Tensor, "*batch rows columns"]) -> Float[Tensor, "*batch rows columns"]:
    """Matrices with the same singular vectors, whose singular values are about 1.

    Five steps of Newton and Schulz's iteration by a polynomial of degree five that is steep at zero.
    """
    wide = matrices.shape[-2] <= matrices.shape[-1]
    x: Tensor = matrices if wide else matrices.mT
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x if wide else x.mT


@final
class Muon(torch.optim.Optimizer):
    """With Nesterov's momentum of 0.95 and decoupled weight decay; steps as long as AdamW's (Liu et al. 2025,
    arXiv:2502.16982, section 2.2)."""

    def __init__(self, weights: Sequence[nn.Parameter], lr: float, *, weight_decay: float) -> None:
        super().__init__(weights, {"lr": lr, "weight_decay": weight_decay, "momentum": 0.95})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for alike in _by_shape(weight for weight in group["params"] if weight.grad is not None):
                ahead = torch.stack([self._ahead(weight, group["momentum"]) for weight in alike])
                length = 0.2 * max(ahead.shape[-2:]) ** 0.5 * group["lr"]
                torch._foreach_mul_(alike, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(alike, list(orthogonal(ahead)), alpha=-length)

    def _ahead(self, weight: Tensor, momentum: float) -> Tensor:
        state, gradient = self.state[weight], weight.grad
        assert gradient is not None
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        kept: Tensor = state["momentum"].lerp_(gradient, 1 - momentum)
        return torch.lerp(gradient, kept, momentum)


def _by_shape(weights: Iterable[Tensor]) -> list[list[Tensor]]:
    """Of one shape each, so that one product serves them all."""
    found: dict[tuple[int, ...], list[Tensor]] = {}
    for weight in weights:
        found.setdefault(tuple(weight.shape), []).append(weight)
    return list(found.values())


@final
class Both(torch.optim.Optimizer):
    """Two optimizers that take their steps together."""

    def __init__(self, first: torch.optim.Optimizer, second: torch.optim.Optimizer) -> None:
        self._each = first, second
        super().__init__([*first.param_groups, *second.param_groups], {})
        self.param_groups = [*first.param_groups, *second.param_groups]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for one in self._each:
            one.step()


def muon(weights: Sequence[nn.Parameter], peak: float, weight_decay: float, device: str) -> torch.optim.Optimizer:
    """Muon for the matrices among ``weights``, AdamW for the rest."""
    matrices = [weight for weight in weights if weight.ndim == 2 and min(weight.shape) >= LEAST]
    taken = {id(weight) for weight in matrices}
    rest = adamw([weight for weight in weights if id(weight) not in taken], peak, weight_decay, device)
    return Both(Muon(matrices, peak, weight_decay=weight_decay), rest)
