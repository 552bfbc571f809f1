"""A network that says how good an answer is, at its end or token by token: a language model or an encoder, and a head.

A reward model reads the value at the last token of prompt and answer, which is the answer's end token; a critic reads
it at every token. On disk it is a transformers folder with two files more: ``value_head.safetensors`` (weight, bias)
and ``reward.json`` (how prompts were written, and notes such as the held-out accuracy).
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from raftdiff.errors import UserError
from raftdiff.llm.model.head import Read, read
from raftdiff.llm.model.loading import LM, LMConfig, is_encoder, load, load_encoder
from raftdiff.llm.model.rows import Batch, Row, collate
from raftdiff.records.disk import read_json, save_tensors, write_text, written
from raftdiff.seeds import fold
from raftdiff.training.tokenizers import first_position
from raftdiff.training.trainable import merged
from raftdiff.types import Prompt, Report, silent

HEAD, NOTES = "value_head.safetensors", "reward.json"


@final
@dataclass(frozen=True)
class ValueModel:
    """A network with one number for each token it reads."""

    lm: LM
    """The network, its tokenizer, and how prompts are written for it; an encoder is held in the same way."""
    head: nn.Linear
    """width -> 1, float32."""
    causal: bool
    """Whether the network is a language model, which sees only what stands before a token and can write."""

    def hidden(self, batch: Batch) -> Float[Tensor, "rows tokens width"]:
        """The last hidden states, after the final norm. Filling is not seen, on whichever side it stands."""
        found: Tensor = self.lm.model.base_model(**self._inputs(batch)).last_hidden_state
        return found

    def reading(self, batch: Batch) -> Read:
        """The same, with the head that the network writes by: what it says of the next token, in one pass."""
        return read(self.lm.model, **self._inputs(batch))

    def read(self, hidden: Float[Tensor, "*shape width"]) -> Float[Tensor, "*shape"]:
        """What the head makes of hidden states, in float32 whatever the network computes in."""
        with torch.autocast(hidden.device.type, enabled=False):
            found: Tensor = self.head(hidden.float()).squeeze(-1)
        return found

    def values(self, batch: Batch) -> Float[Tensor, "rows tokens"]:
        """The value at every token, float32; in a causal network that of the text up to and with the token."""
        return self.read(self.hidden(batch))

    def last(self, batch: Batch) -> Float[Tensor, "rows width"]:
        """The hidden state at each row's last token."""
        return at_last(self.hidden(batch), batch.attention)

    def rewards(self, batch: Batch) -> Float[Tensor, " rows"]:
        """r = w . h_last + b at each row's last token, float32; higher is better."""
        return self.read(self.last(batch))

    def _inputs(self, batch: Batch) -> dict[str, Any]:
        attention = batch.attention.to(self.lm.device)
        inputs: dict[str, Any] = {"input_ids": batch.ids.to(self.lm.device), "attention_mask": attention}
        if self.causal:
            inputs["use_cache"] = False
        if not bool(batch.attention[:, 0].all()):  # filled on the left, where positions would begin too late
            inputs["position_ids"] = (attention.cumsum(dim=1) - 1).clamp(min=0) + first_position(self.lm.model.config)
        return inputs


def last_token(attention: Int[Tensor, "rows tokens"]) -> Int[Tensor, " rows"]:
    """The place of each row's last token, whichever side is filled up.

    It is found from the attention mask. "The first filling token, less one", as often written, reads the wrong place
    where the filling is the end token itself or stands on the left.
    """
    place = torch.arange(attention.shape[1], device=attention.device)
    return (attention * place).argmax(dim=1)


def at_last(
    hidden: Float[Tensor, "rows tokens width"], attention: Int[Tensor, "rows tokens"]
) -> Float[Tensor, "rows width"]:
    """What stands at each row's last token."""
    last = last_token(attention).to(hidden.device)
    return hidden[torch.arange(len(hidden), device=hidden.device), last]


def load_value_model(config: LMConfig, resolve: Callable[[str], str], *, seed: int = 0) -> ValueModel:
    """The value model that a folder holds, or a language model or an encoder with a fresh head, drawn from ``seed``.

    A saved one brings the template and the longest prompt that it was trained with, where the config names none.

    Raises:
        UserError: there is no such model, or its head does not belong to it.
    """
    folder = Path(resolve(config.base)).expanduser()
    if not (folder / HEAD).is_file():
        encoder = is_encoder(config, resolve)
        lm = (load_encoder if encoder else load)(config, resolve)
        return ValueModel(lm, _fresh_head(lm, seed), causal=not encoder)
    told = _notes(folder)
    known = {name: told[name] for name in ("template", "max_prompt_tokens") if name not in config.model_fields_set}
    lm = (load if told["causal"] else load_encoder)(config.model_copy(update=known), resolve)
    return ValueModel(lm, _saved_head(lm, folder), causal=told["causal"])


def save_value_model(folder: Path, model: ValueModel, notes: Mapping[str, Any]) -> None:
    """Write the model as it stands, a LoRA merged, in its dtype; ``notes`` are kept beside it in ``reward.json``.

    The head is written last: a folder that a kill left unfinished is not taken for a value model.

    Raises:
        UserError: something else lies there, or it cannot be written.
        OSError: the disk is full.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: something lies there already; name another folder.")
    lm = model.lm
    told = {"causal": model.causal, "template": lm.template, "max_prompt_tokens": lm.max_prompt_tokens}
    with written("the value model", folder):
        merged(lm.model).to(lm.dtype).save_pretrained(folder, safe_serialization=True)
        lm.tokenizer.save_pretrained(folder)
        write_text(folder / NOTES, json.dumps({**told, "notes": dict(notes)}, indent=2))
        save_tensors(folder / HEAD, {name: tensor.float() for name, tensor in model.head.state_dict().items()})


def readable_rows(model: ValueModel, answers: Sequence[tuple[Prompt, str]], *, cut: bool) -> list[Row | None]:
    """``value_row`` of each; with ``cut`` the end of an answer that is too long is not read, else there is no row.

    Raises:
        UserError: a prompt is longer than the model can read.
    """
    lm, limit, found = model.lm, positions(model.lm), list[Row | None]()
    for prompt, answer in answers:
        asked, said = lm.prompt_ids(prompt, prompt.caption), lm.answer_ids(answer)
        room = len(said) if limit is None else limit - len(asked)
        if len(said) > room and cut and room > 1:
            said = [*said[: room - 1], said[-1]]  # the model reads its number at the end token
        found.append(Row(tuple(asked), tuple(said)) if len(said) <= room else None)
    return found


def value_row(model: ValueModel, prompt: Prompt, answer: str) -> Row:
    """The prompt's caption with its earlier turns, the answer, and its end, as tokens of the model's own.

    Raises:
        UserError: they are more than the model can read.
    """
    lm = model.lm
    row = Row(tuple(lm.prompt_ids(prompt, prompt.caption)), tuple(lm.answer_ids(answer)))
    tokens, limit = len(row.prompt) + len(row.answer), positions(lm)
    if limit is not None and tokens > limit:
        raise UserError(
            f"The prompt '{prompt.id}' and an answer to it are {tokens} tokens together, and '{lm.name}' can read "
            f"{limit}; leave it out, or shorten it."
        )
    return row


@torch.no_grad()
def score_rows(
    model: ValueModel, rows: Sequence[Row], *, batch_size: int, report: Report = silent
) -> Float[Tensor, " rows"]:
    """The reward of each row, float32 on the CPU; what stands beside a row in its batch changes nothing."""
    found = torch.zeros(len(rows))
    for places, batch in by_length(model, rows, batch_size, report):
        found[places] = model.rewards(batch).cpu()
    return found


def by_length(
    model: ValueModel, rows: Sequence[Row], batch_size: int, report: Report = silent
) -> Iterator[tuple[list[int], Batch]]:
    """The rows in batches, those of like length together so that there is little filling; each batch with its places
    among the ``rows``. What was done with is reported when the next batch is asked for."""
    order = sorted(range(len(rows)), key=lambda place: len(rows[place].prompt) + len(rows[place].answer))
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        yield places, collate([rows[place] for place in places], model.lm.pad)
        report(start + len(places), len(order))


def _fresh_head(lm: LM, seed: int) -> nn.Linear:
    """Weights from N(0, 1 / (width + 1)), bias 0, so that rewards begin about 0 and within a few units of it.

    Source: Stiennon et al. 2020, arXiv:2009.01325, appendix B.1.
    """
    head, width = _empty_head(_width(lm), lm), _width(lm)
    drawn = torch.randn(1, width, generator=torch.Generator().manual_seed(fold(seed, "value_head")))
    head.weight.data.copy_(drawn / (width + 1) ** 0.5)
    head.bias.data.zero_()
    return head


def _saved_head(lm: LM, folder: Path) -> nn.Linear:
    try:
        held = load_file(folder / HEAD)
        head = _empty_head(held["weight"].shape[1], lm)
        head.load_state_dict(held)
    except (SafetensorError, KeyError, IndexError, RuntimeError) as error:
        raise UserError(f"{folder / HEAD}: this is no head of a value model ({error}).") from None
    if head.in_features != _width(lm):
        raise UserError(
            f"{folder / HEAD}: this head reads {head.in_features} numbers and the model beside it gives {_width(lm)}; "
            "they do not belong together."
        )
    return head


def _width(lm: LM) -> int:
    """How many numbers a hidden state is."""
    written = lm.model.get_output_embeddings()
    return int(lm.model.config.hidden_size if written is None else written.weight.shape[1])


def _empty_head(width: int, lm: LM) -> nn.Linear:
    with torch.random.fork_rng(devices=[]):  # nobody else's draws are to depend on the weights that go at once
        return nn.Linear(width, 1, device=lm.device, dtype=torch.float32).requires_grad_(False)


def _notes(folder: Path) -> dict[str, Any]:
    """How the prompts were written for a saved model."""
    file = folder / NOTES
    try:
        told = read_json(file)
        return {"causal": bool(told["causal"]), **{name: told[name] for name in ("template", "max_prompt_tokens")}}
    except (UserError, OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{file}: this file says how the model reads, and is missing or broken; copy it again."
        ) from None


def positions(lm: LM) -> int | None:
    """The longest text that the model can read, in tokens; None where it does not say."""
    return None if lm.positions is None else lm.positions - first_position(lm.model.config)
