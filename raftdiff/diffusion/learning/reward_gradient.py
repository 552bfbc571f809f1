"""What the rewards say of latents, with a gradient: through the decoder and through the rewards."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from jaxtyping import Float
from PIL.Image import Image
from torch import Tensor

from raftdiff.diffusion.models.loaded import Parts
from raftdiff.errors import UserError
from raftdiff.types import Differentiable, Prompt, Reward

Graded: TypeAlias = Callable[[Float[Tensor, "batch channels height width"], Sequence[Prompt]], Float[Tensor, " batch"]]
"""(latents, their prompts) -> the weighted sum of the rewards, float32, with gradient."""


def without_gradient(learner: str, reward: str) -> str:
    """A sentence on a reward that ``learner`` cannot climb."""
    return (
        f"finetuner.learning: {learner} follows the gradient of the rewards, and '{reward}' has none. Take those that "
        "have one (clip, aesthetic, pickscore, hps, image_reward), give it the weight 0, or, where it is a class of "
        "your own, a method 'graded' (docs/rewards.md, 'A gradient')."
    )


def graded(parts: Parts, rewards: Sequence[tuple[Reward[Image], float]], learner: str) -> Graded:
    """
    Args:
        rewards: each with its weight; those of weight 0 are left out.
        learner: who climbs, for the sentence.

    Raises:
        UserError: one of them has no gradient, or not with the model that it is on.
    """
    counted = [(reward, weight) for reward, weight in rewards if weight]
    for reward, _ in counted:
        if not isinstance(reward, Differentiable):
            raise UserError(without_gradient(learner, reward.name))
        with torch.no_grad():
            reward.graded(torch.full((1, 3, 64, 64), 0.5, device=parts.device), [Prompt("a", "a", "a", "a")])

    def of(latents: Float[Tensor, "batch channels height width"], prompts: Sequence[Prompt]) -> Float[Tensor, " batch"]:
        pixels = (parts.decode(latents) / 2 + 0.5).clamp(0, 1)
        said = [
            weight * reward.graded(pixels, prompts).to(latents.device)
            for reward, weight in counted
            if isinstance(reward, Differentiable)
        ]
        return torch.stack(said).sum(dim=0)

    return of
