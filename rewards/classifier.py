"""A sequence classifier of Hugging Face as a reward: a trained reward model, or any text classifier's label."""

import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, final

import torch
from jaxtyping import Float, Float32
from pydantic import Field

from raftdiff.chat.dialogue import cut, fill, messages, spoken
from raftdiff.chat.marks import Frame, added, chat_frame, guarded, without_end
from raftdiff.errors import Need, UserError, nearest
from raftdiff.recipes.config import RewardConfig, Said
from raftdiff.recipes.needs import demand, model_at
from raftdiff.training.tokenizers import check_tokenizer, longest, table_rows, within
from raftdiff.training.weights import demand_all, demand_finite, reading
from raftdiff.types import Sample

Form = Literal["template", "chat", "pair"]
Output = Literal["log_odds", "probability"]
Precision = Literal["float32", "bfloat16", "float16"]


class ClassifierConfig(RewardConfig):
    type: Literal["classifier"] = "classifier"
    name: str = "classifier"
    """The column of this reward in tables and logs."""
    weight: float = Field(default=1.0, allow_inf_nan=False)
    """Factor in the total reward."""
    model: str
    """Folder, Hugging Face id or embedded name of a model with a classification head, and its own tokenizer."""
    revision: str | None = None
    """Commit of the id; give one, so that the reward stays what it is."""
    label: str | None = None
    """Which label to reward; needed where the model has several."""
    output: Output = "log_odds"
    """log_odds is unbounded: for a model with one output its raw number. probability is 0 to 1."""
    form: Form = "template"
    """template fills 'template'; chat renders the conversation by the tokenizer's own chat template; pair gives prompt
    and answer as the two segments of an encoder."""
    template: str = "{prompt}\n{answer}"
    """{prompt} is the caption with the turns before it, {answer} the answer; "{answer}" alone for a classifier."""
    cut_at: list[Said] = Field(default_factory=list)
    """The answer is cut before the first of these, for example "Human:"."""
    append_eos: bool = False
    """End with the tokenizer's EOS token, for reward models that were trained to read it there."""
    max_tokens: int | None = Field(default=None, ge=8)
    """Longer texts are truncated to this; by default to what the model can read."""
    truncate: Literal["left", "right"] = "left"
    """Which side goes: left keeps the end of the answer, right the begin of the prompt."""
    dtype: Precision = "float32"
    """Precision of the weights; the halves are for GPUs, and move the score a little. The head stays float32."""
    batch_size: int = Field(default=16, ge=1)
    """Answers at a time; changes no score."""

    def needs(self, resolve: Callable[[str], str]) -> Iterator[Need]:
        """What is not on this machine; see ``recipes.needs``."""
        yield from model_at("model", resolve(self.model), where="It takes a folder or a hub id.")

    def build(self, *, device: str = "cpu", resolve: Callable[[str], str] = str) -> "ClassifierReward":
        model, tokenizer = load(resolve(self.model), revision=self.revision, dtype=self.dtype, device=device)
        return ClassifierReward(
            model,
            tokenizer,
            label=self.label,
            output=self.output,
            form=self.form,
            template=self.template,
            cut_at=self.cut_at,
            append_eos=self.append_eos,
            max_tokens=self.max_tokens,
            truncate=self.truncate,
            batch_size=self.batch_size,
            name=self.name,
        )


@final
class ClassifierReward:
    """What the classifier says of prompt and answer. Higher is better; ``log_odds`` unbounded, ``probability`` 0 to 1.

    With one output r (a Bradley-Terry reward model): r, or sigmoid(r). With several: log(p / (1 - p)) of the ``label``,
    or its p, by softmax, or by sigmoid where the model is a multi-label one. An answer without any token is NaN.

    Rows are padded on the right with a token that occurs in none of them. Decoders of transformers score the last token
    that is not their pad; where pad is also EOS, or is missing, they would read another place than the answer's end.
    Special tokens stand only where the template, the tokenizer or ``append_eos`` puts them: in prompt and answer they
    are text, and an end that an answer brings is left out: EOS, and for ``chat`` what the template ends a turn with.
    ``append_eos`` puts none where the template or the tokenizer has put one. Texts that are too long are truncated, and
    counted in a warning.

    Source: Christiano et al. 2017, Ouyang et al. 2022 for reward models. Licence: the model's own.

    Args:
        model: puts out logits of shape (batch, labels); becomes this reward's own, in evaluation mode.

    Raises:
        UserError: no such label, or none given where there are several; no chat template; a score that is not finite.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        label: str | None = None,
        output: Output = "log_odds",
        form: Form = "template",
        template: str = "{prompt}\n{answer}",
        cut_at: Sequence[str] = (),
        append_eos: bool = False,
        max_tokens: int | None = None,
        truncate: Literal["left", "right"] = "left",
        batch_size: int = 16,
        name: str = "classifier",
    ) -> None:
        self.name = name
        self._model, self._tokenizer = model.eval(), tokenizer
        self._column, self._output = _column(model.config, label, name), output
        self._form, self._template, self._cut_at = form, template, tuple(cut_at)
        self._eos = (tokenizer.eos_token, tokenizer.eos_token_id) if append_eos else None
        if append_eos and tokenizer.eos_token_id is None:
            raise UserError(f"The reward '{name}': the tokenizer has no EOS token to append; leave append_eos out.")
        if form == "chat" and not tokenizer.chat_template:
            raise UserError(f"The reward '{name}': the tokenizer has no chat template; use form: template.")
        tokens = added(tokenizer)
        frame = chat_frame(self._rendered, tokens) if form == "chat" else Frame()
        ends = {tokenizer.eos_token_id, frame.end}
        self._ends = [text for text, number in tokens.items() if number in ends]
        self._special = re.compile("|".join(map(re.escape, guarded(tokenizer, ends))) or r"(?!)")
        self._max_tokens = max_tokens or longest(tokenizer, model.config)
        self._truncate = tokenizer.truncation_side = truncate
        self._batch_size = batch_size
        model.config.get_text_config().use_cache = False

    def score(self, samples: Sequence[Sample[str]]) -> Float32[torch.Tensor, " samples"]:
        rows, long = [], 0
        for sample in samples:
            row, whole = self._encode(sample)
            rows.append(row)
            long += not whole
        if long:
            lost = {"left": "beginnings", "right": "ends"}[self._truncate]
            warnings.warn(
                f"The reward '{self.name}' reads {long} of {len(samples)} texts, prompt and answer, without their "
                f"{lost}: they are longer than max_tokens ({self._max_tokens}), by default what its model can read. "
                "Leave long prompts out (max_prompt_tokens of their data), or name a model that reads more.",
                stacklevel=2,
            )
        scores = torch.full((len(samples),), torch.nan)
        order = sorted(
            (at for at, row in enumerate(rows) if row["input_ids"]), key=lambda at: len(rows[at]["input_ids"])
        )
        for start in range(0, len(order), self._batch_size):
            batch = order[start : start + self._batch_size]
            scores[batch] = self._values(self._logits([rows[at] for at in batch]))
        bad = [at for at in order if not scores[at].isfinite()]
        if bad:
            raise UserError(
                f"The reward '{self.name}' gave {float(scores[bad[0]])} for an answer to prompt "
                f"'{samples[bad[0]].prompt.id}'; set its dtype to float32, or its output to log_odds."
            )
        return scores

    def _encode(self, sample: Sample[str]) -> tuple[dict[str, list[int]], bool]:
        """input_ids, and token_type_ids where the tokenizer makes them; and whether they are the whole text."""
        texts, most = self._texts(sample), self._max_tokens
        row = self._ids(texts, None)
        if most is None or len(row["input_ids"]) <= most:
            return self._known(sample, row), True
        row = self._ids(texts, most)
        if len(row["input_ids"]) > most:  # with the end that is appended
            row = self._ids(texts, most - 1)
        return self._known(sample, row), False

    def _texts(self, sample: Sample[str]) -> list[str]:
        """What the tokenizer reads: one text, or for a pair two."""
        answer = self._words(without_end(cut(sample.media, self._cut_at), self._ends)[0])
        history = [{**turn, "content": self._said(turn)} for turn in sample.prompt.meta.get("history") or ()]
        prompt = replace(sample.prompt, meta={**sample.prompt.meta, "history": history})
        if self._form == "chat":
            asked = [{**turn, "content": self._words(turn["content"])} for turn in messages(prompt)]
            texts = [self._rendered([*asked, {"role": "assistant", "content": answer}])]
        elif self._form == "pair":
            texts = [self._words(spoken(prompt)), answer]
        else:
            texts = [fill(self._template, {"prompt": self._words(spoken(prompt)), "answer": answer})]
        if self._eos and texts[-1].rstrip().endswith(self._eos[0]):  # the template's; the row is to end in it
            texts[-1] = texts[-1].rstrip()
        return texts

    def _said(self, turn: Mapping[str, str]) -> str:
        """An earlier answer is ended by the template alone."""
        return without_end(turn["content"], self._ends)[0] if turn["role"] == "assistant" else turn["content"]

    def _rendered(self, turns: Sequence[Mapping[str, str]], **options: bool) -> str:
        return str(self._tokenizer.apply_chat_template(list(turns), tokenize=False, **options))

    def _ids(self, texts: Sequence[str], most: int | None) -> dict[str, list[int]]:
        """The texts, truncated to ``most`` tokens, and an end behind them where one is asked for and none stands."""
        encoded = self._tokenizer(
            *texts,
            truncation=False if most is None else "longest_first",
            max_length=most,
            add_special_tokens=self._form != "chat",  # a chat template writes its own
            verbose=False,
        )
        row = {key: list(encoded[key]) for key in ("input_ids", "token_type_ids") if key in encoded}
        if self._eos and row["input_ids"][-1:] != [self._eos[1]]:
            row["input_ids"] += [self._eos[1]]
            if "token_type_ids" in row:
                row["token_type_ids"] += row["token_type_ids"][-1:] or [0]
        return row

    def _known(self, sample: Sample[str], row: dict[str, list[int]]) -> dict[str, list[int]]:
        within(f"An answer to '{sample.prompt.id}'", self._tokenizer, row["input_ids"], table_rows(self._model))
        return row

    def _words(self, text: str) -> str:
        """What people write is text: a space in it keeps ``[SEP]`` and its like from being the token."""
        return self._special.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)

    @torch.inference_mode()
    def _logits(self, rows: Sequence[dict[str, list[int]]]) -> Float[torch.Tensor, "batch labels"]:
        ids = [row["input_ids"] for row in rows]
        config = self._model.config.get_text_config()
        pad = _absent(ids, config.vocab_size)
        if pad is None and len(rows) > 1:
            return torch.cat([self._logits([row]) for row in rows])
        config.pad_token_id = pad  # None: a row alone ends at its last token
        width, device = max(map(len, ids)), self._model.device
        inputs = {
            "input_ids": _right(ids, width, pad or 0),
            "attention_mask": _right([[1] * len(row) for row in ids], width, 0),
        }
        if "token_type_ids" in rows[0]:
            inputs["token_type_ids"] = _right([row["token_type_ids"] for row in rows], width, 0)
        logits: torch.Tensor = self._model(**{key: value.to(device) for key, value in inputs.items()}).logits
        return logits.float().cpu()

    def _values(self, logits: Float[torch.Tensor, "batch labels"]) -> Float32[torch.Tensor, " batch"]:
        return values(
            logits,
            self._column,
            self._output,
            independent=self._model.config.problem_type == "multi_label_classification",
        )


def values(
    logits: Float[torch.Tensor, "batch labels"], column: int, output: Output, *, independent: bool = False
) -> Float32[torch.Tensor, " batch"]:
    """The log-odds or the probability of one label; ``independent`` labels have a sigmoid each.

    >>> values(torch.tensor([[0.0, 1.0, 1.0]]), 0, "log_odds")  # -log(2e)
    tensor([-1.6931])
    """
    chosen = logits[:, column]
    if logits.shape[1] > 1 and not independent:
        others = [label for label in range(logits.shape[1]) if label != column]
        chosen = chosen - logits[:, others].logsumexp(dim=1)
    return chosen.float() if output == "log_odds" else chosen.float().sigmoid()


def load(model: str, *, revision: str | None, dtype: Precision, device: str) -> tuple[Any, Any]:
    """The model and its tokenizer. Weights are read from safetensors only, and no code of the model's author is run.

    Raises:
        UserError: not there, not a classifier, or without a trained head.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    demand(f"The reward 'classifier' cannot load '{model}'", model_at("model", model))
    advice = "It takes a folder or an id with safetensors weights and a tokenizer."
    with reading(f"The reward 'classifier' cannot load '{model}'", advice):
        tokenizer = AutoTokenizer.from_pretrained(model, revision=revision)
        loaded, info = AutoModelForSequenceClassification.from_pretrained(
            model, revision=revision, dtype=getattr(torch, dtype), use_safetensors=True, output_loading_info=True
        )
    demand_all(f"'{model}' is no trained classifier", info["missing_keys"], info["unexpected_keys"])
    demand_finite(f"The classifier '{model}'", loaded)
    check_tokenizer(f"The classifier '{model}'", tokenizer, table_rows(loaded))
    if dtype != "float32":
        widen_head(loaded)
    return loaded.to(device), tokenizer


def widen_head(model: Any) -> None:
    """Let everything beside the model's body compute in float32: a bfloat16 score has three digits, so that answers
    tie which differ."""
    body = getattr(model, model.base_model_prefix, None)
    for part in model.children():
        if part is not body:
            part.float().register_forward_pre_hook(_widened)


def _widened(part: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    del part
    return tuple(one.float() if torch.is_tensor(one) and one.is_floating_point() else one for one in inputs)


def _column(config: Any, label: str | None, name: str) -> int:
    labels = {str(text): int(column) for column, text in config.id2label.items()}
    if label is None and config.num_labels == 1:
        return 0
    if label is None:
        raise UserError(
            f"The reward '{name}': this model has several labels; say which is wanted. {nearest('', labels)}"
        )
    if label not in labels:
        raise UserError(f"The reward '{name}': '{label}' is no label of this model. {nearest(label, labels)}")
    return labels[label]


def _absent(rows: Sequence[Sequence[int]], vocabulary: int) -> int | None:
    """The smallest token id that occurs in no row; None where every id does."""
    used = {token for row in rows for token in row}
    return next((token for token in range(vocabulary) if token not in used), None)


def _right(rows: Sequence[Sequence[int]], width: int, filler: int) -> torch.Tensor:
    return torch.tensor([[*row, *[filler] * (width - len(row))] for row in rows], dtype=torch.int64)
