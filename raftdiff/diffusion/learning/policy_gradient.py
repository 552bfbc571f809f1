"""Denoising as a chain of random steps, and the policy gradient through one of them, as pure functions.

A DDIM step with eta > 0 draws x' from a Gaussian of known mean and deviation (arXiv:2010.02502, equations 12 and 16):

    deviation = eta sqrt((1 - abar') / (1 - abar)) sqrt(1 - abar / abar')
    mean      = sqrt(abar') x0 + sqrt(1 - abar' - deviation^2) noise,    x0 and noise as the prediction means them

abar is the step's own level, abar' that which it leads to. So the probability of a step that was drawn is known to
every model that predicts at x, and can be raised or lowered: DDPO, arXiv:2305.13301.

**Unit.** Log-probabilities are means over the numbers of a latent, not sums, as in the authors' code
(kvablack/ddpo-pytorch). A ratio of probabilities is thus the root of the true one, of that many numbers, and its clip
is small: 1e-4.
"""

from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from raftdiff.diffusion.learning import schedule
from raftdiff.diffusion.learning.schedule import Latents, PerRow
from raftdiff.errors import UserError

PerStep = Float[Tensor, " steps"]


@final
@dataclass(frozen=True, slots=True)
class Chain:
    """The steps by which a sampler draws, from noise to picture; on the CPU."""

    timesteps: Int[Tensor, " steps"]
    abar: PerStep
    following: PerStep
    """abar'."""
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


def chain_of(scheduler: Any, eta: float, guidance: float) -> Chain:
    """The chain of a solver of diffusers whose steps are set. DDIM's is what it draws by; of another, such as DPM++, it
    has the levels of the states, and the steps are those that DDIM would take between them.

    Raises:
        UserError: the model's scheduler confines x0.
    """
    config, ddim = scheduler.config, hasattr(scheduler, "final_alpha_cumprod")
    if (ddim and config.clip_sample) or config.thresholding:
        raise UserError(
            "finetuner.learning: steps that are clipped cannot be learnt from, and this model's scheduler_config.json "
            "says clip_sample or thresholding; set both to false, as they should be for latents."
        )
    timesteps = scheduler.timesteps.cpu().long()
    if ddim:
        abar = scheduler.alphas_cumprod.float().cpu()
        level = abar[timesteps]
        before = timesteps - config.num_train_timesteps // scheduler.num_inference_steps
        end = scheduler.final_alpha_cumprod.float().cpu()
        following = torch.where(before >= 0, abar[before.clamp(min=0)], end)
    else:  # the levels that the solver works at, which may lie between the timesteps
        levels = 1 / (1 + scheduler.sigmas.float().cpu() ** 2)
        level, following = levels[:-1], levels[1:]
    return Chain(timesteps, level, following, ddim_deviation(level, following, eta), guidance)


def ddim_deviation(abar: PerStep, following: PerStep, eta: float) -> PerStep:
    """Standard deviation of each step; 0 where it leads to the picture itself."""
    deviation: PerStep = eta * ((1 - following) / (1 - abar) * (1 - abar / following)).clamp(min=0).sqrt()
    return deviation


def ddim_mean(
    prediction_type: str, prediction: Latents, xt: Latents, *, abar: PerRow, following: PerRow, deviation: PerRow
) -> Latents:
    """Where a step leads on average, one step a row."""
    x0 = schedule.to_x0(prediction_type, prediction, xt, abar)
    noise = schedule.to_noise(prediction_type, prediction, xt, abar)
    onward = (1 - following - deviation**2).clamp(min=0).sqrt()
    mean: Latents = schedule.rows(following.sqrt(), xt) * x0 + schedule.rows(onward, xt) * noise
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
