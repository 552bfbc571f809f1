"""Samplers that own a language model: the policy that is tuned, and teachers that are not."""

from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import Literal, final

import torch
from pydantic import Field, model_validator

from raftdiff.chat.dialogue import cut, untorn
from raftdiff.llm.model.loading import LM, LMConfig, load
from raftdiff.llm.model.rows import Row, score
from raftdiff.llm.sampling.generation import DecodingConfig, Drawn, Ending, check_room, generate, search
from raftdiff.recipes.config import Config, Said
from raftdiff.seeds import fold
from raftdiff.types import Prompt, Sample, Source


class TurnConfig(Config):
    """A turn of a dialogue."""

    role: Literal["user", "assistant"]
    content: Said


class MagicConfig(Config):
    """What the policy reads before a prompt while candidates are drawn, and the tuned model does without (context
    distillation): it learns to answer the prompt alone. Magic of the prompt's own turn is ``prompts.magic``."""

    system: str = ""
    """A system message, in place of the prompt's own."""
    history: list[TurnConfig] = Field(default_factory=list)
    """A dialogue to follow, before the turns that the prompt brings: an example or two of how to answer. The user and
    the assistant take turns, the user first."""

    @model_validator(mode="after")
    def _in_turns(self) -> "MagicConfig":
        wanted = ("user", "assistant")
        for place, turn in enumerate(self.history):
            if turn.role != wanted[place % 2]:
                raise ValueError(
                    f"history.{place} is the {turn.role}'s, and the {wanted[place % 2]}'s turn comes there: they take "
                    "turns, the user first"
                )
        if len(self.history) % 2:
            raise ValueError("history ends with the user, and the prompt is the user's turn; add the assistant's reply")
        return self

    def before(self, prompt: Prompt) -> Prompt:
        """The prompt with it."""
        turns = [{"role": turn.role, "content": turn.content} for turn in self.history]
        system = {"system": self.system} if self.system else {}
        history = {"history": [*turns, *(prompt.meta.get("history") or ())]} if turns else {}
        return replace(prompt, meta={**prompt.meta, **system, **history})


class PolicySamplerConfig(Config):
    """The model that is tuned answers: on-policy, as RAFT has it."""

    type: Literal["policy"] = "policy"
    decoding: DecodingConfig = DecodingConfig()
    batch_size: int = Field(default=64, ge=1)
    """Answers drawn at once."""
    magic: MagicConfig = MagicConfig()

    def build(self, lm: LM) -> "LMSampler":
        return LMSampler(lm, self.decoding, self.batch_size, "policy", self.magic)


class TeacherSamplerConfig(Config):
    """Another language model answers, and stays as it is."""

    type: Literal["teacher"] = "teacher"
    model: LMConfig
    decoding: DecodingConfig = DecodingConfig()
    batch_size: int = Field(default=64, ge=1)
    """Answers drawn at once."""

    def build(self, resolve: Callable[[str], str]) -> "LMSampler":
        """
        Raises:
            UserError: the model cannot be loaded.
        """
        return LMSampler(load(self.model, resolve), self.decoding, self.batch_size, "teacher")


@final
class LMSampler:
    """Answers of a causal language model.

    ``aux`` carries ``tokens`` (n,), the answer's ids with the end token where it came, and ``logprobs`` (n,), their
    log p under the model that drew them, at temperature 1 and before top-k, top-p and penalties. A teacher's samples
    carry neither: its tokens may be another vocabulary's, and its probabilities are not the policy's. An answer that
    reached ``max_new_tokens`` before it ended has ``cut``, and is learnt without an end; its text is without a letter
    that lacks some of its bytes. Where a teacher had not said anything by then, there is no answer.
    """

    def __init__(
        self, lm: LM, decoding: DecodingConfig, batch_size: int, source: Source, magic: MagicConfig | None = None
    ) -> None:
        self.lm, self.decoding, self.batch_size, self.source = lm, decoding, batch_size, source
        self._magic = magic or MagicConfig()
        self.provides: tuple[str, ...] = ("tokens", "logprobs") if source == "policy" else ()
        self._tokens = 0

    def sample(
        self, prompts: Sequence[Prompt], *, per_prompt: int, seed: int, round: int, done: AbstractSet[tuple[str, int]]
    ) -> Iterator[Sample[str]]:
        """Candidate (p, k) with the seed ``fold(seed, p.id, k)``; batches are cut from the full list of candidates, the
        longest prompts first, so that little is computed for the filling.

        Raises:
            UserError: a prompt is empty, or longer than the model is made for.
        """
        ending = Ending(self.lm, self.decoding.stop)
        for batch in self._cut(prompts, per_prompt):
            if all((prompt.id, index) in done for prompt, _, index in batch):
                continue
            seeds = [fold(seed, prompt.id, index) for prompt, _, index in batch]
            drawn = self._draw([ids for _, ids, _ in batch], seeds, per_prompt if self._whole else 1)
            for (prompt, _, index), own, (tokens, logprobs) in zip(batch, seeds, drawn, strict=True):
                if (prompt.id, index) in done:
                    continue
                text, ended = cut(self.lm.text(tokens), self.decoding.stop), ending.ended(tokens)
                text = (text if ended else untorn(text)).strip()
                aux = {} if ended else {"cut": torch.tensor(True)}
                if self.provides:
                    aux |= {"tokens": torch.tensor(tokens, dtype=torch.int64), "logprobs": logprobs}
                elif not (text or ended):
                    continue
                yield Sample(round, prompt, index, own, self.source, text, aux)

    def batches(self, prompts: Sequence[Prompt], *, per_prompt: int, round: int) -> list[list[tuple[str, int]]]:
        """(prompt id, index) of what is drawn at once, batch by batch."""
        del round
        return [[(prompt.id, index) for prompt, _, index in batch] for batch in self._cut(prompts, per_prompt)]

    def demand_room(self, prompts: Sequence[Prompt], key: str) -> None:
        """Found before anything is drawn, and not in the middle. ``key`` is where the recipe says how is decoded.

        Raises:
            UserError: of a prompt, with what is read before it, and the longest answer the model cannot read all.
        """
        for prompt in prompts:
            check_room(self.lm, len(self._ids(prompt)), self.decoding, key)

    def network_evaluations(self) -> int:
        """Tokens drawn since construction."""
        return self._tokens

    @property
    def _whole(self) -> bool:
        """Whether the candidates of a prompt are drawn together."""
        return self.decoding.strategy in ("beam", "diverse_beam")

    def _cut(self, prompts: Sequence[Prompt], per_prompt: int) -> list[list[tuple[Prompt, list[int], int]]]:
        """Candidates in batches, each with its prompt's tokens, those of the longest prompts first."""
        size = max(1, self.batch_size // per_prompt) * per_prompt if self._whole else self.batch_size
        spelled = [(prompt, self._ids(prompt)) for prompt in prompts]
        spelled.sort(key=lambda one: -len(one[1]))
        asked = [(prompt, ids, index) for prompt, ids in spelled for index in range(per_prompt)]
        return [asked[start : start + size] for start in range(0, len(asked), size)]

    def _ids(self, prompt: Prompt) -> list[int]:
        return self.lm.prompt_ids(self._magic.before(prompt), prompt.sampling)

    def _draw(self, ids: Sequence[Sequence[int]], seeds: Sequence[int], group: int) -> list[Drawn]:
        if self.decoding.strategy != "beam":
            drawn = generate(self.lm, ids, seeds, self.decoding, group=group)
        else:
            drawn = [one for place in range(0, len(ids), group) for one in self._search(ids[place], group)]
        self._tokens += sum(len(tokens) for tokens, _ in drawn)
        return drawn

    def _search(self, prompt: Sequence[int], count: int) -> list[Drawn]:
        found = search(self.lm, prompt, self.decoding, count=count)
        rows = [Row(tuple(prompt), tuple(answer)) for answer in found]
        return list(zip(found, score(self.lm, rows, batch_size=self.batch_size), strict=True))
