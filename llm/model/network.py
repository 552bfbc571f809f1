"""The network as the losses see it: log-probabilities of the answers in a batch, of the policy or of the base."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from raftdiff.llm.model.head import log_probabilities_at, read
from raftdiff.llm.model.loading import LM
from raftdiff.llm.model.rows import Batch, laid_out
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

    def logits(self, batch: Batch, **inputs: Tensor) -> Logits:
        """At every position: a vocabulary of numbers each, where ``lp`` would not do. ``inputs`` as there."""
        with self.computing():
            found: Tensor = self.lm.model(use_cache=False, **self._inputs(batch, inputs)).logits
        return found

    def embeddings(self, ids: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape width"]:
        """What the network's input layer makes of tokens, scaled where it scales."""
        found: Tensor = self.lm.model.get_input_embeddings()(ids.to(self.lm.device))
        return found

    def lp(self, batch: Batch, **inputs: Tensor) -> Values:
        """log p of the answers' tokens, float32, on the model's device, and 0 at all others. ``inputs`` stand in for
        the batch's own ids: ``input_ids`` or ``inputs_embeds``."""
        with self.computing():
            lp = log_probabilities_at(read(self.lm.model, **self._inputs(batch, inputs)), batch.places, batch.targets)
        return laid_out([lp], self.mask(batch))

    def mask(self, batch: Batch) -> Tensor:
        return batch.mask.to(self.lm.device)

    def computing(self) -> AbstractContextManager[None]:
        """Within, the model computes in the precision of the training."""
        return torch.autocast(self.lm.device.type, dtype=self.precision, enabled=self.precision != torch.float32)

    def _inputs(self, batch: Batch, others: Mapping[str, Tensor]) -> dict[str, Tensor]:
        given = others or {"input_ids": batch.ids}
        return {name: one.to(self.lm.device) for name, one in {"attention_mask": batch.attention, **given}.items()}
