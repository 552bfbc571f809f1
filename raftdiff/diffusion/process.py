"""How a picture becomes noise, and what a network says of the two, as pure functions of tensors.

    x0      the latent of a picture, as the denoiser sees it (the VAE's output, shifted and scaled)
    noise   epsilon, standard normal
    a, s    how much of each there is at a timestep, after Kingma et al. 2021 (arXiv:2107.00630): alpha and sigma
    xt      a x0 + s noise

            a and s                 what networks predict
    diffusion (Ho et al. 2020, arXiv:2006.11239)
            a^2 + s^2 = 1           epsilon: noise;  v: a noise - s x0 (Salimans & Ho 2022, arXiv:2202.00512)
    rectified flow (Liu et al. 2022, arXiv:2209.03003)
            a + s = 1               flow: noise - x0, the velocity dxt/ds

Both are ``Process``es, and all else is written once for both. A ``Level`` holds one a and one s per row, of shape
(batch,); pictures have any shape behind their batch axis.
"""

from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

Latents = Float[Tensor, "batch *latent"]
PerRow = Float[Tensor, " batch"]
Prediction = Literal["epsilon", "v_prediction", "flow"]
PREDICTIONS = ("epsilon", "v_prediction", "flow")


@final
@dataclass(frozen=True, slots=True, eq=False)
class Level:
    """How much picture and how much noise."""

    a: PerRow
    s: PerRow

    def __len__(self) -> int:
        return len(self.a)

    def __getitem__(self, rows: Int[Tensor, " some"] | slice) -> "Level":
        return Level(self.a[rows], self.s[rows])

    def to(self, device: torch.device) -> "Level":
        return Level(self.a.to(device), self.s.to(device))

    def snr(self) -> PerRow:
        """Signal-to-noise ratio (a / s)^2: 0 for pure noise."""
        return (self.a / self.s) ** 2


@final
@dataclass(frozen=True, slots=True, eq=False)
class Process:
    """What a model was trained on: its timesteps, from the least noise to the most."""

    level: Level
    timesteps: Shaped[Tensor, " timesteps"]
    """What the network is told of each: their places, or, of a flow, 1000 s."""
    predicts: Prediction

    def __len__(self) -> int:
        return len(self.level)

    def to(self, device: torch.device) -> "Process":
        return Process(self.level.to(device), self.timesteps.to(device), self.predicts)


def diffusion(scheduler: Any) -> Process:
    """The process of a diffusers scheduler of DDPM's kind; exactly pure noise at the end where the schedule says so.

    Some of diffusers' schedulers keep 2**-24 there, lest their solvers divide by zero; training wants the true value.

    Raises:
        ValueError: its network predicts something else.
    """
    abar: Tensor = scheduler.alphas_cumprod.detach().float().cpu().clone()
    if scheduler.config.get("rescale_betas_zero_snr", False):
        abar[-1] = 0.0
    return Process(of_abar(abar), torch.arange(len(abar)), _known(scheduler.config.prediction_type))


def of_abar(abar: PerRow) -> Level:
    """The level at which the picture's share of the variance is ``abar``, the cumulative product of DDPM's alphas."""
    return Level(abar.sqrt(), (1.0 - abar).sqrt())


def flow(shift: float = 1.0, timesteps: int = 1000) -> Process:
    """Rectified flow at ``timesteps`` levels of noise, more of them noisy the larger the shift.

    s = shift t / (1 + (shift - 1) t) of evenly spaced t: Esser et al. 2024, arXiv:2403.03206, equation 23.
    """
    even = torch.arange(1, timesteps + 1, dtype=torch.float32) / timesteps
    s = shift * even / (1 + (shift - 1) * even)
    return Process(Level(1.0 - s, s), s * timesteps, "flow")


def level_at(process: Process, timestep: Float[Tensor, ""] | Int[Tensor, ""]) -> Level:
    """The level of one timestep as solvers tell it to a network: of a flow s times their number, else a place on the
    schedule, which of Euler's solvers may lie between two."""
    told = timestep.detach().float().cpu().view(1)
    if process.predicts == "flow":
        s = told / len(process)
        return Level(1.0 - s, s)
    low = told.floor().long().clamp(0, len(process) - 1)
    abar = process.level.a.cpu() ** 2
    between = abar[low] + (told - low) * (abar[(low + 1).clamp(max=len(process) - 1)] - abar[low])
    return of_abar(between)


def rows(values: Shaped[Tensor, " batch"], like: Float[Tensor, "batch *any"]) -> Tensor:
    """Per-row values with trailing axes of one, so that they multiply ``like``."""
    return values.view(-1, *[1] * (like.ndim - 1))


def add_noise(x0: Latents, noise: Latents, level: Level) -> Latents:
    """xt from x0 and noise."""
    return rows(level.a, x0) * x0 + rows(level.s, x0) * noise


def target(predicts: Prediction, x0: Latents, noise: Latents, level: Level) -> Latents:
    """What the network should say."""
    match predicts:
        case "epsilon":
            return noise
        case "v_prediction":
            return rows(level.a, x0) * noise - rows(level.s, x0) * x0
        case "flow":
            return noise - x0


def to_x0(predicts: Prediction, prediction: Latents, xt: Latents, level: Level) -> Latents:
    """The picture that a prediction means; not finite for epsilon-prediction at a = 0, which says nothing of it."""
    a, s = rows(level.a, xt), rows(level.s, xt)
    match predicts:
        case "epsilon":
            return (xt - s * prediction) / a
        case "v_prediction":
            return a * xt - s * prediction
        case "flow":
            return xt - s * prediction


def to_noise(predicts: Prediction, prediction: Latents, xt: Latents, level: Level) -> Latents:
    """The noise that a prediction means."""
    a, s = rows(level.a, xt), rows(level.s, xt)
    match predicts:
        case "epsilon":
            return prediction
        case "v_prediction":
            return a * prediction + s * xt
        case "flow":
            return xt + a * prediction


def offset_noise(noise: Latents, offset: Float[Tensor, "batch channels"], strength: float) -> Latents:
    """Noise with a random constant added to each channel, so that the mean colour is learned too (Guttenberg 2023)."""
    return noise + strength * offset.view(*offset.shape, *[1] * (noise.ndim - 2))


def pure_noise(noise: Latents, x0: Latents, level: Level, chosen: Bool[Tensor, " batch"]) -> Latents:
    """Noise for which xt *is* the noise drawn, in the chosen rows: what a sampler starts from, at a step where the
    schedule still leaves a trace of the picture.

    Solves a x0 + s n = noise for n. Everything behind it, xt and the target, follows from n as usual, so the target is
    consistent with the input: reading the solution off it leads to x0. A departure from zero-terminal-SNR training for
    models whose schedule is not so; those keep their schedule and their sampler.
    """
    implied = (noise - rows(level.a, x0) * x0) / rows(level.s, x0)
    return torch.where(rows(chosen, x0), implied, noise)


def guided(unconditional: Latents, conditional: Latents, scale: PerRow, rescale: float = 0.0) -> Latents:
    """Classifier-free guidance, u + w (c - u) (arXiv:2207.12598, in the convention where w = 1 is no guidance).

    Args:
        rescale: the share that is brought back to the standard deviation of c, row by row, since guidance spreads what
            is predicted (Lin et al. 2023, arXiv:2305.08891, equations 15 and 16, where it is phi).
    """
    predicted = unconditional + rows(scale, conditional) * (conditional - unconditional)
    if rescale == 0:
        return predicted
    axes = tuple(range(1, predicted.ndim))
    spread = conditional.std(dim=axes, keepdim=True) / predicted.std(dim=axes, keepdim=True)
    return rescale * spread * predicted + (1 - rescale) * predicted


def min_snr_weight(predicts: Prediction, level: Level, gamma: float) -> PerRow:
    """Min-SNR-gamma (Hang et al. 2023, arXiv:2303.09556): min(SNR, gamma) on the x0 loss, in the loss's own units.

    The epsilon loss is the x0 loss times SNR, those of v and of flow are it divided by s^2; so min(SNR, gamma) becomes
    min(SNR, gamma) / SNR, and min(SNR, gamma) s^2. The second is 0 at pure noise: under a schedule that ends there, the
    last step, which sets the composition, is then not trained. The paper has no flow; it follows from the x0 loss.
    """
    ratio = level.snr()
    if predicts == "epsilon":
        return (gamma / ratio).clamp(max=1.0)
    return ratio.clamp(max=gamma) * level.s**2


def draw_places(kind: str, count: int, places: int, generator: torch.Generator) -> Int[Tensor, " count"]:
    """``count`` places in a row of so many, timesteps or steps, long, on the CPU.

    ``uniform``; ``stratified``: one from each of ``count`` equal stretches, in random order, which has the same mean
    loss and less variance; ``logit_normal``: the middle more often (arXiv:2403.03206).
    """
    if kind == "uniform":
        place = torch.rand(count, generator=generator)
    elif kind == "stratified":
        place = (torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)) / count
    elif kind == "logit_normal":
        place = torch.randn(count, generator=generator).sigmoid()
    else:
        raise ValueError(f"timestep sampling {kind!r} is not one of uniform, stratified, logit_normal")
    return (place * places).long().clamp(0, places - 1)


def _known(predicts: str) -> Prediction:
    if predicts not in PREDICTIONS:
        raise ValueError(f"prediction type {predicts!r} is not one of {', '.join(PREDICTIONS)}")
    return predicts  # type: ignore[return-value]
