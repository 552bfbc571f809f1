"""How weights are trained, optimizer step by optimizer step: PPO's policy and critic share it."""

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from pydantic import Field

from raftdiff import optimizer
from raftdiff.config import Config
from raftdiff.devices import DType
from raftdiff.llm.finetuner import LINEAR


class StepsConfig(Config):
    """How weights are trained; each network with an optimizer of its own."""

    adapter: Literal["lora", "full"] = "lora"
    """Low-rank updates (arXiv:2106.09685), or every weight; of policy and critic."""
    rank: int = Field(default=16, ge=1)
    """Rank of the LoRA."""
    alpha: float | None = Field(default=None, gt=0)
    """The LoRA's scale is alpha / rank; None takes alpha = rank."""
    target_modules: tuple[str, ...] = LINEAR
    """Layers that get a LoRA, by the ends of their names; by default all projections of Llama's blocks."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Of the LoRA. With any, the first ratio is not 1."""
    lr_schedule: Literal["constant", "cosine", "linear"] = "constant"
    """How both learning rates fall over all the rounds of the recipe."""
    warmup_steps: int = Field(default=0, ge=0)
    """Optimizer steps over which the policy's learning rate first rises, counted over all rounds."""
    epochs: float = Field(default=1.0, gt=0)
    """How often each answer is seen in a round."""
    batch_size: int = Field(default=32, ge=1)
    """Answers per optimizer step."""
    rows_per_pass: int = Field(default=64, ge=1)
    """Answers through a network at once; an optimizer step is cut accordingly, and gives the same but for dropout."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: slower, and a good deal less memory."""
    max_grad_norm: float | None = Field(default=None, gt=0)
    """Gradients longer than this are shortened to it, those of policy and critic each as a whole."""
    weight_decay: float = Field(default=0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    precision: DType | None = None
    """What training computes in; None takes the model's dtype. Trained weights and their state are float32 always."""


def update(
    optim: torch.optim.Optimizer, config: StepsConfig, *, rate: float, step: int, where: str = "finetuner"
) -> float:
    """Let the gradients act: clipped, stepped, gone. Returns their norm before clipping. ``step`` counts from 1.

    Raises:
        UserError: the gradients are no longer numbers.
    """
    norm = optimizer.clip(optim, config.max_grad_norm, step=step, where=where)
    for group in optim.param_groups:
        group["lr"] = rate
    optim.step()
    optim.zero_grad(set_to_none=True)
    return float(norm)


def passes(places: Sequence[int], rows: int) -> Iterator[list[int]]:
    """A step cut into what goes through a network at once."""
    for start in range(0, len(places), rows):
        yield list(places[start : start + rows])
