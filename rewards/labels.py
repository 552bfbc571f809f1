"""What people chose, as a reward: their answers of ``raftdiff label`` rank the candidates of a finished round anew."""

import math
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Literal, final

import torch
from jaxtyping import Float32
from pydantic import Field

from raftdiff.errors import UserError, command
from raftdiff.recipes.config import RewardConfig
from raftdiff.records.entries import found
from raftdiff.records.labels import acts, ballots, points
from raftdiff.records.run import Run
from raftdiff.types import Sample


class LabelsConfig(RewardConfig):
    type: Literal["labels"] = "labels"
    name: str = "labels"
    """The column of this reward in tables and logs."""
    weight: float = Field(default=1.0, allow_inf_nan=False)
    """Factor in the total reward."""
    run: str
    """The run directory whose candidates were labelled."""
    rater: str | None = None
    """Count this rater's answers only; everybody's by default. A veto counts, whoever cast it, unless one is named."""

    def build(self, *, device: str = "cpu", resolve: Callable[[str], str] = str) -> "LabelsReward":
        del device, resolve  # no model here
        return LabelsReward(Run.open(Path(self.run)), rater=self.rater, name=self.name)


@final
class LabelsReward:
    """Wins less losses in blind comparisons with other candidates of the same prompt. Higher is better.

    A candidate that nobody compared scores 0, one that anybody vetoed NaN: it is discarded. Beside another reward,
    give this one a weight that is large on the other's scale, and people decide where they have spoken. It knows the
    candidates of its own run, pictures or texts, also in a run forked from it, by their seeds; to any other sample it
    gives 0.
    """

    def __init__(self, run: Run, *, rater: str | None = None, name: str = "labels") -> None:
        self.name = name
        self._run, self._rater = run, rater
        self._by_seed = _by_seed(run, rater)

    def about(self, seeds: Collection[int]) -> str:
        """What people said of these candidates, in words.

        Raises:
            UserError: nothing at all; it says whether somebody labelled, and what.
        """
        known = [points for seed, points in self._by_seed.items() if seed in seeds]
        if not known:
            raise UserError(f"The reward '{self.name}' knows none of these candidates: {self._why()}")
        vetoed, above = sum(map(math.isnan, known)), sum(it > 0 for it in known)
        below = sum(it < 0 for it in known)
        return (
            f"{len(known)} of {len(seeds)} candidates were labelled: {above} won more than they lost, {below} lost "
            f"more, {len(known) - vetoed - above - below} are level, {vetoed} vetoed; the others have 0"
        )

    def _why(self) -> str:
        path, raters = self._run.path, [ballot.rater for ballot in ballots(self._run)]
        names = acts(self._run, self._rater)
        if not raters:
            return f"nobody has labelled anything in {path} yet; run: {command('label', path)}"
        if not names:
            whose = "all was taken back" if self._rater in (None, *raters) else f"'{self._rater}' labelled nothing"
            return f"{whose} in {path}; those who labelled are: {', '.join(raters)}."
        rounds = sorted({int(name.split("/")[1]) for name in names if name.startswith("rounds/")})
        if not rounds:
            ask = command("label", path, "--round", "0")
            return (
                f"all labels of {path} are about an evaluation, whose pictures or answers are no candidates; run: {ask}"
            )
        which = f"round {rounds[0]}" if len(rounds) == 1 else f"the rounds {', '.join(map(str, rounds))}"
        return f"the labels of {path} are about {which}. Score that round of it, with: --round {rounds[-1]}"

    def score(self, samples: Sequence[Sample[Any]]) -> Float32[torch.Tensor, " samples"]:
        return torch.tensor([self._by_seed.get(sample.seed, 0.0) for sample in samples], dtype=torch.float32)


def _by_seed(run: Run, rater: str | None) -> dict[int, float]:
    """Points of every labelled candidate, NaN for a veto, by the candidate's seed, which no other sample has; what was
    said of it in several rounds, which took it over, is added up."""
    scores, vetoes = points(run, rater)
    scores |= dict.fromkeys(vetoes, math.nan)
    held: dict[int, float] = {}
    for name, entry in found(run, scores).items():
        if entry.seed is not None:
            held[entry.seed] = held.get(entry.seed, 0.0) + scores[name]
    return held
