"""Denoising as a chain of random steps, and the policy gradient through one of them, as pure functions.

A DDIM step with eta > 0 draws x' from a Gaussian of known mean and deviation (arXiv:2010.02502, equations 12 and 16):

    deviation = eta (s' / s) sqrt(s^2 - (a s' / a')^2)
    mean      = a' x0 + sqrt(s'^2 - deviation^2) noise,    x0 and noise as the prediction means them

a and s are the step's own level, a' and s' that which it leads to. So the probability of a step that was drawn is known
to every model that predicts at x, and can be raised or lowered: DDPO, arXiv:2305.13301. The paper of DDIM has
a^2 + s^2 = 1, where the deviation is its own; written so, the step keeps the levels of a flow too.

**Unit.** Log-probabilities are means over the numbers of a latent, not sums, as in the authors' code
(kvablack/ddpo-pytorch). A ratio of probabilities is thus the root of the true one, of that many numbers, and its clip
is small: 1e-4.
"""

from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from raftdiff.diffusion.process import Latents, Level, PerRow, Prediction, of_abar, rows, to_noise, to_x0
from raftdiff.errors import UserError

PerStep = Float[Tensor, " steps"]


@final
@dataclass(frozen=True, slots=True)
class Chain:
    """The steps by which a sampler draws, from noise to picture; on the CPU."""

    timesteps: Shaped[Tensor, " steps"]
    level: Level
    following: Level
    """a' and s'."""
    deviation: PerStep
    guidance: float
    """With which they were drawn; 1 is none."""

    def random(self) -> Int[Tensor, " some"]:
        """Places of the steps that draw noise. The last draws none where the schedule ends in the picture itself.

        Raises:
            UserError: none does.
        """
        places = torch.nonzero(self.deviation > 0).flatten()
        if not len(places):
            raise UserError(
                "sampler.steps: no step of this sampler draws noise, so ddpo has nothing to learn from; use more steps."
            )
        return places


def chain_of(scheduler: Any, eta: float, guidance: float, *, flow: bool = False) -> Chain:
    """The chain of a solver of diffusers whose steps are set. DDIM's is what it draws by, and Euler's of a flow; of
    another, such as DPM++, it has the levels of the states, and the steps are those that DDIM would take between them.

    Args:
        flow: whether the solver's sigmas are those of a flow.

    Raises:
        UserError: the model's scheduler confines x0.
    """
    config, ddim = scheduler.config, hasattr(scheduler, "final_alpha_cumprod")
    if (ddim and config.clip_sample) or config.get("thresholding"):
        raise UserError(
            "finetuner.learning: steps that are clipped cannot be learnt from, and this model's scheduler_config.json "
            "says clip_sample or thresholding; set both to false, as they should be for latents."
        )
    timesteps = scheduler.timesteps.cpu()
    if ddim:
        timesteps, abar = timesteps.long(), scheduler.alphas_cumprod.float().cpu()
        before = timesteps - config.num_train_timesteps // scheduler.num_inference_steps
        end = scheduler.final_alpha_cumprod.float().cpu()
        level, following = of_abar(abar[timesteps]), of_abar(torch.where(before >= 0, abar[before.clamp(min=0)], end))
        return Chain(timesteps, level, following, ddim_deviation(level, following, eta), guidance)
    # the levels that the solver works at, which may lie between the timesteps
    sigmas = scheduler.sigmas.float().cpu()
    levels = Level(1 - sigmas, sigmas) if flow else of_abar(1 / (1 + sigmas**2))
    level, following = levels[:-1], levels[1:]
    renewed = following.s if config.get("stochastic_sampling") else torch.zeros_like(following.s)
    return Chain(timesteps, level, following, renewed, guidance)


def ddim_deviation(level: Level, following: Level, eta: float) -> PerStep:
    """Standard deviation of each step; 0 where it leads to the picture itself."""
    left = (level.s**2 - (level.a * following.s / following.a) ** 2).clamp(min=0)
    deviation: PerStep = eta * following.s / level.s * left.sqrt()
    return deviation


def ddim_mean(
    predicts: Prediction, prediction: Latents, xt: Latents, *, level: Level, following: Level, deviation: PerRow
) -> Latents:
    """Where a step leads on average, one step a row."""
    x0, noise = to_x0(predicts, prediction, xt, level), to_noise(predicts, prediction, xt, level)
    onward = (following.s**2 - deviation**2).clamp(min=0).sqrt()
    mean: Latents = rows(following.a, xt) * x0 + rows(onward, xt) * noise
    return mean


def log_ratio(drawn: Latents, mean: Latents, old: Latents, deviation: PerRow) -> PerRow:
    """log p(drawn) - log p_old(drawn) of Gaussians of one deviation, mean over a latent's numbers; where the means are
    the same it is 0, to the bit."""
    squares = (mean - old) * (2 * drawn - mean - old)  # (drawn - old)^2 - (drawn - mean)^2
    ratio: PerRow = squares.flatten(1).mean(dim=1) / (2 * deviation**2)
    return ratio


def clipped(ratio: PerRow, advantage: PerRow, clip: float) -> PerRow:
    """-min(A rho, A clip(rho, 1 - c, 1 + c)): -A at rho = 1, and no gradient once rho has moved by c the way that A
    wants it. Source: PPO, arXiv:1707.06347, equation 7."""
    return -torch.minimum(advantage * ratio, advantage * ratio.clamp(1 - clip, 1 + clip))
