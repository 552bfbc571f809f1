"""What is learned from a selection: each rule is a config, and a loss of predictions, one value an item.

    e(net) = mean (net(xt, t, c) - target)^2 of one picture
    old    the policy as it was when the round's tuning began: with ema the average, which samples
    base   the model before any tuning

``sft`` imitates: it pulls the model to the selected pictures, guidance that they were drawn with and all, and sampling
guides again. The others learn from the difference between better and worse pictures, both drawn with one guidance, so
that what they share cancels. ``ddpo``, ``draft`` and ``refl`` learn on the path of the drawing, not from pictures under
noise; the last two follow the rewards' own gradient.
"""

from dataclasses import dataclass
from typing import Annotated, Literal, Protocol, TypeAlias, final, runtime_checkable

from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from raftdiff.diffusion.learning.policy_gradient import clipped
from raftdiff.diffusion.process import Latents, Level, PerRow, Prediction, to_x0
from raftdiff.errors import UserError
from raftdiff.recipes.config import Config
from raftdiff.types import SelectionKind

Reference = Literal["none", "old", "base"]
PerItem = Float[Tensor, " items"]
LEAST_WIDTH = 1e-5
"""Below it an x0 error is not divided by."""


@final
@dataclass(frozen=True, slots=True)
class Walk:
    """How a path is walked again."""

    starts: range
    """Places of the steps of which one is the first, at random."""
    steps: int
    """How many are taken."""
    leap: bool
    """Whether the last of them leads to the picture itself, wherever the path went on."""


@final
@dataclass(frozen=True, slots=True)
class Rows:
    """Pictures of whole items, side by side, with what networks say of them. Float32."""

    prediction: Latents
    """With gradient."""
    reference: Latents | None
    """What the rule's reference says of the same xt, held fixed."""
    target: Latents
    x0: Latents
    xt: Latents
    level: Level
    predicts: Prediction
    weight: PerRow
    """The item's weight, label (1 good, -1 bad) or advantage."""

    def error(self) -> PerRow:
        """e(theta)."""
        return row_mean((self.prediction - self.target) ** 2)

    def reference_error(self) -> PerRow:
        """e of the reference."""
        assert self.reference is not None
        return row_mean((self.reference - self.target) ** 2)


@runtime_checkable
class Rule(Protocol):
    """``loss`` has a value for each item, lower is better, to be averaged over the items of a step."""

    @property
    def kind(self) -> SelectionKind: ...

    @property
    def reference(self) -> Reference: ...

    def loss(self, rows: Rows) -> PerItem: ...


class SftConfig(Config):
    """Imitation of the selected pictures, each by its weight: RAFT, and with softmax weights reward-weighted
    regression."""

    type: Literal["sft"] = "sft"

    def build(self) -> "Sft":
        return Sft()


class AdvantageConfig(Config):
    """Advantage-weighted matching: toward what is better than its prompt's mean, away from what is worse."""

    type: Literal["advantage"] = "advantage"
    clip: float = Field(default=0.01, gt=0)
    """How far the ratio exp(e(old) - e(theta)) may leave 1 before a picture teaches no more, in units of e."""

    def build(self) -> "Advantage":
        return Advantage(self.clip)


class NftConfig(Config):
    """Negative-aware fine-tuning: better pictures are learnt by the model, worse ones by its mirror image in old."""

    type: Literal["nft"] = "nft"
    beta: float = Field(default=1.0, gt=0)
    """How far the two stand from old; 1 in the paper for most rewards, smaller is stronger."""
    most: float = Field(default=5.0, gt=0)
    """Advantages are cut to it, on both sides."""

    def build(self) -> "Nft":
        return Nft(self.beta, self.most)


class DpoConfig(Config):
    """Diffusion-DPO: of each pair the better picture is to become likelier than under the base, the worse less."""

    type: Literal["dpo"] = "dpo"
    beta: float = Field(default=2000.0, gt=0)
    """Strength of the pull back to the base, per unit of mean squared error: 2000 to 5000 in the paper."""
    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    """The paper's, or the square of IPO, which does not drive pairs apart for ever."""

    def build(self) -> "Dpo":
        return Dpo(self.beta, self.loss)


class KtoConfig(Config):
    """Diffusion-KTO: pictures labelled good or bad, no pairs."""

    type: Literal["kto"] = "kto"
    beta: float = Field(default=2000.0, gt=0)
    """Strength of the pull back to the base, per unit of mean squared error."""

    def build(self) -> "Kto":
        return Kto(self.beta)


class DdpoConfig(Config):
    """DDPO: the policy gradient on the steps in which the policy itself drew, of a sampler that draws noise."""

    type: Literal["ddpo"] = "ddpo"
    clip: float = Field(default=1e-4, gt=0)
    """How far the ratio of a step's probabilities may leave 1 before it teaches no more. The probabilities are roots,
    of as many as a latent has numbers."""
    most: float = Field(default=5.0, gt=0)
    """Advantages are cut to it, on both sides."""

    def build(self) -> "Ddpo":
        return Ddpo(self.clip, self.most)


class DraftConfig(Config):
    """DRaFT: up the rewards' own gradient, through the last steps of the drawing."""

    type: Literal["draft"] = "draft"
    steps: int = Field(default=1, ge=1)
    """K: how many of the sampler's last steps are taken with gradient; all of them is DRaFT without a K."""

    def build(self) -> "Draft":
        return Draft(self.steps)


class ReflConfig(Config):
    """ReFL: up the rewards' own gradient, through the picture foretold at one late step."""

    type: Literal["refl"] = "refl"
    earliest: float = Field(default=0.75, ge=0, lt=1)
    """Share of the steps that lie before those at which a picture is foretold."""

    def build(self) -> "Refl":
        return Refl(self.earliest)


RuleConfig: TypeAlias = Annotated[
    SftConfig | AdvantageConfig | NftConfig | DpoConfig | KtoConfig | DdpoConfig | DraftConfig | ReflConfig,
    Field(discriminator="type"),
]


@final
@dataclass(frozen=True, slots=True)
class Sft:
    kind: SelectionKind = "weighted"
    reference: Reference = "none"

    def loss(self, rows: Rows) -> PerItem:
        """w e(theta). Source: RAFT, arXiv:2304.06767, Algorithm 1."""
        return rows.weight * rows.error()


@final
@dataclass(frozen=True, slots=True)
class Advantage:
    clip: float
    kind: SelectionKind = "advantages"
    reference: Reference = "old"

    def loss(self, rows: Rows) -> PerItem:
        """-min(A rho, A clip(rho, 1 - c, 1 + c)), rho = exp(e(old) - e(theta)). At theta = old it is -A, with the
        gradient of A e(theta).

        Source: advantage-weighted matching, arXiv:2509.25050, with PPO's clipping, without which a negative advantage
        would have no end.
        """
        return clipped((rows.reference_error() - rows.error()).exp(), rows.weight, self.clip)


@final
@dataclass(frozen=True, slots=True)
class Nft:
    beta: float
    most: float
    kind: SelectionKind = "advantages"
    reference: Reference = "old"

    def loss(self, rows: Rows) -> PerItem:
        """(r |x0(p+) - x0|^2 / w+  +  (1 - r) |x0(p-) - x0|^2 / w-) / beta, means over the picture, with

            p+ = beta p + (1 - beta) p_old,   p- = (1 + beta) p_old - beta p,   r = 1/2 + A / (2 most)
            w+- = mean |x0(p+-) - x0|, held fixed

        At theta = old the gradient is proportional to 2r - 1. Source: DiffusionNFT, arXiv:2509.16117, and its authors'
        code; their old policy follows slowly, ours is the one that the round began with.
        """
        assert rows.reference is not None
        p, old, beta = rows.prediction, rows.reference, self.beta
        r = 0.5 + rows.weight.clamp(-self.most, self.most) / (2 * self.most)
        better, worse = self._error(rows, beta * p + (1 - beta) * old), self._error(rows, (1 + beta) * old - beta * p)
        loss: PerItem = (r * better + (1 - r) * worse) / beta
        return loss

    @staticmethod
    def _error(rows: Rows, prediction: Latents) -> PerRow:
        away = to_x0(rows.predicts, prediction, rows.xt, rows.level) - rows.x0
        return row_mean(away**2) / row_mean(away.detach().abs()).clamp(min=LEAST_WIDTH)


@final
@dataclass(frozen=True, slots=True)
class Dpo:
    beta: float
    shape: Literal["sigmoid", "ipo"] = "sigmoid"
    kind: SelectionKind = "pairs"
    reference: Reference = "base"

    def loss(self, rows: Rows) -> PerItem:
        """-log sigmoid(beta h / 2), or (beta h / 2 - 1/2)^2; h = (e(base) - e) of the better less that of the worse.

        Both pictures of a pair have one noise and one timestep. At the base: log 2, or 1/4. Source: Diffusion-DPO,
        arXiv:2311.12908, equation 14; IPO: arXiv:2310.12036.
        """
        better, worse = (rows.reference_error() - rows.error()).view(-1, 2).unbind(dim=1)
        margin = self.beta / 2 * (better - worse)
        return -logsigmoid(margin) if self.shape == "sigmoid" else (margin - 0.5) ** 2


@final
@dataclass(frozen=True, slots=True)
class Kto:
    beta: float
    kind: SelectionKind = "labelled"
    reference: Reference = "base"

    def loss(self, rows: Rows) -> PerItem:
        """1 - sigmoid(y beta (e(base) - e(theta))), y = 1 good, -1 bad; 1/2 at the base.

        Source: Diffusion-KTO, arXiv:2404.04465, equation 9 with its sigmoid utility; the reference point is 0.
        """
        return 1 - (rows.weight * self.beta * (rows.reference_error() - rows.error())).sigmoid()


@final
@dataclass(frozen=True, slots=True)
class Ddpo:
    clip: float
    most: float
    kind: SelectionKind = "advantages"
    reference: Reference = "old"
    passes: int = 2
    """The policy's and old's; see ``Draft.passes``."""

    def loss(self, log_ratio: PerRow, advantage: PerRow) -> PerItem:
        """-min(A rho, A clip(rho, 1 - c, 1 + c)) of one step each, rho = p(x' | x, caption) / p_old(x' | x, caption).

        Source: DDPO with importance sampling, arXiv:2305.13301, section 4.3, clipped as in its authors' code.
        """
        return clipped(log_ratio.exp(), advantage.clamp(-self.most, self.most), self.clip)

    def figures(self, log_ratio: PerRow) -> dict[str, Tensor]:
        """Sums over the rows: those whose ratio has left the clip, and half the squared change, which is about the
        divergence from the policy that drew."""
        outside = (log_ratio.exp() - 1).abs() > self.clip
        return {"clipped": outside.sum(), "approx_kl": (log_ratio**2).sum() / 2}


@final
@dataclass(frozen=True, slots=True)
class Draft:
    """The last K steps of a path, walked again with gradient. Source: DRaFT-K, arXiv:2309.17400, section 3.2."""

    steps: int
    kind: SelectionKind = "weighted"
    reference: Reference = "none"

    @property
    def passes(self) -> int:
        """How often a picture that is shown goes through the network, each half of guidance alone: once a step."""
        return self.steps

    def walk(self, steps: int) -> Walk:
        """Which of so many steps are walked.

        Raises:
            UserError: there are fewer than K.
        """
        if self.steps > steps:
            raise UserError(
                f"finetuner.learning.steps: {self.steps} are to be taken with gradient, and the sampler takes {steps} "
                "(sampler.steps)."
            )
        return Walk(range(steps - self.steps, steps - self.steps + 1), self.steps, leap=False)


@final
@dataclass(frozen=True, slots=True)
class Refl:
    """One late step of a path, from which the picture is foretold at once.

    Source: ReFL, arXiv:2304.05977, Algorithm 1. Departures: the state comes from the path on which the picture was
    drawn, not from a drawing at every step; it is guided as the drawing was; the reward has no map of its own, and what
    keeps the model near the base is ``anchor``, not a loss on pictures of before.
    """

    earliest: float
    kind: SelectionKind = "weighted"
    reference: Reference = "none"
    passes: int = 1

    def walk(self, steps: int) -> Walk:
        return Walk(range(min(steps - 1, round(self.earliest * steps)), steps), 1, leap=True)


PathRule: TypeAlias = Ddpo | Draft | Refl
"""Those that learn on the path of the drawing."""


def row_mean(values: Latents) -> PerRow:
    return values.flatten(1).mean(dim=1)
