"""How the small language models that ship are built, taught and stored: review-lm, translate-lm, code-lm.

What each of them learns from is said in its world's ``train``. The loss is on an answer and its end, not on the prompt.
"""

import argparse
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from raftdiff.embedded.training import Average, half, load_checkpoint, rate, save_checkpoint, steps, update

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
PAD, BOS, EOS, UNKNOWN = range(4)
LENGTH = 128
BATCH = 32
POOL = 32
"""Batches drawn at a time and cut by length, so that little of them is padding."""
PEAK_RATE = 3e-3
IGNORED = -100
_AT_ONCE = 64

Row: TypeAlias = tuple[list[int], ...]
"""A prompt and an answer, in tokens."""
Batch: TypeAlias = tuple[Tensor, Tensor]
"""(ids, labels), each (batch, tokens) int64."""


def word_tokenizer(vocabulary: Sequence[str]) -> Any:
    """Words between spaces; ``<bos>`` in front, no ``<eos>``; padding on the left, as generation wants it."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    inner = Tokenizer(models.WordLevel(numbered(vocabulary), unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return wrapped(inner)


def numbered(vocabulary: Sequence[str]) -> dict[str, int]:
    """The number of each token, the special ones first."""
    return {token: number for number, token in enumerate((*SPECIAL, *vocabulary))}


def wrapped(inner: Any) -> Any:
    """A tokenizer as transformers takes it: ``<bos>`` in front, no ``<eos>``, padding on the left."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    inner.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", BOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        model_max_length=LENGTH,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def build_model(vocabulary: int, *, width: int = 144, layers: int = 4, head: int = 48) -> Any:
    """A Llama with random weights; ``head`` is the width of one of attention's heads."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=8 * width // 3,
        num_hidden_layers=layers,
        num_attention_heads=width // head,
        num_key_value_heads=width // head,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    return LlamaForCausalLM(config)


# --- what it learns from


def pooled(draw: Callable[[], Row], order: Callable[[int], Iterable[int]], size: int = BATCH) -> Iterator[Batch]:
    """Batches without end of rows that are freshly drawn: sorted by length over `POOL` batches, which come in an order
    of its own each time."""
    while True:
        rows = sorted((draw() for _ in range(size * POOL)), key=lambda row: sum(map(len, row)))
        for first in order(POOL):
            yield collate(rows[size * first : size * (first + 1)])


def collate(rows: Sequence[Row]) -> Batch:
    """Prompts and answers as tokens -> (ids, labels), padded on the right; labels are ignored on prompt and padding."""
    length = max(len(prompt) + len(answer) for prompt, answer in rows) + 2
    ids = torch.full((len(rows), length), PAD)
    labels = torch.full((len(rows), length), IGNORED)
    for row, (prompt, answer) in enumerate(rows):
        text = torch.tensor([BOS, *prompt, *answer, EOS])
        ids[row, : len(text)] = text
        labels[row, len(prompt) + 1 : len(text)] = text[len(prompt) + 1 :]
    return ids, labels


def loss(model: Any, ids: Tensor, labels: Tensor) -> Tensor:
    """Mean negative log-likelihood (nats) of the labelled tokens.

    No attention mask: padding stands on the right, where causal attention never looks.
    """
    return hidden_and_loss(model, ids, labels)[1]


def hidden_and_loss(model: Any, ids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """What the model knows at each token but the last, (batch, tokens - 1, width), and `loss`."""
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    logits, targets = model.lm_head(hidden), labels[:, 1:]
    return hidden, functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)


# --- how


def fit(
    given: argparse.Namespace,
    name: str,
    model: Any,
    tokenizer: Any,
    batches: Callable[[float, bool], Iterator[Batch]],
    *,
    lesson: float,
    warmup: int = 50,
    measured: Callable[[Tensor, Tensor], Tensor] | None = None,
    aside: Sequence[nn.Parameter] = (),
) -> None:
    """A sitting of ``given.minutes`` in all, on from the checkpoint where there is one; stores the weights' average.

    ``batches(begun, True)`` are those of a lesson, the share ``lesson`` of the sitting at its beginning, and
    ``batches(begun, False)`` those of the rest, where ``begun`` is the minutes that were spent before. The learning
    rate first rises for ``warmup`` steps. ``measured`` is the loss of the lesson where it is another, ``aside`` what
    learns with it and is thrown away afterwards.
    """
    parts = {"lm": model.model}  # all there is: the head is the embedding, which would be stored twice
    average = Average(parts, decay=0.998)
    checkpoint = given.cache / f"{name}.safetensors"
    begun = load_checkpoint(checkpoint, parts, average)
    weights = [*model.parameters(), *aside]
    optimizer = torch.optim.AdamW(weights, PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    taught, rest = batches(begun, True), batches(begun, False)
    seen, turn = 0, (begun + lesson * (given.minutes - begun)) / given.minutes
    for step, progress in steps(given.minutes, begun=begun):
        first = progress < turn
        ids, labels = (tensor.to(given.device) for tensor in next(taught if first else rest))
        found = measured(ids, labels) if measured and first else loss(model, ids, labels)
        update(optimizer, found, rate(PEAK_RATE, progress, step, warmup=warmup), weights)
        average.update()
        seen += int((labels != IGNORED).sum())
        if step % 100 == 0:
            print(f"step {step} tokens {seen} loss {found.item():.4f} ppl {math.exp(found.item()):.3f}", flush=True)
        if step % 500 == 499:
            save_checkpoint(checkpoint, parts, average, given.minutes * progress)
    save_checkpoint(checkpoint, parts, average, given.minutes)
    average.copy_to(parts)
    save(model, tokenizer, given.out / name)


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """The model and its tokenizer, as transformers reads them.

    The weights are stored in float16; the config asks for float32: faster on a CPU, and finer log-probabilities.
    """
    half(model.eval())
    model.save_pretrained(folder)
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(described | {"dtype": "float32"}, indent=2) + "\n")
    tokenizer.save_pretrained(folder)


# --- asked


def load(folder: Path) -> tuple[Any, Any]:
    """(model, tokenizer), the model in float32 and in evaluation mode."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder)


@torch.no_grad()
def draw(model: Any, tokenizer: Any, prompts: Sequence[str], *, seed: int, greedy: bool = False) -> list[str]:
    """One answer to each prompt, at temperature 1 without any truncation, or greedy."""
    torch.manual_seed(seed)
    texts: list[str] = []
    for first in range(0, len(prompts), _AT_ONCE):
        given = tokenizer(list(prompts[first : first + _AT_ONCE]), return_tensors="pt", padding=True)
        length = given["input_ids"].shape[1]
        chosen = {"do_sample": False} if greedy else {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
        out = model.generate(**given, max_new_tokens=LENGTH - length, **chosen)
        texts += tokenizer.batch_decode(out[:, length:], skip_special_tokens=True)
    return texts


@torch.no_grad()
def log_probabilities(model: Any, tokenizer: Any, prompts: Sequence[str], texts: Sequence[str]) -> Tensor:
    """Natural log of the model's probability of each text, its end included, float32 (texts,)."""
    found = []
    for first in range(0, len(texts), _AT_ONCE):
        pairs = zip(prompts[first : first + _AT_ONCE], texts[first : first + _AT_ONCE], strict=True)
        rows = [tuple(tokenizer(part, add_special_tokens=False)["input_ids"] for part in pair) for pair in pairs]
        ids, labels = collate(rows)
        log_probs = model(input_ids=ids, use_cache=False).logits[:, :-1].log_softmax(dim=-1)
        targets = labels[:, 1:]
        taken = log_probs.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
        found.append((taken * (targets != IGNORED)).sum(dim=1))
    return torch.cat(found)
