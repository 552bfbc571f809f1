"""Train review-lm, the language model to align: a small Llama with whole words for tokens.

    python -m raftdiff.embedded.reviews.train --minutes 16 --seed 0

Every batch is freshly drawn from the grammar, so nothing is seen twice but by chance; the loss is on the review and its
end, not on the prompt.
"""

import json
import math
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from raftdiff.embedded.reviews import world
from raftdiff.embedded.reviews.grammar import AGREEMENT, VALENCES
from raftdiff.embedded.training import (
    Average,
    arguments,
    half,
    load_checkpoint,
    prepare,
    rate,
    save_checkpoint,
    steps,
    update,
)
from raftdiff.seeds import fold

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
PAD, BOS, EOS, UNKNOWN = range(4)
LENGTH = 128
BATCH = 32
POOL = 32
"""Batches drawn at a time and cut by length, so that little of them is padding."""
PEAK_RATE = 3e-3
LESSON = 0.25
"""Share of a sitting, at its beginning, that is a lesson on mood: all opinion words agree with it, and `mood_loss`
counts. Without it the model long takes the opinion words of a review for independent."""
IGNORED = -100


def build_tokenizer(vocabulary: Sequence[str] | None = None) -> Any:
    """Words between spaces, those of the reviews unless told; ``<bos>`` in front, no ``<eos>``; padding on the left, as
    generation wants it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = {word: index for index, word in enumerate((*SPECIAL, *(vocabulary or world.vocabulary())))}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
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


def batches(seed: int, size: int = BATCH, agreement: float = AGREEMENT) -> Iterator[tuple[Tensor, Tensor]]:
    """(ids, labels) without end, each (batch, tokens) int64: prompts of the training split, one fresh review each."""
    generator = np.random.default_rng(fold(seed, "reviews"))
    prompts, index = world.training_prompts(), {word: i for i, word in enumerate((*SPECIAL, *world.vocabulary()))}
    while True:
        rows = []
        for number in generator.integers(len(prompts), size=size * POOL):
            prompt = prompts[number]
            texts = prompt.split(), world.sample(prompt, generator, agreement=agreement).split()
            rows.append(tuple([index[word] for word in text] for text in texts))
        rows.sort(key=lambda row: len(row[1]))
        for first in generator.permutation(POOL):
            yield collate(rows[size * first : size * (first + 1)])


def collate(rows: Sequence[tuple[list[int], ...]]) -> tuple[Tensor, Tensor]:
    """Prompts and reviews as tokens -> (ids, labels), padded on the right; labels are ignored on prompt and padding."""
    length = max(len(prompt) + len(review) for prompt, review in rows) + 2
    ids = torch.full((len(rows), length), PAD)
    labels = torch.full((len(rows), length), IGNORED)
    for row, (prompt, review) in enumerate(rows):
        text = torch.tensor([BOS, *prompt, *review, EOS])
        ids[row, : len(text)] = text
        labels[row, len(prompt) + 1 : len(text)] = text[len(prompt) + 1 :]
    return ids, labels


def loss(model: Any, ids: Tensor, labels: Tensor) -> Tensor:
    """Mean negative log-likelihood (nats) of the labelled tokens.

    No attention mask: padding stands on the right, where causal attention never looks.
    """
    return losses(model, None, ids, labels)


def losses(model: Any, head: nn.Linear | None, ids: Tensor, labels: Tensor) -> Tensor:
    """`loss`, and with a head `mood_loss` of what the model knows at each word of a review."""
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    logits, targets = model.lm_head(hidden), labels[:, 1:]
    found = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
    return found if head is None else found + mood_loss(head(hidden)[..., 0], ids, targets != IGNORED)


def mood_loss(guess: Tensor, ids: Tensor, said: Tensor) -> Tensor:
    """Cross-entropy (nats) of a guess at each word whether the review as a whole is good.

    That is the sign of the sum of its valences, degrees and negations left aside; reviews where it is 0 do not count. A
    linear head makes the guess and is thrown away afterwards.
    """
    signs = valences().to(ids.device)[ids].sum(dim=1).sign()
    weights = (said & (signs != 0)[:, None]).float()
    target = (signs > 0).float()[:, None].expand_as(guess)
    each = functional.binary_cross_entropy_with_logits(guess, target, reduction="none")
    return (each * weights).sum() / weights.sum().clamp(min=1)


@cache
def valences() -> Tensor:
    """The valence of each token, float32 (vocabulary,); 0 for what is no opinion."""
    return torch.tensor([VALENCES.get(word, 0.0) for word in (*SPECIAL, *world.vocabulary())])


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """The model and its tokenizer, as transformers reads them.

    The weights are stored in float16; the config asks for float32: faster on a CPU, and finer log-probabilities.
    """
    half(model.eval())
    model.save_pretrained(folder)
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(described | {"dtype": "float32"}, indent=2) + "\n")
    tokenizer.save_pretrained(folder)


def main() -> None:
    given = arguments(__doc__.splitlines()[0], minutes=16).parse_args()
    prepare(given.seed)
    tokenizer = build_tokenizer()
    model = build_model(len(tokenizer)).to(given.device)
    parts = {"lm": model.model}  # all there is: the head is the embedding, which would be stored twice
    average = Average(parts, decay=0.998)
    checkpoint = given.cache / "review-lm.safetensors"
    begun = load_checkpoint(checkpoint, parts, average)
    head = nn.Linear(model.config.hidden_size, 1).to(given.device)
    weights = [*model.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(weights, PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    pure, mixed = (batches(fold(given.seed, str(begun), str(share)), agreement=share) for share in (1.0, AGREEMENT))
    seen, turn = 0, (begun + LESSON * (given.minutes - begun)) / given.minutes
    for step, progress in steps(given.minutes, begun=begun):
        ids, labels = (tensor.to(given.device) for tensor in next(pure if progress < turn else mixed))
        found = losses(model, head if progress < turn else None, ids, labels)
        update(optimizer, found, rate(PEAK_RATE, progress, step), weights)
        average.update()
        seen += int((labels != IGNORED).sum())
        if step % 100 == 0:
            print(f"step {step} words {seen} loss {found.item():.4f} ppl {math.exp(found.item()):.3f}", flush=True)
        if step % 500 == 499:
            save_checkpoint(checkpoint, parts, average, given.minutes * progress)
    save_checkpoint(checkpoint, parts, average, given.minutes)
    average.copy_to(parts)
    save(model, tokenizer, given.out / "review-lm")


if __name__ == "__main__":
    main()
