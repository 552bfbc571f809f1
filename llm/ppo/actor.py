"""The actor of PPO: the policy, and the gradients that move it."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import final

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from raftdiff.llm.data.prompts import DataConfig
from raftdiff.llm.learning.policy_gradient import clipped_objective
from raftdiff.llm.learning.steps import StepsConfig, attach, before_steps, passes, seeded, training
from raftdiff.llm.model.loading import LM
from raftdiff.llm.model.network import Network
from raftdiff.llm.model.rows import Row, collate, score
from raftdiff.llm.model.tokens import aggregate, entropy, log_probabilities, means
from raftdiff.llm.ppo.rollouts import Rollouts
from raftdiff.recipes.config import Config
from raftdiff.seeds import fold
from raftdiff.training import optimizer
from raftdiff.training.trainable import on_cpu
from raftdiff.types import State


class PtxConfig(Config):
    """Text of the pretraining, or of the supervised tuning before, learnt beside: the PTX loss of InstructGPT."""

    data: DataConfig
    """Prompts with their answers."""
    weight: float = Field(default=1.0, gt=0)
    """Of the mean cross-entropy of an answer token."""
    batch_size: int = Field(default=16, ge=1)
    """Answers in each optimizer step."""


class EntropyConfig(Config):
    """Holds the entropy near a target. The paper recommends against it: a tenth of the target breaks the training."""

    weight: float = Field(gt=0)
    target: float = Field(ge=0)
    """Mean entropy of an answer's tokens, nats; its distance from the target is minimised. Departure: the released code
    takes the distance of the batch's mean."""


@final
class Actor:
    """The policy as PPO trains it: the clipped objective, and by choice text of the pretraining beside it.

    Means are taken over the tokens of the whole optimizer step, so how it is cut into passes does not matter.
    """

    def __init__(self, config: StepsConfig, lm: LM, *, learning_rate: float, precision: torch.dtype, seed: int) -> None:
        self.config, self.lm, self.precision = config, lm, precision
        self.trainable = attach(config, lm, seed=seed)
        parameters = self.trainable.parameters
        self.optimizer = optimizer.adamw(parameters, learning_rate, config.betas, config.weight_decay)
        self.network = Network(lm, precision)
        self.steps = 0

    def training(self) -> AbstractContextManager[None]:
        """Within, the network holds the live weights, in training precision; afterwards the policy again."""
        frozen = torch.float32 if self.precision == torch.float32 else self.lm.dtype
        return training(self.trainable, self.lm.model, frozen, checkpointing=self.config.gradient_checkpointing)

    def before(self, rows: Sequence[Row]) -> list[Tensor]:
        """log p of every answer token under the policy before its first step."""
        return before_steps(self.network, rows, batch_size=self.config.rows_per_pass)

    def reference(self, rows: Sequence[Row]) -> list[Tensor]:
        """log p of every answer token under the base model, in the precision of the training, so that a policy that
        has not moved equals it."""
        with self.trainable.passed_by(), self.network.computing():
            return score(self.lm, rows, batch_size=self.config.rows_per_pass)

    def push(
        self,
        buffer: Rollouts,
        advantages: Float[Tensor, "step targets"],
        places: Sequence[int],
        *,
        clip: float,
        held: EntropyConfig | None,
        seed: int,
    ) -> dict[str, float]:
        """Gradients of the clipped objective on the answers at ``places``, whose ``advantages`` come in their order;
        ``held``: the entropy. Returns the step's figures."""
        device, total = self.lm.device, buffer.tokens(places)
        told = {"policy_loss": 0.0, "clip_fraction": 0.0, "approx_kl": 0.0, "tokens": 0.0}
        told |= {"entropy": 0.0} if held else {}
        for at in passes(range(len(places)), self.config.rows_per_pass):
            part = [places[place] for place in at]
            batch = buffer.batch(part)
            wanted = advantages[at, : batch.mask.shape[1]].to(device)
            old, mask = buffer.at(buffer.old, part, batch).to(device), self.network.mask(batch)
            with seeded(fold(seed, "dropout", at[0]), device, self.config.dropout > 0):
                logits = None if held is None else self.network.logits(batch)  # the entropy's
                lp = self.network.lp(batch) if logits is None else log_probabilities(logits, batch.ids.to(device))
                found = clipped_objective(lp, old, wanted, mask, clip_low=clip, clip_high=clip)
                loss = aggregate(found.losses, mask, "token_mean", total_tokens=total)
                told["policy_loss"] += float(loss.detach())
                if held is not None and logits is not None:
                    spread = means(entropy(logits[:, :-1]), mask)
                    told["entropy"] += float(spread.detach().sum()) / len(places)
                    loss = loss + held.weight * (spread - held.target).abs().sum() / len(places)
                torch.autograd.backward(loss)
            share = batch.answer_tokens / total
            told["clip_fraction"] += float(found.clip_fraction) * share
            told["approx_kl"] += float(found.approx_kl) * share
            told["tokens"] += int(batch.attention.sum())
        return told

    def recall(self, written: Sequence[Row], ptx: PtxConfig, *, seed: int) -> dict[str, float]:
        """Gradients of the mean cross-entropy on a draw of what is ``written``. Returns the step's figures."""
        drawn = torch.Generator().manual_seed(fold(seed, "ptx"))
        chosen = [written[place] for place in torch.randperm(len(written), generator=drawn)[: ptx.batch_size].tolist()]
        total, told = sum(len(row.answer) for row in chosen), {"ptx_loss": 0.0, "tokens": 0.0}
        for part in passes(range(len(chosen)), self.config.rows_per_pass):
            batch = collate([chosen[place] for place in part], self.lm.pad)
            with seeded(fold(seed, "dropout", "ptx", part[0]), self.lm.device, self.config.dropout > 0):
                loss = aggregate(-self.network.lp(batch), self.network.mask(batch), "token_mean", total_tokens=total)
                torch.autograd.backward(ptx.weight * loss)
            told["ptx_loss"] += float(loss.detach())
            told["tokens"] += int(batch.attention.sum())
        return told

    def step(self, rate: float) -> float:
        """Let the gradients act. Returns their norm before clipping."""
        self.steps += 1
        return optimizer.step(self.optimizer, rate, self.config.max_grad_norm, number=self.steps)

    def check(self) -> None:
        """
        Raises:
            UserError: the round made weights that nothing can be computed with.
        """
        optimizer.check_weights(self.trainable.live, self.optimizer)

    def state_dict(self) -> State:
        return {
            self.trainable.stem: on_cpu(self.trainable.live),
            "optimizer": optimizer.state_dict(self.optimizer, self.trainable.parameters),
        }

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]], *, steps: int) -> None:
        """
        Raises:
            UserError: the state is of another model or another adapter.
        """
        self.trainable.take(state)
        live, parameters = self.trainable.live, self.trainable.parameters
        optimizer.load_state_dict(self.optimizer, parameters, live, state.get("optimizer", {}))
        self.steps = steps
        self.trainable.rest(None)
