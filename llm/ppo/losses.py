"""What PPO learns by, beside the clipped objective (``raftdiff.llm.learning.policy_gradient``): rewards of single
tokens, advantages, the critic's loss, and the running figures that keep them in range.

Shapes are those of ``raftdiff.llm.model.tokens``: (batch, targets), a mask that is true where the target is a response
token; the value that stands at a target is that of the state before it. What is outside the mask has no influence,
comes out as 0, and has no gradient.

Source: Schulman et al. 2016, arXiv:1506.02438, and 2017, arXiv:1707.06347; for language models Zheng et al. 2023,
"Secrets of RLHF in Large Language Models Part I: PPO", arXiv:2307.04964.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from raftdiff.errors import UserError
from raftdiff.llm.model.tokens import kl_estimates

Values = Float[Tensor, "batch targets"]
Mask = Bool[Tensor, "batch targets"]
PerRow = Float[Tensor, " batch"]

EPSILON = 1e-6
"""Added to the variance when whitening, as in the released code; also the least spread that rewards are divided by."""
KL_ERROR = 0.2
"""How far the adaptive coefficient looks off its target, either way (Ziegler et al. 2019)."""


class Advantages(NamedTuple):
    """Without gradient."""

    advantages: Values
    """How much better each token turned out than the critic had expected."""
    returns: Values
    """advantages + values: what the critic should have said."""


def token_rewards(lp_old: Values, ref: Values, reward: PerRow, mask: Mask, beta: float) -> Values:
    """-beta (lp_old - ref) at every response token, and the answer's reward at its last one: never at a padding token.

    ``lp_old`` is the policy that sampled, ``ref`` the reference. The KL penalty is neither scaled nor clipped; the
    ``reward`` comes scaled and clipped (``RewardScaler``).

    Source: arXiv:2307.04964; Ziegler et al. 2019, arXiv:1909.08593, for the penalty in the reward.

    Raises:
        UserError: an answer has no token that could carry its reward.
    """
    if not bool(mask.any(dim=1).all()):
        rows = torch.nonzero(~mask.any(dim=1)).flatten().tolist()
        raise UserError(f"Rows {rows} of the batch have no response token to carry a reward; leave empty answers out.")
    position = torch.arange(mask.shape[1], device=mask.device)
    last = position == torch.where(mask, position, -1).amax(dim=1, keepdim=True)
    penalty = -beta * kl_estimates(lp_old, ref).k1
    return (torch.where(mask, penalty, 0.0) + torch.where(last, reward[:, None], 0.0)).detach()


def gae(rewards: Values, values: Values, mask: Mask, gamma: float, lam: float) -> Advantages:
    """A_t = d_t + gamma lam A_{t+1}, with d_t = r_t + gamma V_{t+1} - V_t; V and A past the end of an answer are 0.

    ``values`` are the critic's at the time of sampling. t + 1 is the answer's next token in the mask. lam = gamma = 1
    makes advantages + values the sum of the rewards to come; lam = 0 is the one-step error.

    Source: arXiv:1506.02438, eq 16.
    """
    rewards, values = (torch.where(mask, table.detach(), 0.0) for table in (rewards, values))
    advantages = torch.zeros_like(values)
    next_advantage, next_value = torch.zeros_like(values[:, 0]), torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        error = rewards[:, t] + gamma * next_value - values[:, t]
        advantages[:, t] = torch.where(mask[:, t], error + gamma * lam * next_advantage, 0.0)
        next_advantage = torch.where(mask[:, t], advantages[:, t], next_advantage)
        next_value = torch.where(mask[:, t], values[:, t], next_value)
    return Advantages(advantages, advantages + values)


def whiten(values: Values, mask: Mask) -> Values:
    """(x - mean) / sqrt(variance + 1e-6) over all response tokens of the batch; population variance.

    A single token comes out as 0.
    """
    count = mask.sum().clamp(min=1)
    centred = torch.where(mask, values - torch.where(mask, values, 0.0).sum() / count, 0.0)
    return centred * torch.rsqrt(centred.square().sum() / count + EPSILON)


def value_loss(new: Values, old: Values, returns: Values, mask: Mask, clip: float | None) -> Values:
    """max((V - R)^2, (clip(V, V_old - clip, V_old + clip) - R)^2) / 2 per token; lower is better.

    The maximum means that the clip never makes the loss smaller: a value that ran more than ``clip`` away from the old
    one, towards the return, has no gradient. None leaves the value unclipped. Per token, as the policy's loss:
    ``tokens.aggregate(losses, mask, "token_mean")`` is their mean over a step.

    Source: the released code of arXiv:2307.04964; the clip is that of OpenAI's baselines (ppo2).
    """
    old, returns = (torch.where(mask, table.detach(), 0.0) for table in (old, returns))
    kept = torch.where(mask, new, 0.0)
    errors = (kept - returns).square()
    if clip is not None:
        errors = torch.maximum(errors, (old + (kept - old).clamp(-clip, clip) - returns).square())
    return errors / 2


def adaptive_kl(beta: float, observed: float, target: float, count: int, horizon: float | int) -> float:
    """The next coefficient of the KL penalty: higher where the KL (nats an answer) is above ``target``, else lower.

    beta (1 + clip(observed / target - 1, -0.2, 0.2) count / horizon), with ``count`` the answers seen since the last
    change and ``horizon`` how many a correction is spread over.

    Source: Ziegler et al. 2019, arXiv:1909.08593, section 2.2.

    >>> round(adaptive_kl(0.2, 9.0, 6.0, 256, 10000), 6)
    0.201024
    """
    error = min(KL_ERROR, max(-KL_ERROR, observed / target - 1))
    return beta * (1 + error * count / horizon)


@final
@dataclass
class RewardScaler:
    """Mean and standard deviation (n - 1) of every reward seen so far, and rewards brought into range by them.

    NaN, a discarded answer, is not counted and comes out as NaN. Source: arXiv:2307.04964, eq 18.
    """

    count: float = 0.0
    mean: float = 0.0
    squares: float = 0.0
    """Summed squared distances from the mean."""

    @property
    def std(self) -> float:
        """1 where there is no spread to speak of, as after a first reward: the released code has NaN there."""
        std = (self.squares / (self.count - 1)) ** 0.5 if self.count > 1 else 0.0
        return std if std > EPSILON else 1.0

    def scale(self, rewards: PerRow, *, subtract_mean: bool, clip: float | None) -> PerRow:
        """Takes ``rewards`` up, then gives them back over the standard deviation, at most ``clip`` either way.

        With ``subtract_mean`` it is the paper's eq 18; without, the released code's default. Call it once for each
        reward: what is called twice counts twice.
        """
        self._take_up(rewards)
        scaled = (rewards.double() - (self.mean if subtract_mean else 0.0)) / self.std
        return (scaled if clip is None else scaled.clamp(-clip, clip)).to(rewards.dtype)

    def state_dict(self) -> dict[str, Tensor]:
        figures = {"count": self.count, "mean": self.mean, "squares": self.squares}
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in figures.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.count, self.mean, self.squares = (float(state[name]) for name in ("count", "mean", "squares"))

    def _take_up(self, rewards: PerRow) -> None:
        """Two samples' moments merged (Chan et al. 1979), in double precision."""
        new = rewards.detach().double()
        new = new[~new.isnan()]
        if not len(new):
            return
        mean, total = float(new.mean()), self.count + len(new)
        gap = mean - self.mean
        self.squares += float((new - mean).square().sum()) + gap**2 * self.count * len(new) / total
        self.mean += gap * len(new) / total
        self.count = total
