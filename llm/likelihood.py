"""Rewards that a language model itself gives: its distance from the base (RAFT's KL term), and another one's liking."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import ClassVar, Literal, final

import torch
from jaxtyping import Float32
from pydantic import Field

from raftdiff.llm.figures import Base, Distances
from raftdiff.llm.model.lengths import check_asked, warn_of_long
from raftdiff.llm.model.loading import LM, LMConfig, load
from raftdiff.llm.model.rows import Row, row_of, score
from raftdiff.recipes.config import RewardConfig
from raftdiff.types import Prompt, Sample


class KlConfig(RewardConfig):
    """RAFT's KL-corrected ranking: r - beta (log p - log p0) is the reward with this one beside it, beta its weight."""

    type: Literal["kl"] = "kl"
    name: str = "kl"
    """The column of this reward in tables and logs."""
    weight: float = Field(default=0.05, allow_inf_nan=False)
    """The paper's beta, 0.005 to 0.1."""
    batch_size: int = Field(default=64, ge=1)
    """Answers through the network at once."""

    def build_on(self, lm: LM, base: Base) -> "KlReward":
        """The reward on the policy that is tuned."""
        return KlReward(Distances(lm, base, self.batch_size), name=self.name)


@final
class KlReward:
    """-(log p - log p0) of the answer, sums over its tokens in nats: nearer to the base is higher, 0 at the base.

    It changes which answer is picked, and is never in the loss (arXiv:2304.06767, section 3). ``log p`` is the current
    policy's, whoever wrote the answer. Two forward passes an answer.
    """

    nothing_at_first: ClassVar = True
    """Before anything was learnt it is 0 for every answer, which is no fault of it."""

    def __init__(self, distances: Distances, *, name: str = "kl") -> None:
        self.name = name
        self._distances = distances

    def score(self, samples: Sequence[Sample[str]]) -> Float32[torch.Tensor, " samples"]:
        rows = [row_of(self._distances.lm, sample, learning=True) for sample in samples]
        now, base = self._distances.log_probabilities(rows)
        return torch.stack([(q - p).sum() for p, q in zip(now, base, strict=True)]).float()


class LikelihoodConfig(RewardConfig):
    """A language model's mean log p a token: a model trained by RRHF is a reward model by this."""

    type: Literal["likelihood"] = "likelihood"
    name: str = "likelihood"
    """The column of this reward in tables and logs."""
    weight: float = Field(default=1.0, allow_inf_nan=False)
    """Factor in the total reward."""
    model: LMConfig
    batch_size: int = Field(default=64, ge=1)
    """Answers through the network at once."""

    def build(self, *, device: str = "cpu", resolve: Callable[[str], str] = str) -> "LikelihoodReward":
        """
        Raises:
            UserError: the model cannot be loaded.
        """
        del device  # the model's own config says where
        return LikelihoodReward(load(self.model, resolve), batch_size=self.batch_size, name=self.name)


@final
class LikelihoodReward:
    """p_i = mean log p of the answer's tokens, nats, at most 0; higher is better (arXiv:2304.05302, section 3.1).

    The answer is read by the model's own tokenizer, after the prompt's caption, and ends unless it was cut off.
    NaN for what is longer than the model is made for.
    """

    def __init__(self, lm: LM, *, batch_size: int = 64, name: str = "likelihood") -> None:
        self.name = name
        self._lm, self._batch_size = lm, batch_size

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """
        Raises:
            UserError: a prompt is longer than the model can read.
        """
        check_asked(self.name, self._lm, prompts, positions=self._lm.positions)

    def score(self, samples: Sequence[Sample[str]]) -> Float32[torch.Tensor, " samples"]:
        return _of_whole(self.name, mean_log_p(self._lm, samples, self._batch_size))


class MutualInformationConfig(RewardConfig):
    """How much more likely a language model finds the answer after its prompt than after a neutral one."""

    type: Literal["mutual_information"] = "mutual_information"
    name: str = "mutual_information"
    """The column of this reward in tables and logs."""
    weight: float = Field(default=1.0, allow_inf_nan=False)
    """Factor in the total reward."""
    model: LMConfig
    neutral: str = Field(default="Hello.", pattern=r"\S")
    """What is read in the prompt's place, without system message and earlier turns."""
    batch_size: int = Field(default=64, ge=1)
    """Answers through the network at once."""

    def build(self, *, device: str = "cpu", resolve: Callable[[str], str] = str) -> "MutualInformationReward":
        """
        Raises:
            UserError: the model cannot be loaded.
        """
        del device  # the model's own config says where
        lm = load(self.model, resolve)
        return MutualInformationReward(lm, neutral=self.neutral, batch_size=self.batch_size, name=self.name)


@final
class MutualInformationReward:
    """Mean of log p(answer | prompt) - log p(answer | neutral prompt) over the answer's tokens, nats; about 0 for what
    could be said to anybody about anything, higher for what fits this prompt and few others.

    Source: Li et al. 2016, arXiv:1510.03055, section 4.2: maximum mutual information against dull answers, log p(T|S) -
    lambda log p(T). Here lambda is 1, the mean over tokens takes the place of their term for the length, and p(T)
    is read after a neutral prompt, since a model of dialogue is not made for answers to nothing. It judges no
    quality: nonsense about the prompt is specific as well, so it stands beside other rewards. NaN for what is longer
    than the model is made for. Two forward passes an answer.
    """

    def __init__(
        self, lm: LM, *, neutral: str = "Hello.", batch_size: int = 64, name: str = "mutual_information"
    ) -> None:
        self.name = name
        self._lm, self._batch_size = lm, batch_size
        self._neutral = Prompt("neutral", neutral, neutral, neutral)

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """
        Raises:
            UserError: a prompt, or the neutral one, is longer than the model can read.
        """
        lm = self._lm
        check_asked(self.name, lm, prompts, positions=lm.positions)
        check_asked(self.name, lm, [self._neutral], positions=lm.positions, remedy="shorten neutral")

    def score(self, samples: Sequence[Sample[str]]) -> Float32[torch.Tensor, " samples"]:
        anywhere = [replace(one, prompt=self._neutral) for one in samples]
        here, there = (mean_log_p(self._lm, said, self._batch_size) for said in (samples, anywhere))
        return _of_whole(self.name, here - there)


def mean_log_p(lm: LM, samples: Sequence[Sample[str]], batch_size: int) -> Float32[torch.Tensor, " samples"]:
    """Mean log p of each answer's tokens after its prompt's caption, nats; NaN where ``lm`` cannot read it whole."""
    rows = [
        Row(
            tuple(lm.prompt_ids(one.prompt, one.prompt.caption)),
            tuple(lm.answer_ids(one.media, ended=not (one.cut and one.media))),  # an empty one has nothing else
        )
        for one in samples  # in its own tokens: those that a sample carries are the policy's, maybe of other words
    ]
    read = [
        place
        for place, row in enumerate(rows)
        if lm.positions is None or len(row.prompt) + len(row.answer) <= lm.positions
    ]
    found = torch.full((len(rows),), torch.nan)
    for place, lp in zip(read, score(lm, [rows[place] for place in read], batch_size=batch_size), strict=True):
        found[place] = lp.mean()
    return found


def _of_whole(name: str, found: Float32[torch.Tensor, " samples"]) -> Float32[torch.Tensor, " samples"]:
    """The same; how many answers could not be read whole is said."""
    warn_of_long(name, int(found.isnan().sum()), len(found), "name a model that reads more")
    return found
