"""Likeness to a reference, as translations are measured: chrF and BLEU."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, final

import torch
from jaxtyping import Float32
from pydantic import Field

from raftdiff.errors import Need, UserError
from raftdiff.recipes.config import RewardConfig
from raftdiff.rewards.texts import extra, extra_needs
from raftdiff.types import Prompt, Sample

Metric = Literal["chrf", "chrf++", "bleu"]


class TranslationConfig(RewardConfig):
    type: Literal["translation"] = "translation"
    name: str = "translation"
    """The column of this reward in tables and logs."""
    weight: float = Field(default=1.0, allow_inf_nan=False)
    """Factor in the total reward."""
    metric: Metric = "chrf"
    """chrf compares runs of characters, chrf++ words too, bleu words; for single sentences chrF agrees better with
    people."""
    tokenize: Literal["13a", "intl", "char", "zh", "none"] = "13a"
    """How bleu cuts words; zh for Chinese, char for languages without spaces."""
    column: str = "reference"
    """The column of the data file with the reference: a text, or a list of equally good ones."""

    def needs(self, resolve: Callable[[str], str]) -> Iterator[Need]:
        """What is not on this machine; see ``recipes.needs``."""
        del resolve
        return extra_needs("sacrebleu")

    def build(self, *, device: str = "cpu", resolve: Callable[[str], str] = str) -> "TranslationReward":
        del device, resolve  # no model here
        return TranslationReward(metric=self.metric, tokenize=self.tokenize, column=self.column, name=self.name)


@final
class TranslationReward:
    """0 to 100, higher is better: sacreBLEU's sentence score of the answer against ``prompt.meta[column]``.

    BLEU of a sentence is smoothed (exponential decay) and takes no longer n-grams than there are (effective order), as
    sacreBLEU advises; its mean is not the BLEU of a corpus. Scores compare within one metric, tokenizer and language.

    Source: Popovic 2015 (chrF), 2017 (chrF++); Papineni et al. 2002 (BLEU); Post 2018 (sacreBLEU), Apache-2.0.

    Raises:
        UserError: sacrebleu is not installed; a prompt without a reference.
    """

    def __init__(
        self, *, metric: Metric = "chrf", tokenize: str = "13a", column: str = "reference", name: str = "translation"
    ) -> None:
        self.name = name
        metrics = extra("sacrebleu.metrics", "translation")
        self._metric: Any = (
            metrics.BLEU(tokenize=tokenize, effective_order=True)
            if metric == "bleu"
            else metrics.CHRF(word_order=2 if metric == "chrf++" else 0)
        )
        self._column = column

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """
        Raises:
            UserError: a prompt without a reference.
        """
        for prompt in prompts:
            references(prompt, self._column)

    def score(self, samples: Sequence[Sample[str]]) -> Float32[torch.Tensor, " samples"]:
        found = [self._metric.sentence_score(s.media, references(s.prompt, self._column)).score for s in samples]
        return torch.tensor(found, dtype=torch.float32)


def references(prompt: Prompt, column: str = "reference") -> list[str]:
    """
    Raises:
        UserError: there is none, or it is not text.
    """
    given = prompt.meta.get(column)
    found = [given] if isinstance(given, str) else list(given) if isinstance(given, Sequence) else []
    if not found or not all(isinstance(text, str) and text.strip() for text in found):
        raise UserError(
            f"The reward 'translation': prompt '{prompt.id}' has no text under '{column}' to compare with; give every "
            "line of the data file a reference, or name its column."
        )
    return found
