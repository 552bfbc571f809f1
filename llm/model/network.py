"""The network as the losses see it: log-probabilities of the answers in a batch, of the policy or of the base."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from raftdiff.llm.model.loading import LM
from raftdiff.llm.model.rows import Batch
from raftdiff.llm.model.tokens import log_probabilities
from raftdiff.seeds import fold

Logits = Float[Tensor, "rows tokens vocabulary"]
Values = Float[Tensor, "rows targets"]


class Moment(NamedTuple):
    """Where the training stands when a loss is computed."""

    step: int
    """Optimizer steps done, over all rounds."""
    progress: float
    """0 to 1 through all rounds."""
    seed: int
    """Of this step alone."""
    first: int = 0
    """Which row of the step is the batch's first."""

    def generator(self, row: int | None = None) -> torch.Generator:
        """On the CPU, seeded for a row of the batch or for the whole step, so that how the step is cut into batches
        changes no draw."""
        name = ("step",) if row is None else ("row", self.first + row)
        return torch.Generator().manual_seed(fold(self.seed, *name))


@final
@dataclass(frozen=True)
class Network:
    """A language model in the precision of its training."""

    lm: LM
    precision: torch.dtype

    def logits(self, batch: Batch, *, ids: Int[Tensor, "rows tokens"] | None = None) -> Logits:
        """At every position; ``ids`` stand in for the batch's own as inputs."""
        return self._run(batch, input_ids=(batch.ids if ids is None else ids).to(self.lm.device))

    def logits_from(self, embeddings: Float[Tensor, "rows tokens width"], batch: Batch) -> Logits:
        """At every position, with these input embeddings."""
        return self._run(batch, inputs_embeds=embeddings)

    def embeddings(self, ids: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape width"]:
        """What the network's input layer makes of tokens, scaled where it scales."""
        found: Tensor = self.lm.model.get_input_embeddings()(ids.to(self.lm.device))
        return found

    def lp(self, batch: Batch, logits: Logits | None = None) -> Values:
        """log p of every token but the first, float32, on the model's device."""
        return log_probabilities(self.logits(batch) if logits is None else logits, batch.ids.to(self.lm.device))

    def mask(self, batch: Batch) -> Tensor:
        return batch.mask.to(self.lm.device)

    def computing(self) -> AbstractContextManager[None]:
        """Within, the model computes in the precision of the training."""
        return torch.autocast(self.lm.device.type, dtype=self.precision, enabled=self.precision != torch.float32)

    def _run(self, batch: Batch, **inputs: Tensor) -> Logits:
        attention = batch.attention.to(self.lm.device)
        with self.computing():
            found: Tensor = self.lm.model(attention_mask=attention, use_cache=False, **inputs).logits
        return found
