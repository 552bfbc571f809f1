"""Drawing answers: each with a seed of its own, whatever batch it is drawn in."""

from collections.abc import Sequence
from typing import Any, Literal, final

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from raftdiff.config import Config
from raftdiff.llm.loading import LM

Strategy = Literal["sample", "greedy", "beam", "diverse_beam"]


class DecodingConfig(Config):
    """How answers are drawn."""

    strategy: Strategy = "sample"
    """sample; greedy (one answer a prompt); beam or diverse_beam: the K best answers of a search (RRHF's BP and DP)."""
    temperature: float = Field(default=1.0, gt=0)
    """The paper's lambda: answers are drawn from p^(1/lambda). sample and diverse_beam."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    """0 for no limit."""
    repetition_penalty: float = Field(default=1.0, gt=0)
    """Above 1, what the answer has said is made less likely."""
    beams: int = Field(default=4, ge=1)
    """beam: how wide the search is; at least as wide as answers are asked for."""
    diversity_penalty: float = Field(default=1.0, ge=0)
    """diverse_beam: what a token loses for each earlier answer that chose it at the same step (arXiv:1610.02424, with
    groups of one beam, as RRHF has them)."""
    max_new_tokens: int = Field(default=64, ge=1)
    min_new_tokens: int = Field(default=0, ge=0)
    """Answers do not end before this many tokens."""
    stop: list[str] = Field(default_factory=list)
    """Texts that end an answer; the answer is cut before them."""

    @property
    def exact(self) -> bool:
        """Whether answers are draws from the model itself, as ratios of probabilities need them."""
        return self.strategy == "sample" and (self.temperature, self.top_p, self.top_k, self.repetition_penalty) == (
            1.0,
            1.0,
            0,
            1.0,
        )


@final
class Draw:
    """The last step of the logits processors: every row draws its token with its own random numbers.

    The scores that leave it allow the drawn token alone, so that the greedy search of ``generate`` takes it. A row's
    u_t ~ U(0, 1) come from its own seed, and the token is the first whose cumulative probability passes u_t: the draw
    depends on the row's seed and its own probabilities, not on its neighbours. With ``group``, which is not 1 in a
    diverse beam search, the rows of one prompt stand together and take their tokens in turn.
    """

    def __init__(self, seeds: Sequence[int], decoding: DecodingConfig, group: int, ends: Sequence[int]) -> None:
        self._decoding, self._group, self._ends = decoding, group, torch.tensor(list(ends))
        steps = decoding.max_new_tokens
        self._uniform = torch.stack(
            [torch.rand(steps, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in seeds]
        )
        self._ended = torch.zeros(len(seeds), dtype=torch.bool)
        self.logprobs: list[Float[Tensor, " rows"]] = []
        self._model: Float[Tensor, "rows vocabulary"] | None = None

    def watch(self, ids: Tensor, scores: Tensor) -> Tensor:
        """The first of the processors: keep what the model itself says."""
        del ids
        self._model = scores.float().log_softmax(-1)
        return scores

    def choose(self, ids: Tensor, scores: Tensor) -> Tensor:
        """The last of the processors."""
        del ids
        assert self._model is not None
        token = {"sample": self._sampled, "diverse_beam": self._diverse}.get(self._decoding.strategy, _greedy)(scores)
        self._ended |= torch.isin(token.cpu(), self._ends)
        self.logprobs.append(self._model.gather(-1, token[:, None]).squeeze(-1).cpu())
        return torch.full_like(scores, -torch.inf).scatter_(-1, token[:, None], 0.0)

    def _sampled(self, scores: Tensor) -> Int[Tensor, " rows"]:
        cumulative = scores.float().softmax(-1).double().cumsum(-1)
        u = self._uniform[:, len(self.logprobs)].to(scores.device) * cumulative[:, -1]
        token = torch.searchsorted(cumulative, u[:, None], right=True).squeeze(-1)
        return token.clamp(max=scores.shape[-1] - 1)

    def _diverse(self, scores: Tensor) -> Int[Tensor, " rows"]:
        """Each answer of a prompt in turn, the choices of those before it made less likely."""
        lp = scores.float().log_softmax(-1).reshape(-1, self._group, scores.shape[-1]).clone()
        going = ~self._ended.to(scores.device).reshape(-1, self._group)
        chosen: list[Tensor] = []
        for place in range(self._group):
            chosen.append(lp[:, place].argmax(-1))
            penalty = self._decoding.diversity_penalty * going[:, place, None, None].float()
            same = chosen[-1][:, None, None].expand(-1, self._group, 1)
            lp.scatter_add_(-1, same, -penalty.expand(-1, self._group, 1))
        return torch.stack(chosen, dim=1).flatten()


def _greedy(scores: Tensor) -> Int[Tensor, " rows"]:
    return scores.argmax(-1)


Drawn = tuple[list[int], Float[Tensor, " answer"]]
"""An answer's tokens, the end token included where it came, and their log p under the model itself: at temperature 1,
before top-k, top-p and penalties."""


@torch.no_grad()
def generate(
    lm: LM, prompts: Sequence[Sequence[int]], seeds: Sequence[int], decoding: DecodingConfig, *, group: int = 1
) -> list[Drawn]:
    """An answer for each row; with diverse_beam the rows of one prompt, ``group`` of them, stand together."""
    ids, attention = _left_padded(prompts, lm.pad)
    draw = Draw(seeds, decoding, group, lm.eos)
    steps = [_Step(draw.watch), *_warpers(decoding, lm, ids.shape[1]), _Step(draw.choose)]
    answers = _answers(lm, ids, attention, decoding, steps)
    logprobs = torch.stack(draw.logprobs, dim=1)
    lengths = [answer_length(row, lm, decoding.stop) for row in answers]
    return [(row[:n], lp[:n].clone()) for row, lp, n in zip(answers, logprobs, lengths, strict=True)]


@torch.no_grad()
def search(lm: LM, prompt: Sequence[int], decoding: DecodingConfig, *, count: int) -> list[list[int]]:
    """The ``count`` best answers to one prompt that a beam search finds."""
    ids, attention = _left_padded([prompt], lm.pad)
    wide = {"num_beams": max(count, decoding.beams), "num_return_sequences": count}
    answers = _answers(lm, ids, attention, decoding, _warpers(decoding, lm, ids.shape[1]), **wide)
    return [row[: answer_length(row, lm, decoding.stop)] for row in answers]


def _answers(
    lm: LM, ids: Tensor, attention: Tensor, decoding: DecodingConfig, steps: list[Any], **search: int
) -> list[list[int]]:
    from transformers import GenerationConfig, LogitsProcessorList

    drawn = lm.model.generate(
        input_ids=ids.to(lm.device),
        attention_mask=attention.to(lm.device),
        generation_config=GenerationConfig(
            do_sample=False,
            max_new_tokens=decoding.max_new_tokens,
            repetition_penalty=1.0,
            pad_token_id=lm.pad,
            eos_token_id=list(lm.eos),
            use_cache=True,
            **search,
        ),
        logits_processor=LogitsProcessorList(steps),
        **({"stop_strings": decoding.stop, "tokenizer": lm.tokenizer} if decoding.stop else {}),
    )
    # prompts are cut off by count: an answer may repeat its prompt, and a padding token may be a real one
    answers: list[list[int]] = drawn[:, ids.shape[1] :].tolist()
    return answers


def answer_length(row: Sequence[int], lm: LM, stop: Sequence[str]) -> int:
    """How many of the tokens are the answer: up to the first end token, or the token that completes a stop text."""
    end = next((place + 1 for place, token in enumerate(row) if token in lm.eos), len(row))
    if not stop or not any(text in lm.text(row[:end]) for text in stop):
        return end
    return next(n for n in range(1, end + 1) if any(text in lm.text(row[:n]) for text in stop))


def cut(text: str, stop: Sequence[str]) -> str:
    """The text before the first of the stop texts.

    >>> cut("Yes. Human: and", ["Human:", "Assistant:"])
    'Yes. '
    """
    ends = [text.index(one) for one in stop if one in text]
    return text[: min(ends)] if ends else text


def _left_padded(prompts: Sequence[Sequence[int]], pad: int) -> tuple[Int[Tensor, "rows tokens"], Tensor]:
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in prompts])
    attention = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts])
    return ids, attention


@final
class _Step:
    """A function as a logits processor."""

    def __init__(self, call: Any) -> None:
        self._call = call

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        found: Tensor = self._call(input_ids, scores)
        return found


def _warpers(decoding: DecodingConfig, lm: LM, prompt_tokens: int) -> list[Any]:
    """Those of the library that the config asks for, in the library's order."""
    from transformers import (
        MinNewTokensLengthLogitsProcessor,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    found: list[Any] = []
    if decoding.repetition_penalty != 1:
        found.append(RepetitionPenaltyLogitsProcessor(decoding.repetition_penalty, prompt_tokens))
    if decoding.min_new_tokens:
        ends = list(lm.eos)
        found.append(MinNewTokensLengthLogitsProcessor(prompt_tokens, decoding.min_new_tokens, ends))
    if decoding.temperature != 1 and decoding.strategy in ("sample", "diverse_beam"):
        found.append(TemperatureLogitsWarper(decoding.temperature))
    if decoding.top_k:
        found.append(TopKLogitsWarper(decoding.top_k))
    if decoding.top_p < 1:
        found.append(TopPLogitsWarper(decoding.top_p))
    return found
