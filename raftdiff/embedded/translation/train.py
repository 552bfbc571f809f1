"""Train translate-lm, the language model that translates: a small Llama with whole words for tokens.

    python -m raftdiff.embedded.translation.train --minutes 12 --seed 0

Every batch is freshly drawn: sources that are not held out, each with one careless translation. So the model knows both
languages and translates, but leaves out, mistakes, and rarely says things finely.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from raftdiff.embedded.reviews.train import (
    IGNORED,
    PEAK_RATE,
    POOL,
    SPECIAL,
    build_model,
    build_tokenizer,
    collate,
    loss,
    save,
)
from raftdiff.embedded.training import (
    Average,
    arguments,
    load_checkpoint,
    prepare,
    rate,
    save_checkpoint,
    steps,
    update,
)
from raftdiff.embedded.translation import world
from raftdiff.embedded.translation.careless import careless, spoken
from raftdiff.embedded.translation.world import Choice
from raftdiff.seeds import fold

BATCH = 32
WIDTH = 96
LESSON = 0.4
"""Share of the training, at its beginning, that is a lesson on words: sources of one clause, each with a right
translation and every choice at random. Alignment is learnt several times sooner from these."""
_EVENLY: dict[Choice, float] = {"register": 0.5, "order": 0.5, "pronoun": 0.5}


def batches(seed: int, size: int = BATCH, *, lesson: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
    """(ids, labels) without end, each (batch, tokens) int64: sources of the training, one careless translation each; in
    the lesson sources of one clause and right translations."""
    generator = np.random.default_rng(fold(seed, "translations"))
    index = {word: i for i, word in enumerate((*SPECIAL, *world.vocabulary()))}
    while True:
        rows = []
        for _ in range(size * POOL):
            meant = world.draw(generator, most=1 if lesson else 3)
            said = spoken(meant, generator, fine=_EVENLY, slips=0.0) if lesson else careless(meant, generator)
            texts = world.source(meant).split(), said.split()
            rows.append(tuple([index[word] for word in text] for text in texts))
        rows.sort(key=lambda row: len(row[0]) + len(row[1]))
        for first in generator.permutation(POOL):
            yield collate(rows[size * first : size * (first + 1)])


def main() -> None:
    given = arguments(__doc__.splitlines()[0], minutes=12).parse_args()
    prepare(given.seed)
    tokenizer = build_tokenizer(world.vocabulary())
    model = build_model(len(tokenizer), width=WIDTH).to(given.device)
    parts = {"lm": model.model}  # all there is: the head is the embedding, which would be stored twice
    average = Average(parts, decay=0.998)
    checkpoint = given.cache / "translate-lm.safetensors"
    begun = load_checkpoint(checkpoint, parts, average)
    weights = [*model.parameters()]
    optimizer = torch.optim.AdamW(weights, PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    pure, mixed = (batches(fold(given.seed, f"{begun} {lesson}"), lesson=lesson) for lesson in (True, False))
    for step, progress in steps(given.minutes, begun=begun):
        ids, labels = (tensor.to(given.device) for tensor in next(pure if progress < LESSON else mixed))
        found = loss(model, ids, labels)
        update(optimizer, found, rate(PEAK_RATE, progress, step, warmup=50), weights)
        average.update()
        if step % 100 == 0:
            words = int((labels != IGNORED).sum())
            print(f"step {step} loss {found.item():.4f} nats a word, {words} words in the batch", flush=True)
        if step % 500 == 499:
            save_checkpoint(checkpoint, parts, average, given.minutes * progress)
    save_checkpoint(checkpoint, parts, average, given.minutes)
    average.copy_to(parts)
    save(model, tokenizer, given.out / "translate-lm")


if __name__ == "__main__":
    main()
