"""What the loop is given: the parts of a recipe, how often they act, and on which prompts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, final

import numpy as np
from pydantic import Field

from raftdiff.ranking import Ranker
from raftdiff.recipes.config import Config
from raftdiff.seeds import fold
from raftdiff.types import FineTuner, Media, Prompt, Sample, Sampler


class LoopConfig(Config):
    """How often, on how much."""

    rounds: int = Field(default=10, ge=1)
    """RAFT rounds; the paper's T."""
    candidates: int = Field(default=10, ge=1)
    """Candidates per prompt in each round; the paper's K."""
    prompts_per_round: int | None = Field(default=None, ge=1)
    """Prompts drawn for each round, without repetition until all were used; all of them by default. The paper's b."""
    sample_every: int = Field(default=1, ge=1)
    """Candidates are drawn in the first of so many rounds, and taken over in the others: what a slow sampler or a
    teacher drew is learnt from several times, each time from where the model then is."""
    replay_rounds: int = Field(default=0, ge=0)
    """From how many earlier rounds the selected samples are learnt from again."""
    patience: int | None = Field(default=None, ge=1)
    """Stop when the held-out reward has not risen for this many rounds; never by default."""
    guard: Literal["warn", "stop", "rollback"] = "warn"
    """What to do when the held-out figures move as where a reward is hacked: warn, stop after the round, or also go
    back to the round whose held-out rewards were best."""
    seed: int = 0
    """Every other seed is derived from this one."""

    @property
    def draws(self) -> int:
        """How many of the rounds draw candidates."""
        return -(-self.rounds // self.sample_every)


@final
@dataclass(frozen=True)
class Parts(Generic[Media]):
    """What a recipe is assembled into."""

    sampler: Sampler[Media]
    ranker: Ranker[Media]
    finetuner: FineTuner[Media]
    prompts: Sequence[Prompt]
    held_out: Sequence[Prompt] = ()
    held_out_sampler: Sampler[Media] | None = None
    """Draws the held-out prompts as the tuned model is to be used; the sampler itself by default."""
    held_out_ranker: Ranker[Media] | None = None
    """Scores the held-out samples, where the rewards of the training cannot; its selector is not used."""
    held_out_candidates: int = 1
    """Samples per held-out prompt; their seeds are the same in every round."""
    examine: Callable[[Sequence[Sample[Media]]], Mapping[str, Any]] | None = None
    """Further figures of the held-out samples, such as their distance from the base model, or what their pixels say."""
    moved: Callable[[Sequence[Sample[Media]], Sequence[Sample[Media]]], Mapping[str, Any]] | None = None
    """How far the held-out samples lie from the base's of the same prompts and seeds, which come first."""
    loop: LoopConfig = field(default_factory=LoopConfig)


def asked(prompts: Sequence[Prompt], loop: LoopConfig, round: int) -> list[Prompt]:
    """The prompts of a round: all, or the next hand of a deck that is shuffled again when it runs out. Rounds that draw
    no candidates have the hand of the one that did."""
    if loop.prompts_per_round is None or loop.prompts_per_round >= len(prompts):
        return list(prompts)
    count = loop.prompts_per_round
    deck: list[int] = []
    epoch = 0
    for _ in range(round // loop.sample_every + 1):
        if len(deck) < count:
            fresh = np.random.default_rng(fold(loop.seed, "deck", epoch)).permutation(len(prompts)).tolist()
            # What is left of the old deck goes first, and not into the same hand twice.
            deck += sorted(fresh, key=lambda card: card in deck)
            epoch += 1
        hand, deck = deck[:count], deck[count:]
    return [prompts[card] for card in hand]
