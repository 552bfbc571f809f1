"""Denoising as a chain of random steps, and the policy gradient through one of them, as pure functions.

A DDIM step with eta > 0 draws x' from a Gaussian of known mean and deviation (arXiv:2010.02502, equations 12 and 16):

    deviation = eta (s' / s) sqrt(s^2 - (a s' / a')^2)
    mean      = a' x0 + sqrt(s'^2 - deviation^2) noise,    x0 and noise as the prediction means them

a and s are the step's own level, a' and s' that which it leads to. So the probability of a step that was drawn is known
to every model that predicts at x, and can be raised or lowered: DDPO, arXiv:2305.13301. The paper of DDIM has
a^2 + s^2 = 1, where the deviation is its own; written so, the step keeps the levels of a flow too.

The random steps of other solvers are the same with another deviation, all with the mean above:

    Euler's, ancestral   that of eta = 1
    of consistency       s': a' x0, and all noise anew (arXiv:2303.01469, Algorithm 1; of a flow, stochastic sampling)
    of trajectories      sqrt(1 - (a' / a'')^2): to the lesser noise of t'' = (1 - eta) t', and back to t'
                         (arXiv:2402.19159, Algorithm 4)

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
    rescale: float = 0.0
    """How far the guided prediction's spread was brought back; see ``process.guided``."""

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


def chain_of(scheduler: Any, eta: float, guidance: float, *, rescale: float = 0.0, flow: bool = False) -> Chain:
    """The chain of a solver of diffusers whose steps are set. DDIM's is what it draws by, as are Euler's, TCD's, and
    LCM's but for a share of the state below 1e-5 that it mixes into x0; of another, such as DPM++, it has the levels of
    the states, and the steps are those that DDIM would take between them.

    Args:
        eta: of DDIM and TCD.
        rescale: as ``process.guided`` has it.
        flow: whether the solver's sigmas are those of a flow.

    Raises:
        UserError: the model's scheduler confines x0.
    """
    config, kind = scheduler.config, type(scheduler).__name__
    if (kind in ("DDIMScheduler", "LCMScheduler") and config.clip_sample) or config.get("thresholding"):
        raise UserError(
            "finetuner.learning: steps that are clipped cannot be learnt from, and this model's scheduler_config.json "
            "says clip_sample or thresholding; set both to false, as they should be for latents."
        )
    timesteps = scheduler.timesteps.cpu()
    if kind == "DDIMScheduler":
        timesteps = timesteps.long()
        level, following, deviation = _ddim(scheduler, timesteps, eta)
    elif kind in ("LCMScheduler", "TCDScheduler"):
        level, following, deviation = _consistency(scheduler, timesteps, 1 - eta if kind == "TCDScheduler" else None)
    else:
        level, following, deviation = _by_sigmas(scheduler, flow=flow)
    return Chain(timesteps, level, following, deviation, guidance, rescale)


Steps = tuple[Level, Level, PerStep]


def _ddim(scheduler: Any, timesteps: Int[Tensor, " steps"], eta: float) -> Steps:
    abar, end = scheduler.alphas_cumprod.float().cpu(), scheduler.final_alpha_cumprod.float().cpu()
    before = timesteps - scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    level, following = of_abar(abar[timesteps]), of_abar(torch.where(before >= 0, abar[before.clamp(min=0)], end))
    return level, following, ddim_deviation(level, following, eta)


def _consistency(scheduler: Any, timesteps: Int[Tensor, " steps"], kept: float | None) -> Steps:
    """LCM's, or, with how much of the timestep is kept before noise is drawn, TCD's, whose last step leads to timestep
    0 and not to the picture itself."""
    abar, after = scheduler.alphas_cumprod.float().cpu(), timesteps[1:]
    end = torch.ones(1) if kept is None else abar[:1]
    following, last = of_abar(torch.cat([abar[after], end])), torch.zeros(1)
    if kept is None:
        return of_abar(abar[timesteps]), following, torch.cat([following.s[:-1], last])
    between = abar[torch.floor(kept * after).long()]
    return of_abar(abar[timesteps]), following, torch.cat([(1 - abar[after] / between).sqrt(), last])


def _by_sigmas(scheduler: Any, *, flow: bool) -> Steps:
    # the levels that the solver works at, which may lie between the timesteps
    sigmas = scheduler.sigmas.float().cpu()
    levels = Level(1 - sigmas, sigmas) if flow else of_abar(1 / (1 + sigmas**2))
    level, following = levels[:-1], levels[1:]
    if type(scheduler).__name__ == "EulerAncestralDiscreteScheduler":
        return level, following, ddim_deviation(level, following, 1.0)
    renewed = scheduler.config.get("stochastic_sampling")
    return level, following, following.s if renewed else torch.zeros_like(following.s)


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
