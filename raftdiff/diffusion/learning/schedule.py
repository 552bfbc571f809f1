"""The diffusion process as pure functions of tensors.

Notation, after Ho et al. 2020 (arXiv:2006.11239) and Salimans & Ho 2022 (arXiv:2202.00512):

    x0      the latent of a picture, as the denoiser sees it (the VAE's output times its scaling factor)
    noise   epsilon, standard normal
    abar    the cumulative product of alphas at a timestep: the share of the picture in the variance
    xt      sqrt(abar) x0 + sqrt(1 - abar) noise
    v       sqrt(abar) noise - sqrt(1 - abar) x0

``abar`` arguments hold one value per row, of shape (batch,); pictures have any shape behind their batch axis.
"""

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

Latents = Float[Tensor, "batch *latent"]
PerRow = Float[Tensor, " batch"]
Schedule = Float[Tensor, " timesteps"]


def betas(start: float, end: float, timesteps: int, kind: str) -> Schedule:
    """The variances that a scheduler config names: ``linear``, or SD's ``scaled_linear`` (linear in the root)."""
    if kind == "linear":
        return torch.linspace(start, end, timesteps, dtype=torch.float32)
    if kind == "scaled_linear":
        return torch.linspace(start**0.5, end**0.5, timesteps, dtype=torch.float32) ** 2
    raise ValueError(f"beta schedule {kind!r} is not one of linear, scaled_linear")


def alphas_cumprod(beta: Schedule) -> Schedule:
    return torch.cumprod(1.0 - beta, dim=0)


def zero_terminal_snr(abar: Schedule) -> Schedule:
    """The schedule shifted and scaled so that the last step is pure noise and the first is unchanged.

    Algorithm 1 of Lin et al. 2023 (arXiv:2305.08891), on abar where the paper goes through the betas.
    """
    root = abar.sqrt()
    first, last = root[0].clone(), root[-1].clone()
    return ((root - last) * first / (first - last)) ** 2


def of_scheduler(scheduler: object) -> Schedule:
    """The abar of a diffusers scheduler, float32 on the CPU; exactly zero at the end where the schedule ends in noise.

    Some of diffusers' schedulers put 2**-24 there, lest their solvers divide by zero; training wants the true value.
    """
    abar: Tensor = scheduler.alphas_cumprod.detach().float().cpu().clone()  # type: ignore[attr-defined]
    if scheduler.config.get("rescale_betas_zero_snr", False):  # type: ignore[attr-defined]
        abar[-1] = 0.0
    return abar


def rows(values: Shaped[Tensor, " batch"], like: Float[Tensor, "batch *any"]) -> Tensor:
    """Per-row values with trailing axes of one, so that they multiply ``like``."""
    return values.view(-1, *[1] * (like.ndim - 1))


def snr(abar: Float[Tensor, " any"]) -> Float[Tensor, " any"]:
    """Signal-to-noise ratio abar / (1 - abar): 0 for pure noise."""
    return abar / (1.0 - abar)


def add_noise(x0: Latents, noise: Latents, abar: PerRow) -> Latents:
    """xt from x0 and noise."""
    return rows(abar.sqrt(), x0) * x0 + rows((1.0 - abar).sqrt(), x0) * noise


def velocity(x0: Latents, noise: Latents, abar: PerRow) -> Latents:
    """v from x0 and noise."""
    return rows(abar.sqrt(), x0) * noise - rows((1.0 - abar).sqrt(), x0) * x0


def target(prediction_type: str, x0: Latents, noise: Latents, abar: PerRow) -> Latents:
    """What the network should say."""
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "v_prediction":
        return velocity(x0, noise, abar)
    raise ValueError(f"prediction type {prediction_type!r} is not one of epsilon, v_prediction")


def to_x0(prediction_type: str, prediction: Latents, xt: Latents, abar: PerRow) -> Latents:
    """The picture that a prediction means; not finite for epsilon-prediction at abar = 0, which says nothing of it."""
    signal, noise_level = rows(abar.sqrt(), xt), rows((1.0 - abar).sqrt(), xt)
    if prediction_type == "epsilon":
        return (xt - noise_level * prediction) / signal
    return signal * xt - noise_level * prediction


def to_noise(prediction_type: str, prediction: Latents, xt: Latents, abar: PerRow) -> Latents:
    """The noise that a prediction means."""
    if prediction_type == "epsilon":
        return prediction
    return rows(abar.sqrt(), xt) * prediction + rows((1.0 - abar).sqrt(), xt) * xt


def offset_noise(noise: Latents, offset: Float[Tensor, "batch channels"], strength: float) -> Latents:
    """Noise with a random constant added to each channel, so that the mean colour is learned too (Guttenberg 2023)."""
    return noise + strength * offset.view(*offset.shape, *[1] * (noise.ndim - 2))


def pure_noise(noise: Latents, x0: Latents, abar: PerRow, chosen: Bool[Tensor, " batch"]) -> Latents:
    """Noise for which xt *is* the noise drawn, in the chosen rows: what a sampler starts from, at a step where the
    schedule still leaves a trace of the picture.

    Solves sqrt(abar) x0 + sqrt(1 - abar) n = noise for n. Everything behind it, xt and the target, follows from n as
    usual, so the target is consistent with the input: reading the solution off it leads to x0. A departure from
    zero-terminal-SNR training for models whose schedule is not so; those keep their schedule and their sampler.
    """
    implied = (noise - rows(abar.sqrt(), x0) * x0) / rows((1.0 - abar).sqrt(), x0)
    return torch.where(rows(chosen, x0), implied, noise)


def guided(unconditional: Latents, conditional: Latents, scale: PerRow) -> Latents:
    """Classifier-free guidance, u + w (c - u) (arXiv:2207.12598, in the convention where w = 1 is no guidance)."""
    return unconditional + rows(scale, conditional) * (conditional - unconditional)


def min_snr_weight(prediction_type: str, abar: PerRow, gamma: float) -> PerRow:
    """Min-SNR-gamma (Hang et al. 2023, arXiv:2303.09556): min(SNR, gamma) on the x0 loss, in the loss's own units.

    The epsilon loss is the x0 loss times SNR, the v loss is it times SNR + 1; so min(SNR, gamma) becomes
    min(SNR, gamma) / SNR, and min(SNR, gamma) / (SNR + 1). The second is 0 at pure noise: under a zero-terminal-SNR
    schedule the last step, which sets the composition, is then not trained.
    """
    ratio = snr(abar)
    if prediction_type == "epsilon":
        return (gamma / ratio).clamp(max=1.0)
    return ratio.clamp(max=gamma) / (ratio + 1.0)


def draw_timesteps(kind: str, count: int, timesteps: int, generator: torch.Generator) -> Int[Tensor, " count"]:
    """``count`` timesteps, long, on the CPU.

    ``uniform``; ``stratified``: one from each of ``count`` equal stretches, in random order, which has the same mean
    loss and less variance; ``logit_normal``: the middle of the schedule more often (arXiv:2403.03206).
    """
    if kind == "uniform":
        place = torch.rand(count, generator=generator)
    elif kind == "stratified":
        place = (torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)) / count
    elif kind == "logit_normal":
        place = torch.randn(count, generator=generator).sigmoid()
    else:
        raise ValueError(f"timestep sampling {kind!r} is not one of uniform, stratified, logit_normal")
    return (place * timesteps).long().clamp(0, timesteps - 1)
