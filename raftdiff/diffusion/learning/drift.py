"""How far the tuned model has moved from its base."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager

import torch
from jaxtyping import Float
from torch import Tensor

from raftdiff.diffusion.models.loaded import Parts
from raftdiff.diffusion.process import add_noise, draw_places
from raftdiff.diffusion.sizes import alike
from raftdiff.seeds import fold


def drift(
    parts: Parts,
    base_weights: Callable[[], AbstractContextManager[None]],
    latents: Iterable[Tensor],
    captions: Sequence[str],
    *,
    seed: int = 0,
    batch_size: int = 8,
) -> float:
    """Mean squared difference between the tuned and the base model's predictions, in the units of the prediction.

    Each of ``latents`` is (channels, height, width); they may differ in size. Noise and timesteps (one a row,
    stratified over the schedule of those of one size) follow from ``seed`` alone, so drifts of one model at
    different times compare. 0 for no rows. Two network evaluations a row.
    """
    rows, total = list(latents), 0.0
    for same in alike(range(len(rows)), [one.shape for one in rows]):
        these, texts = torch.stack([rows[row] for row in same]), [captions[row] for row in same]
        moved = _of_one_size(parts, base_weights, these, texts, seed=seed, batch_size=batch_size)
        total += len(same) / len(rows) * moved
    return total


def _of_one_size(
    parts: Parts,
    base_weights: Callable[[], AbstractContextManager[None]],
    latents: Float[Tensor, "rows channels height width"],
    captions: Sequence[str],
    *,
    seed: int,
    batch_size: int,
) -> float:
    process = parts.process
    generator = torch.Generator().manual_seed(fold(seed, "drift"))
    places = draw_places("stratified", len(latents), len(process), generator)
    noise = torch.randn(latents.shape, generator=generator)
    xt, timesteps = add_noise(latents.float().cpu(), noise, process.level[places]), process.timesteps[places]
    tuned = _predictions(parts, xt, timesteps, captions, batch_size)
    with base_weights():
        base = _predictions(parts, xt, timesteps, captions, batch_size)
    return float(((tuned - base) ** 2).mean())


@torch.no_grad()
def _predictions(parts: Parts, xt: Tensor, timesteps: Tensor, captions: Sequence[str], batch_size: int) -> Tensor:
    texts = parts.prompts(captions)
    rows = [torch.arange(start, min(start + batch_size, len(xt))) for start in range(0, len(xt), batch_size)]
    return torch.cat([parts.predict(xt[row], timesteps[row], texts[row.to(texts.device)]).cpu() for row in rows])
