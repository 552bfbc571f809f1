"""Prompts and answers as rows of token ids: laid out for the network, and scored by it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from raftdiff.errors import UserError
from raftdiff.llm.model.head import log_probabilities_at, read
from raftdiff.llm.model.loading import LM
from raftdiff.llm.model.tokens import response_mask
from raftdiff.types import Sample


class Row(NamedTuple):
    """The tokens of one prompt and of one answer to it."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Of both together."""
        return len(self.prompt) + len(self.answer)


@final
@dataclass(frozen=True, slots=True)
class Batch:
    """Rows side by side, filled up on the right."""

    ids: Int[Tensor, "rows tokens"]
    attention: Int[Tensor, "rows tokens"]
    mask: Bool[Tensor, "rows tokens-1"]
    """True where the target is a token of the answer."""

    @property
    def answer_tokens(self) -> int:
        return int(self.mask.sum())

    @property
    def places(self) -> Int[Tensor, " answer_tokens"]:
        """Where the answers' tokens are predicted: each at the one before it, counted through all rows."""
        row, place = self.mask.nonzero(as_tuple=True)
        return row * self.ids.shape[1] + place

    @property
    def targets(self) -> Int[Tensor, " answer_tokens"]:
        """The answers' tokens, row by row."""
        return self.ids[:, 1:][self.mask]


def row_of(lm: LM, sample: Sample[str], *, learning: bool) -> Row:
    """A sample's tokens. A sampled answer's are those that were drawn; anybody else's text is tokenized, and
    ends unless it was cut.

    ``learning``: after the prompt that the model learns to answer; else after the one that was sampled.

    Raises:
        UserError: there is no answer, or prompt and answer are longer than the model is made for.
    """
    row = _spelled(lm, sample, learning=learning)
    if not row.answer:
        raise UserError(f"{sample.key}: this answer is empty, so there is nothing to learn from it.")
    if lm.positions is not None and row.tokens > lm.positions:
        raise UserError(
            f"{sample.key}: prompt and answer are {row.tokens} tokens together, and '{lm.name}' is made for "
            f"{lm.positions}; leave it out, or shorten it."
        )
    return row


def fits(lm: LM, sample: Sample[str]) -> bool:
    """Whether the model can read an answer whole, after the prompt that it learns to answer."""
    return lm.positions is None or _spelled(lm, sample, learning=True).tokens <= lm.positions


def _spelled(lm: LM, sample: Sample[str], *, learning: bool) -> Row:
    prompt = sample.prompt.learning if learning else sample.prompt.sampling
    drawn = sample.aux.get("tokens")
    answer = lm.answer_ids(sample.media, ended=not sample.cut) if drawn is None else drawn.tolist()
    return Row(tuple(lm.prompt_ids(sample.prompt, prompt)), tuple(answer))


def other_prompt(learner: str, which: str) -> str:
    """What to tell whoever lets ``learner`` learn answers after another prompt than the one that they were drawn
    after; ``which``: the prompt or the prompts."""
    return (
        f"prompts: {learner} compares how likely answers were when they were drawn with how likely they are after the "
        f"prompt that is learnt, and for {which} these are two texts (prompts.magic, or a column 'sampling'). Set "
        "prompts.decouple: false, so that the model learns to answer what was sampled, or sample the plain prompt."
    )


def collate(rows: Sequence[Row], pad: int) -> Batch:
    """Rows as one batch on the CPU."""
    lengths = torch.tensor([len(row.prompt) + len(row.answer) for row in rows])
    prompts = torch.tensor([len(row.prompt) for row in rows])
    width = int(lengths.max())
    ids = torch.full((len(rows), width), pad)
    for place, row in enumerate(rows):
        ids[place, : lengths[place]] = torch.tensor([*row.prompt, *row.answer])
    attention = (torch.arange(width) < lengths[:, None]).long()
    return Batch(ids, attention, response_mask(prompts, lengths, width))


@torch.no_grad()
def score(lm: LM, rows: Sequence[Row], *, batch_size: int) -> list[Float[Tensor, " answer"]]:
    """log p of every answer token, float32 on the CPU, under the network as it stands.

    Rows of like length go together, so that little is computed for the filling.
    """
    order = sorted(range(len(rows)), key=lambda place: len(rows[place].prompt) + len(rows[place].answer))
    found: list[Tensor] = [torch.empty(0)] * len(rows)
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        batch = collate([rows[place] for place in places], lm.pad)
        seen = read(lm.model, input_ids=batch.ids.to(lm.device), attention_mask=batch.attention.to(lm.device))
        lp = log_probabilities_at(seen, batch.places, batch.targets).cpu()
        for place, values in zip(places, torch.split(lp, batch.mask.sum(dim=1).tolist()), strict=True):
            found[place] = values.clone()
    return found


def laid_out(values: Sequence[Tensor], mask: Tensor) -> Tensor:
    """Values of answer tokens where their row has them, 0 elsewhere."""
    return torch.zeros(mask.shape, device=mask.device).masked_scatter(mask, torch.cat([one.float() for one in values]))


def drawn_with(sample: Sample[str], row: Row) -> Tensor:
    """log p of the answer's tokens under the policy that drew it, as its sampler computed it.

    Raises:
        UserError: they did not come with it, or it was drawn after another prompt than the one that is learnt: then
            they are probabilities of something else.
    """
    if sample.prompt.sampling != sample.prompt.learning:
        raise UserError(other_prompt("this objective", f"'{sample.prompt.id}'"))
    if "logprobs" not in sample.aux or len(sample.aux["logprobs"]) != len(row.answer):
        raise UserError(
            f"{sample.key}: this answer comes without the log-probabilities of its tokens, which this objective needs; "
            "use the sampler 'policy'."
        )
    return sample.aux["logprobs"]
