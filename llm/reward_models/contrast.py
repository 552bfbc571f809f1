"""Contrastive learning beside a reward model's own loss: features of the same text under two dropout masks should be
alike, and unlike those of other texts, so that chosen and rejected answers are told apart by more than their words.

Source: Wang et al. 2024, "Secrets of RLHF in Large Language Models Part II", arXiv:2401.06080, section 3.2.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal, TypeAlias

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import dropout

from raftdiff.llm.reward_models.losses import simcse, swav
from raftdiff.recipes.config import Config

Features = Float[Tensor, "pairs width"]
Form = Literal["direct", "difference"]


class NoContrastConfig(Config):
    """The reward model's own loss alone."""

    type: Literal["none"] = "none"


class SimcseConfig(Config):
    """SimCSE (arXiv:2104.08821): of all features of the step, a text's own second view should be the nearest."""

    type: Literal["simcse"] = "simcse"
    form: Form = "direct"
    """Of which features: direct, those of chosen and of rejected answers (the paper's best); difference, chosen less
    rejected and rejected less chosen."""
    weight: float = Field(default=1.0, ge=0)
    """beta, the share in the loss; 1 in the paper."""
    temperature: float = Field(default=0.05, gt=0)
    """tau; SimCSE's own, since the paper does not give it."""
    dropout: float = Field(default=0.05, ge=0, lt=1)
    """Share of the input embeddings' numbers that is dropped in each view."""


class SwavConfig(Config):
    """SwAV (arXiv:2006.09882): from each view of a text one should tell which prototypes the other belongs to."""

    type: Literal["swav"] = "swav"
    form: Form = "difference"
    """Of which features: direct, those of chosen and of rejected answers; difference, chosen less rejected and rejected
    less chosen."""
    weight: float = Field(default=0.5, ge=0)
    """beta, the share in the loss; in the paper 0.5 for differences and 0.1 for direct."""
    temperature: float = Field(default=0.1, gt=0)
    """tau; SwAV's own."""
    dropout: float = Field(default=0.05, ge=0, lt=1)
    """Share of the input embeddings' numbers that is dropped in each view."""
    prototypes: int = Field(default=20, ge=2)
    """How many directions are learnt; in the paper 20 for differences and 50 for direct."""
    epsilon: float = Field(default=0.05, gt=0)
    """How soft the codes are; SwAV's own."""
    iterations: int = Field(default=3, ge=1)
    """Of Sinkhorn's algorithm; SwAV's own."""


ContrastConfig: TypeAlias = Annotated[NoContrastConfig | SimcseConfig | SwavConfig, Field(discriminator="type")]
Contrast: TypeAlias = SimcseConfig | SwavConfig


def compared(form: Form, chosen: Features, rejected: Features) -> Float[Tensor, "rows width"]:
    """H, twice as many rows as pairs: {f_c, f_r}, or {f_c - f_r, f_r - f_c}."""
    if form == "direct":
        return torch.cat([chosen, rejected])
    return torch.cat([chosen - rejected, rejected - chosen])


def contrast_loss(
    config: Contrast,
    s: Float[Tensor, "rows width"],
    t: Float[Tensor, "rows width"],
    prototypes: nn.Linear | None,
) -> Float[Tensor, ""]:
    """The loss of two views of the same H, mean over rows; lower is better. SwAV's prototypes are learnt with it."""
    if isinstance(config, SimcseConfig):
        return simcse(s, t, config.temperature)
    assert prototypes is not None
    return swav(s, t, prototypes.weight, tau=config.temperature, epsilon=config.epsilon, iterations=config.iterations)


def fresh_prototypes(config: ContrastConfig, width: int, device: torch.device, seed: int) -> nn.Linear | None:
    """Random directions, as the weights of a layer; None where nothing asks for any."""
    if not isinstance(config, SwavConfig):
        return None
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        layer = nn.Linear(width, config.prototypes, bias=False)
    layer.weight.data.copy_(torch.randn(layer.weight.shape, generator=generator))
    return layer.to(device)


@contextmanager
def dropped_embeddings(model: Any, share: float) -> Iterator[None]:
    """Within, ``share`` of the numbers that the input layer gives is dropped, anew in each pass.

    The paper turns on the dropout that its model has. Many have none (Llama), so here it is on the input embeddings, a
    place that every model has and from which all of its features depend.
    """
    held = model.get_input_embeddings().register_forward_hook(lambda _, __, found: dropout(found, share))
    try:
        yield
    finally:
        held.remove()
