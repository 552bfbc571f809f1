"""Drawing answers: each with a seed of its own, whatever batch it is drawn in."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, final

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from raftdiff.errors import UserError
from raftdiff.llm.model.loading import LM
from raftdiff.recipes.config import Config, Said

NUCLEUS = 1024
"""Tokens among which the nucleus of a distribution is looked for first."""
Strategy = Literal["sample", "greedy", "beam", "diverse_beam"]


class DecodingConfig(Config):
    """How answers are drawn."""

    strategy: Strategy = "sample"
    """sample; greedy (one answer a prompt); beam or diverse_beam: the K best answers of a search (RRHF's BP and DP)."""
    temperature: float = Field(default=1.0, ge=1e-3)
    """The paper's lambda: answers are drawn from p^(1/lambda). sample and diverse_beam."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Draw from the likeliest tokens that have this probability together. sample and diverse_beam."""
    top_k: int = Field(default=0, ge=0)
    """Draw from this many of the likeliest tokens, 0 for no limit. sample and diverse_beam."""
    repetition_penalty: float = Field(default=1.0, ge=1e-2, le=1e2)
    """Above 1, what the answer has said is made less likely."""
    beams: int = Field(default=4, ge=1)
    """beam: how wide the search is; at least as wide as answers are asked for."""
    diversity_penalty: float = Field(default=1.0, ge=0)
    """diverse_beam: what a token loses for each earlier answer that chose it at the same step (arXiv:1610.02424, with
    groups of one beam, as RRHF has them)."""
    max_new_tokens: int = Field(default=64, ge=1)
    min_new_tokens: int = Field(default=0, ge=0)
    """No end token comes before this many tokens; a stop text may."""
    stop: list[Said] = Field(default_factory=list)
    """Texts that end an answer, which is cut before them. Special tokens may be among them."""

    @property
    def exact(self) -> bool:
        """Whether answers are draws from the model itself, as ratios of probabilities need them."""
        bends = (self.temperature, self.top_p, self.top_k, self.repetition_penalty, self.min_new_tokens)
        return self.strategy == "sample" and bends == (1.0, 1.0, 0, 1.0, 0)


@final
class Draw:
    """The last step of the logits processors: every row draws its token with its own random numbers.

    The scores that leave it allow the drawn token alone, so that the greedy search of ``generate`` takes it. A row's
    u_t ~ U(0, 1) come from its own seed, and the token is the first whose cumulative probability passes u_t: the draw
    depends on the row's seed and its own probabilities, not on its neighbours. With ``group``, which is not 1 in a
    diverse beam search, the rows of one prompt stand together and take their tokens in turn.
    """

    def __init__(self, seeds: Sequence[int], decoding: DecodingConfig, group: int) -> None:
        self._decoding, self._group = decoding, group
        steps = decoding.max_new_tokens
        self._uniform = torch.stack(
            [torch.rand(steps, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in seeds]
        )
        self.ended: Bool[Tensor, " rows"] = torch.zeros(len(seeds), dtype=torch.bool)
        """Which rows have their answer already: they penalize nobody."""
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
        lp = self._model.gather(-1, token[:, None]).squeeze(-1).cpu()
        if lp.isnan().any():
            raise UserError(
                "sampler: the model's probabilities are no numbers: its training diverged (go on from an earlier "
                "round, with a lower finetuner.learning_rate), or model.dtype is too small for it (try bfloat16 or "
                "float32)."
            )
        self.logprobs.append(lp)
        return torch.full_like(scores, -torch.inf).scatter_(-1, token[:, None], 0.0)

    def _sampled(self, scores: Tensor) -> Int[Tensor, " rows"]:
        cumulative = scores.float().softmax(-1).double().cumsum(-1)
        u = self._uniform[:, len(self.logprobs)].to(scores.device) * cumulative[:, -1]
        token = torch.searchsorted(cumulative, u[:, None], right=True).squeeze(-1)
        return token.clamp(max=scores.shape[-1] - 1)

    def _diverse(self, scores: Tensor) -> Int[Tensor, " rows"]:
        """Each answer of a prompt in turn, the choices of those before it made less likely."""
        lp = scores.float().log_softmax(-1).reshape(-1, self._group, scores.shape[-1]).clone()
        going = ~self.ended.to(scores.device).reshape(-1, self._group)
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
    """An answer for each row; with diverse_beam the rows of one prompt, ``group`` of them, stand together.

    Raises:
        UserError: a prompt and its answer may grow longer than the model is made for.
    """
    ids, attention = _left_padded(prompts, lm.pad)
    draw = Draw(seeds, decoding, group)
    ending = Ending(lm, decoding.stop)

    def over(rows: Tensor, scores: Any) -> Tensor:
        del scores
        draw.ended |= ending.reached(rows[:, ids.shape[1] :], draw.ended)
        return draw.ended.to(rows.device)

    steps = [_Step(draw.watch), *_warpers(decoding, ending, ids, lm.device), _Step(draw.choose)]
    answers = _answers(lm, ids, decoding, ending, attention=attention, steps=steps, over=over)
    logprobs = torch.stack(draw.logprobs, dim=1)
    lengths = [ending.length(row) for row in answers]
    return [(row[:n], lp[:n].clone()) for row, lp, n in zip(answers, logprobs, lengths, strict=True)]


@torch.no_grad()
def search(lm: LM, prompt: Sequence[int], decoding: DecodingConfig, *, count: int) -> list[list[int]]:
    """The ``count`` best answers to one prompt that a beam search finds, by their mean log p a token.

    Raises:
        UserError: the prompt and its answer may grow longer than the model is made for.
    """
    ids, attention = _left_padded([prompt], lm.pad)
    ending = Ending(lm, decoding.stop)

    def over(rows: Tensor, scores: Any) -> Tensor:
        del scores
        return ending.reached(rows[:, ids.shape[1] :]).to(rows.device)

    wide = {"num_beams": max(count, decoding.beams), "num_return_sequences": count}
    steps = _warpers(decoding, ending, ids, lm.device)
    answers = _answers(lm, ids, decoding, ending, attention=attention, steps=steps, over=over, **wide)
    return [row[: ending.length(row)] for row in answers]


def check_room(lm: LM, prompt: int, decoding: DecodingConfig, key: str = "decoding") -> None:
    """``key`` is where the recipe says how is decoded.

    Raises:
        UserError: after a prompt of so many tokens the model has no room for the longest answer.
    """
    if lm.positions is not None and prompt + decoding.max_new_tokens > lm.positions:
        raise UserError(
            f"{key}.max_new_tokens: a prompt of {prompt} tokens and {decoding.max_new_tokens} new ones are more "
            f"than the {lm.positions} that '{lm.name}' is made for; ask for fewer, or shorten the prompt."
        )


def _answers(
    lm: LM,
    ids: Tensor,
    decoding: DecodingConfig,
    ending: "Ending",
    *,
    attention: Tensor,
    steps: list[Any],
    over: Callable[[Tensor, Any], Tensor],
    **search: int,
) -> list[list[int]]:
    from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

    check_room(lm, ids.shape[1], decoding)
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=decoding.max_new_tokens,
        pad_token_id=lm.pad,
        eos_token_id=list(ending.ids),
        use_cache=True,
        **search,
    )
    with _unconfigured(lm.model):
        drawn = lm.model.generate(
            input_ids=ids.to(lm.device),
            attention_mask=attention.to(lm.device),
            generation_config=config,
            logits_processor=LogitsProcessorList(steps),
            stopping_criteria=StoppingCriteriaList([over]),
            **_read(lm, ids, attention, copies=config.num_beams or 1),
        )
    # prompts are cut off by count: an answer may repeat its prompt, and a padding token may be a real one
    answers: list[list[int]] = drawn[:, ids.shape[1] :].tolist()
    return answers


def _read(lm: LM, ids: Tensor, attention: Tensor, *, copies: int) -> dict[str, Any]:
    """What the network makes of the prompts but for their last tokens, ``copies`` rows of it for each: a prompt that
    several rows have is read once. Nothing where no two rows have one, or the network keeps it in a way of its own, as
    Mamba does."""
    from transformers import DynamicCache, GenerationConfig

    takes = "past_key_values" in inspect.signature(lm.model.forward).parameters
    each, whose = torch.unique(torch.stack([ids, attention], dim=1), dim=0, return_inverse=True)
    if not takes or ids.shape[1] == 1 or len(each) == len(ids) * copies:
        return {}
    prompts, there = each[:, :, :-1].to(lm.device).unbind(dim=1)
    read = lm.model.generate(
        input_ids=prompts,
        attention_mask=there,
        generation_config=GenerationConfig(
            do_sample=False, max_new_tokens=1, use_cache=True, return_dict_in_generate=True
        ),
    ).get("past_key_values")
    if not isinstance(read, DynamicCache):
        return {}
    read.reorder_cache(whose.repeat_interleave(copies).to(lm.device))
    return {"past_key_values": read}


@contextmanager
def _unconfigured(model: Any) -> Iterator[None]:
    """Within, the model has no generation settings of its own: the library would merge them into ours, and draw from
    another distribution than the one asked for."""
    from transformers import GenerationConfig

    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


@final
class Ending:
    """Where an answer ends: at an end token, or at the token that completes a stop text within the answer.

    The library's own stop strings are looked for in the prompt too, and in the spelling of single tokens rather than
    in the text.
    """

    def __init__(self, lm: LM, stop: Sequence[str]) -> None:
        added = lm.tokenizer.added_tokens_decoder.items()
        special = {str(token): number for number, token in added if token.special}
        self.ids = tuple(dict.fromkeys((*lm.eos, *(special[text] for text in stop if text in special))))
        """A stop text that is a special token is an end token: texts are without those."""
        self.lm, self._stop = lm, [text for text in stop if text not in special]

    def reached(
        self, answers: Int[Tensor, "rows tokens"], ended: Bool[Tensor, " rows"] | None = None
    ) -> Bool[Tensor, " rows"]:
        """Whether each answer is over with its last token; those that have ``ended`` before are not looked at."""
        over = torch.isin(answers[:, -1].cpu(), torch.tensor(self.ids))
        over = over if ended is None else over | ended
        if self._stop:
            going = zip(answers.tolist(), over.tolist(), strict=True)
            over = torch.tensor([done or self._stops(row) for row, done in going])
        return over

    def ended(self, row: Sequence[int]) -> bool:
        """Whether an answer that is over ended by itself; else it was cut off at its longest."""
        return bool(row) and (row[-1] in self.ids or self._stops(row))

    def length(self, row: Sequence[int]) -> int:
        """How many of the tokens are the answer; all of them where nothing ended it."""
        end = next((place + 1 for place, token in enumerate(row) if token in self.ids), len(row))
        if not self._stops(row[:end]):
            return end
        return next(n for n in range(1, end + 1) if self._stops(row[:n]))

    def _stops(self, row: Sequence[int]) -> bool:
        text = self.lm.text(row) if self._stop else ""
        return any(one in text for one in self._stop)


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


def _warpers(decoding: DecodingConfig, ending: Ending, ids: Tensor, device: torch.device) -> list[Any]:
    """Those of the library that the config asks for, in the library's order."""
    from transformers import (
        MinNewTokensLengthLogitsProcessor,
        RepetitionPenaltyLogitsProcessor,
        SuppressTokensLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
    )

    found: list[Any] = []
    prompt_tokens, ends = ids.shape[1], torch.tensor(ending.ids, device=device)
    if nameless := ending.lm.nameless:
        found.append(SuppressTokensLogitsProcessor(nameless, device=device))
    if decoding.repetition_penalty != 1:
        found.append(RepetitionPenaltyLogitsProcessor(decoding.repetition_penalty, prompt_tokens))
    if decoding.min_new_tokens:
        found.append(MinNewTokensLengthLogitsProcessor(prompt_tokens, decoding.min_new_tokens, ends))
    if decoding.strategy not in ("sample", "diverse_beam"):
        return found
    if decoding.temperature != 1:
        found.append(TemperatureLogitsWarper(decoding.temperature))
    if decoding.top_k:
        found.append(TopKLogitsWarper(decoding.top_k))
    if decoding.top_p < 1:
        found.append(_Step(partial(nucleus, top_p=decoding.top_p)))
    return found


def nucleus(ids: Tensor, scores: Float[Tensor, "rows vocabulary"], *, top_p: float) -> Float[Tensor, "rows vocabulary"]:
    """The scores with all but the likeliest tokens that have ``top_p`` together at minus infinity (arXiv:1904.09751);
    the likeliest always stays.

    The library's own step sorts the whole vocabulary, which for 49,152 tokens is a third of drawing with SmolLM2 on a
    CPU. Most nuclei are small, so only the rows whose first thousand tokens have less than ``top_p`` are sorted whole.
    """
    del ids
    p, rest = scores.float().softmax(-1), torch.arange(len(scores), device=scores.device)
    kept = torch.zeros_like(scores, dtype=torch.bool)
    for width in (min(NUCLEUS, scores.shape[-1]), scores.shape[-1]):
        likeliest = p[rest].topk(width, dim=-1)
        mass = likeliest.values.double().cumsum(-1)
        stays = mass - likeliest.values < top_p
        stays[:, 0] = True
        kept[rest[:, None], likeliest.indices] = stays
        rest = rest[mass[:, -1] < top_p]
        if not len(rest):
            break
    return scores.masked_fill(~kept, -torch.inf)
