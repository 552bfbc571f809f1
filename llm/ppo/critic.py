"""The critic of PPO: what an answer will be worth, told before each of its tokens, by a model of its own."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import final

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from raftdiff.errors import UserError
from raftdiff.llm.learning.steps import StepsConfig, attach, passes, seeded, training, undisturbed
from raftdiff.llm.model.loading import LM, LMConfig
from raftdiff.llm.model.rows import Batch
from raftdiff.llm.model.tokens import aggregate
from raftdiff.llm.ppo.losses import value_loss
from raftdiff.llm.ppo.rollouts import Estimates, Rollouts
from raftdiff.llm.reward_models.reward import reward_folder
from raftdiff.llm.reward_models.value_model import ValueModel, load_value_model
from raftdiff.recipes.config import Config
from raftdiff.seeds import fold
from raftdiff.training import optimizer
from raftdiff.training.trainable import on_cpu
from raftdiff.types import Report, State


class CriticConfig(Config):
    """Where the critic begins, and how it learns. Its adapter is as the policy's; its head is trained entirely."""

    model: str | None = None
    """A trained reward model, by its folder or its run, with the policy's tokenizer: PPO-max. By default the policy's
    base with a new head."""
    learning_rate: float = Field(default=1e-4, gt=0)
    pretrain_steps: int = Field(default=0, ge=0)
    """Optimizer steps on the first round's answers before the policy moves: PPO-max, in place of a warm-up."""
    pretrain_until: float | None = Field(default=None, gt=0)
    """Stop these earlier, once the value loss of a pass through the answers is no higher."""

    def open(self, base: LMConfig, lm: LM, resolve: Callable[[str], str], *, seed: int) -> ValueModel:
        """The value model that the critic begins with; ``base`` and ``lm``: the policy's.

        Raises:
            UserError: it cannot be loaded, reads texts from both sides, or has other tokens than the policy.
        """
        own = {} if self.model is None else {"base": self._folder(resolve), "gguf_file": None, "revision": None}
        model = load_value_model(base.model_copy(update=own), resolve, seed=fold(seed, "critic"))
        if not model.causal:
            raise UserError(
                f"finetuner.critic.model: '{self.model}' reads an answer as a whole, and a critic values what has been "
                "said so far; use a reward model on a causal language model."
            )
        if model.lm.tokenizer.get_vocab() != lm.tokenizer.get_vocab():
            raise UserError(
                f"finetuner.critic.model: '{self.model}' has another tokenizer than '{lm.name}', and a critic values "
                "the policy's own tokens; train a reward model on the policy's base."
            )
        return model

    def _folder(self, resolve: Callable[[str], str]) -> str:
        try:
            return str(reward_folder(Path(resolve(str(self.model))).expanduser()))
        except UserError as error:
            raise UserError(f"finetuner.critic.model: {error}") from None


@final
class Critic:
    """A value model that learns the returns of the policy's answers, by an optimizer of its own.

    Means are taken over the tokens of the whole optimizer step, so how it is cut into passes does not matter.
    """

    def __init__(
        self, config: CriticConfig, steps: StepsConfig, model: ValueModel, *, precision: torch.dtype, seed: int
    ) -> None:
        self.config, self.settings, self.model, self.precision = config, steps, model, precision
        self.trainable = attach(steps, model.lm, seed=fold(seed, "critic"), heads={"head": model.head})
        parameters = self.trainable.parameters
        self.optimizer = optimizer.adamw(parameters, config.learning_rate, steps.betas, steps.weight_decay)
        self.steps = 0

    def training(self) -> AbstractContextManager[None]:
        """Within, the critic can learn; it also values within, so that it does not move by rounding."""
        frozen = torch.float32 if self.precision == torch.float32 else self.model.lm.dtype
        return training(self.trainable, self.model.lm.model, frozen, checkpointing=self.settings.gradient_checkpointing)

    @torch.no_grad()
    def values(self, buffer: Rollouts) -> Float[Tensor, "rows targets"]:
        """V before each answer token, 0 elsewhere, without dropout; float32 on the CPU."""
        found = torch.zeros(buffer.mask.shape)
        order = sorted(
            range(len(buffer.rows)), key=lambda place: len(buffer.rows[place].prompt + buffer.rows[place].answer)
        )
        with undisturbed(self.model.lm.model):
            for places in passes(order, self.settings.rows_per_pass):
                batch = buffer.batch(places)
                found[places, : batch.mask.shape[1]] = torch.where(batch.mask, self._before(batch).cpu(), 0.0)
        return found

    def learn(
        self,
        buffer: Rollouts,
        known: Estimates,
        places: Sequence[int],
        *,
        clip: float | None,
        rate: float,
        seed: int,
    ) -> dict[str, float]:
        """One optimizer step towards the returns of the answers at ``places``; ``clip``: how far a value may move from
        what it was in the buffer. Returns the step's figures."""
        total, device = buffer.tokens(places), self.model.lm.device
        told = {"value_loss": 0.0, "tokens": 0.0}
        for part in passes(places, self.settings.rows_per_pass):
            batch = buffer.batch(part)
            old, returns = (buffer.at(table, part, batch).to(device) for table in (known.values, known.returns))
            with seeded(fold(seed, "critic", part[0]), device, self.settings.dropout > 0):
                mask = batch.mask.to(device)
                losses = value_loss(self._before(batch), old, returns, mask, clip)
                loss = aggregate(losses, mask, "token_mean", total_tokens=total)
                torch.autograd.backward(loss)
            told["value_loss"] += float(loss.detach())
            told["tokens"] += int(batch.attention.sum())
        self.steps += 1
        norm = optimizer.step(
            self.optimizer, rate, self.settings.max_grad_norm, number=self.steps, where="finetuner.critic"
        )
        return {**told, "critic_grad_norm": norm}

    def pretrain(self, buffer: Rollouts, known: Estimates, *, seed: int, report: Report) -> dict[str, float]:
        """Learn the returns of answers that the policy drew, before it moves; these should be of lambda 1, in which an
        untaught critic has no part. Stops early by ``pretrain_until``, looked at after each pass through the answers.

        Departure from the released code, which draws new answers for it: these are the first round's, and serve the
        policy too.
        """
        count, losses, tokens = len(buffer.rows), list[float](), 0.0
        plan = optimizer.exposure_plan(count, self.config.pretrain_steps, self.settings.batch_size, None, seed)
        a_pass = -(-count // self.settings.batch_size)
        for index, places in enumerate(plan):
            rate = self.config.learning_rate
            found = self.learn(buffer, known, places, clip=None, rate=rate, seed=fold(seed, index))
            losses.append(found["value_loss"])
            tokens += found["tokens"]
            report(index + 1, len(plan))
            if len(losses) % a_pass == 0 and self._near_enough(losses[-a_pass:]):
                break
        return {
            "pretrain_steps": float(len(losses)),
            "pretrain_first_loss": losses[0],
            "pretrain_last_loss": losses[-1],
            "tokens": tokens,
        }

    def check(self) -> None:
        """
        Raises:
            UserError: the round made weights that nothing can be computed with.
        """
        optimizer.check_weights(self.trainable.live, self.optimizer, where="finetuner.critic")

    def _near_enough(self, losses: Sequence[float]) -> bool:
        until = self.config.pretrain_until
        return until is not None and sum(losses) / len(losses) <= until

    def state_dict(self) -> State:
        return {
            "critic": on_cpu(self.trainable.live),
            "critic_optimizer": optimizer.state_dict(self.optimizer, self.trainable.parameters),
        }

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]], *, steps: int) -> None:
        """
        Raises:
            UserError: the critic in it is of another model.
        """
        self.trainable.load(state["critic"])
        live, parameters = self.trainable.live, self.trainable.parameters
        optimizer.load_state_dict(self.optimizer, parameters, live, state.get("critic_optimizer", {}))
        self.steps = steps
        self.trainable.rest(None)

    def _before(self, batch: Batch) -> Float[Tensor, "rows targets"]:
        """The value of what stands before each token but the first."""
        with torch.autocast(self.model.lm.device.type, dtype=self.precision, enabled=self.precision != torch.float32):
            return self.model.values(batch)[:, :-1]
