"""PPO and PPO-max: a clipped policy gradient against a critic, with the KL to the base in every token's reward.

Source: Schulman et al. 2017, arXiv:1707.06347; for language models Zheng et al. 2023, "Secrets of RLHF in Large
Language Models Part I: PPO", arXiv:2307.04964. Each ingredient of PPO-max is a switch of the config: rewards normalised
and clipped by their history (``reward_norm``, ``reward_clip``), the KL penalty (``kl``), a critic that begins as the
reward model (``critic.model``) and learns before the policy moves (``critic.pretrain_steps``), clipped values
(``value_clip``) and gradients (``max_grad_norm``), and answers of the pretraining (``ptx``). The seventh, a small
experience buffer, is the loop's: what a round draws is learnt from and gone.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Literal, final

import torch
from jaxtyping import Float
from pydantic import ConfigDict, Field
from torch import Tensor

from raftdiff.errors import UserError
from raftdiff.llm.learning.steps import StepsConfig, precision_of
from raftdiff.llm.model.loading import LM
from raftdiff.llm.model.rows import Row, row_of
from raftdiff.llm.ppo.actor import Actor, EntropyConfig, PtxConfig
from raftdiff.llm.ppo.critic import Critic, CriticConfig
from raftdiff.llm.ppo.losses import RewardScaler, adaptive_kl
from raftdiff.llm.ppo.rollouts import Estimates, GaeConfig, Rollouts, estimate, figures, rollouts, step_advantages
from raftdiff.llm.reward_models.value_model import ValueModel
from raftdiff.recipes.config import Config
from raftdiff.seeds import fold
from raftdiff.training import optimizer
from raftdiff.training.trainable import Trainable
from raftdiff.types import Key, Report, Requires, Sample, Selection, State

REQUIRES = Requires(kinds=("all",), aux=("tokens", "logprobs"), reference_model=True, fresh_samples=True)
SCALER = "reward_"
"""Before the names of the reward's running figures in the saved state."""


class AdaptiveKlConfig(Config):
    """The coefficient of the KL penalty follows the KL (arXiv:1909.08593)."""

    target: float = Field(gt=0)
    """KL to the base, nats an answer."""
    horizon: float = Field(default=10_000, gt=0)
    """Answers over which a correction is spread."""


class KlPenaltyConfig(Config):
    """What leaving the base costs: beta (log p - log p0) at every token, taken off its reward."""

    beta: float = Field(default=0.05, ge=0)
    """In units of the scaled reward a nat."""
    adaptive: AdaptiveKlConfig | None = None
    """Raise and lower beta after each round; it stays by default."""


class PpoConfig(StepsConfig):
    """What is learned from the policy's own answers, and how; as it stands plain PPO with a token KL."""

    model_config = ConfigDict(json_schema_extra={"required": ["type"]})  # without it a recipe means the fine-tuner lm

    type: Literal["ppo"] = "ppo"
    kl: KlPenaltyConfig = KlPenaltyConfig()
    reward_norm: Literal["none", "scale", "normalise"] = "none"
    """By all rewards seen so far: "scale" divides by their standard deviation, "normalise" takes their mean off too."""
    reward_clip: float | None = Field(default=None, gt=0)
    """Rewards beyond this are cut, after scaling; the KL penalty never is."""
    advantage: GaeConfig = GaeConfig()
    ratio_clip: float = Field(default=0.2, gt=0)
    """The ratio to the policy that drew the answers is clipped at 1 - this and 1 + this."""
    value_clip: float | None = Field(default=None, gt=0)
    """How far a value may move from what it was when the answers were drawn, in units of the scaled reward."""
    critic: CriticConfig = CriticConfig()
    ptx: PtxConfig | None = None
    entropy: EntropyConfig | None = None
    learning_rate: float = Field(default=1e-5, gt=0)
    """Of the policy."""

    @property
    def learner(self) -> str:
        """Who learns, in a sentence about a recipe that does not fit."""
        return "the fine-tuner 'ppo'"

    @property
    def requires(self) -> Requires:
        """What it learns from, known before a model is loaded."""
        return REQUIRES

    def build(
        self, lm: LM, *, total_rounds: int, seed: int, critic: ValueModel, pretraining: Sequence[Row] = ()
    ) -> "PpoFineTuner":
        """The fine-tuner, its weights attached to ``lm`` and to the critic in place.

        Args:
            total_rounds: how many rounds the learning-rate schedule spans.
            seed: of the LoRAs' first weights.
            critic: what ``critic.open`` gave.
            pretraining: what ``ptx.data`` holds (``rollouts.written_rows``).
        """
        return PpoFineTuner(self, lm, total_rounds=total_rounds, seed=seed, critic=critic, pretraining=pretraining)


@final
class PpoFineTuner:
    """The last verb of PPO. A round's answers are a buffer: rewards scaled, values and advantages estimated once, then
    learnt from in minibatches by actor and critic, each with an optimizer of its own, and gone."""

    def __init__(
        self,
        config: PpoConfig,
        lm: LM,
        *,
        total_rounds: int,
        seed: int,
        critic: ValueModel,
        pretraining: Sequence[Row] = (),
    ) -> None:
        self.config, self.lm, self.total_rounds, self.pretraining = config, lm, max(1, total_rounds), pretraining
        precision = precision_of(config, lm)
        self.actor = Actor(config, lm, learning_rate=config.learning_rate, precision=precision, seed=seed)
        self.critic = Critic(config.critic, config, critic, precision=precision, seed=seed)
        self.scaler, self.beta = RewardScaler(), config.kl.beta
        self.rounds = 0

    @property
    def requires(self) -> Requires:
        return self.config.requires

    @property
    def trainable(self) -> Trainable:
        """The policy's weights."""
        return self.actor.trainable

    def fit(
        self, selection: Selection, samples: Mapping[Key, Sample[str]], *, seed: int, report: Report
    ) -> Mapping[str, float]:
        config, sums = self.config, Counter[str]()
        with self.actor.training(), self.critic.training():
            buffer = self._buffer(selection, samples)
            scaled = self._scaled(buffer.reward)
            plan = optimizer.exposure_plan(len(buffer.rows), 2**31, config.batch_size, config.epochs, seed)
            first = self._pretrained(buffer, scaled, seed, len(plan), report)
            done = int(first.get("pretrain_steps", 0))
            known = self._estimated(buffer, scaled, config.advantage.lam)
            for index, places in enumerate(plan):
                sums.update(self._step(buffer, known, places, index / len(plan), fold(seed, index)))
                report(done + index + 1, done + len(plan))
        found = {**figures(buffer, scaled, known), **first, "beta": self.beta}
        self.actor.check()
        self.critic.check()
        self.rounds += 1
        if (adaptive := config.kl.adaptive) is not None:
            self.beta = adaptive_kl(self.beta, found["kl"], adaptive.target, len(buffer.rows), adaptive.horizon)
        return _told(found, sums, len(plan), len(buffer.rows))

    def state_dict(self) -> State:
        """Everything that the next round depends on, on the CPU."""
        counts = {"rounds": self.rounds, "steps": self.actor.steps, "critic_steps": self.critic.steps}
        return {
            **self.actor.state_dict(),
            **self.critic.state_dict(),
            "ppo": {
                **{name: torch.tensor(count) for name, count in counts.items()},
                "beta": torch.tensor(self.beta, dtype=torch.float64),
                **{SCALER + name: value for name, value in self.scaler.state_dict().items()},
            },
        }

    def load_state_dict(self, state: State) -> None:
        """Continue from ``state``, to the bit on the CPU.

        Raises:
            UserError: the state is of another model or another fine-tuner.
        """
        if "ppo" not in state or "critic" not in state:
            raise UserError(f"{self.lm.name}: the saved state holds no critic: the fine-tuner was another than ppo.")
        told = state["ppo"]
        self.actor.load_state_dict(state, steps=int(told["steps"]))
        self.critic.load_state_dict(state, steps=int(told["critic_steps"]))
        self.rounds, self.beta = int(told["rounds"]), float(told["beta"])
        self.scaler.load_state_dict({name[len(SCALER) :]: told[name] for name in told if name.startswith(SCALER)})

    def base_weights(self) -> AbstractContextManager[None]:
        """Within, the shared network is the base model: what samples is the model before any tuning."""
        return self.trainable.base_weights()

    def parameter_count(self) -> int:
        """How many numbers of the policy are trained; the critic's are not the model's."""
        return self.trainable.count()

    def _buffer(self, selection: Selection, samples: Mapping[Key, Sample[str]]) -> Rollouts:
        keys = [item.keys[0] for item in selection.items]
        rows = [row_of(self.lm, samples[key], learning=True) for key in keys]
        old, reference = self.actor.before(rows), self.actor.reference(rows)
        return rollouts(rows, self.lm.pad, selection.items, samples, old=old, reference=reference)

    def _scaled(self, reward: Float[Tensor, " rows"]) -> Float[Tensor, " rows"]:
        norm, clip = self.config.reward_norm, self.config.reward_clip
        if norm == "none":
            return reward if clip is None else reward.clamp(-clip, clip)
        return self.scaler.scale(reward, subtract_mean=norm == "normalise", clip=clip)

    def _estimated(self, buffer: Rollouts, scaled: Float[Tensor, " rows"], lam: float) -> Estimates:
        values, gamma = self.critic.values(buffer), self.config.advantage.gamma
        return estimate(buffer, scaled, values, beta=self.beta, gamma=gamma, lam=lam)

    def _pretrained(
        self, buffer: Rollouts, scaled: Float[Tensor, " rows"], seed: int, planned: int, report: Report
    ) -> dict[str, float]:
        """In the first round the critic learns alone, from what came (lambda 1); ``planned`` steps follow."""
        if self.rounds or not self.config.critic.pretrain_steps:
            return {}
        known, seed = self._estimated(buffer, scaled, 1.0), fold(seed, "critic")
        return self.critic.pretrain(buffer, known, seed=seed, report=lambda done, total: report(done, total + planned))

    def _step(
        self, buffer: Rollouts, known: Estimates, places: Sequence[int], through: float, seed: int
    ) -> dict[str, float]:
        """One optimizer step of the actor and one of the critic, on the same answers; returns its figures."""
        config, progress = self.config, (self.rounds + through) / self.total_rounds
        rate, critic_rate = (
            optimizer.learning_rate(base, config.lr_schedule, progress, self.actor.steps, warmup)
            for base, warmup in ((config.learning_rate, config.warmup_steps), (config.critic.learning_rate, 0))
        )
        wanted = step_advantages(known.advantages[list(places)], buffer.mask[list(places)], config.advantage)
        told = Counter(self.actor.push(buffer, wanted, places, clip=config.ratio_clip, held=config.entropy, seed=seed))
        if config.ptx is not None:
            told.update(self.actor.recall(self.pretraining, config.ptx, seed=seed))
        norm = self.actor.step(rate)
        told.update(self.critic.learn(buffer, known, places, clip=config.value_clip, rate=critic_rate, seed=seed))
        return {**told, "grad_norm": norm, "learning_rate": rate}


def _told(found: Mapping[str, float], sums: Mapping[str, float], steps: int, answers: int) -> dict[str, float]:
    """A round's figures: of its buffer, and means over its steps."""
    means = {name: value / max(1, steps) for name, value in sums.items() if name != "tokens"}
    return {
        **{name: value for name, value in found.items() if name != "tokens"},
        **means,
        "loss": means["policy_loss"],
        "steps": float(steps),
        "items": float(answers),
        "network_evaluations": float(sums["tokens"] + found.get("tokens", 0.0)),
    }
