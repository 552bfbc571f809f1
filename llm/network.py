"""The network as the losses see it: log-probabilities of the answers in a batch, of the policy or of the base."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from raftdiff.llm.loading import LM
from raftdiff.llm.rows import Batch
from raftdiff.llm.tokens import log_probabilities

Logits = Float[Tensor, "rows tokens vocabulary"]
Values = Float[Tensor, "rows targets"]


class Moment(NamedTuple):
    """Where the training stands when a loss is computed."""

    step: int
    """Optimizer steps done, over all rounds."""
    progress: float
    """0 to 1 through all rounds."""
    generator: torch.Generator
    """On the CPU, seeded for this batch of this step alone."""


@final
@dataclass(frozen=True)
class Network:
    """A language model in the precision of its training."""

    lm: LM
    precision: torch.dtype
    base: Callable[[], AbstractContextManager[None]]
    """Within, the network is the base model: the reference."""

    def logits(self, batch: Batch, *, ids: Int[Tensor, "rows tokens"] | None = None) -> Logits:
        """At every position; ``ids`` stand in for the batch's own as inputs."""
        return self._run(batch, input_ids=(batch.ids if ids is None else ids).to(self.lm.device))

    def logits_from(self, embeddings: Float[Tensor, "rows tokens width"], batch: Batch) -> Logits:
        """At every position, with these input embeddings."""
        return self._run(batch, inputs_embeds=embeddings)

    def embeddings(self, ids: Int[Tensor, "rows tokens"]) -> Float[Tensor, "rows tokens width"]:
        """What the network's input layer makes of tokens, scaled where it scales."""
        found: Tensor = self.lm.model.get_input_embeddings()(ids.to(self.lm.device))
        return found

    def lp(self, batch: Batch, logits: Logits | None = None) -> Values:
        """log p of every token but the first, float32, on the model's device."""
        return log_probabilities(self.logits(batch) if logits is None else logits, batch.ids.to(self.lm.device))

    @torch.no_grad()
    def reference_lp(self, batch: Batch) -> Values:
        """The same under the base model."""
        with self.base():
            return self.lp(batch)

    def mask(self, batch: Batch) -> Tensor:
        return batch.mask.to(self.lm.device)

    def _run(self, batch: Batch, **inputs: Tensor) -> Logits:
        device = self.lm.device
        with torch.autocast(device.type, dtype=self.precision, enabled=self.precision != torch.float32):
            found: Tensor = self.lm.model(attention_mask=batch.attention.to(device), use_cache=False, **inputs).logits
        return found
