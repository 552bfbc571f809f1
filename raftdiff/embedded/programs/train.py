"""Train code-lm, the language model to align in the world of programs: a small Llama that writes Python as a beginner.

    python -m raftdiff.embedded.programs.train --minutes 30 --seed 0

Every batch is freshly drawn: tasks that are not held out, each with a program of ``world.beginner``, right or wrong,
after a lesson of right ones, which teaches soonest what a task's words stand for. The loss is on the program and its
end, not on the task.
"""

import math
import re
from collections.abc import Callable, Iterator
from functools import cache
from random import Random
from typing import Any

import torch
from torch import Tensor

from raftdiff.embedded.programs import world
from raftdiff.embedded.reviews.train import BOS, IGNORED, LENGTH, SPECIAL, build_model, collate, loss, save
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
from raftdiff.seeds import fold

PIECE = r"\n *| ?[A-Za-z]+| ?(?:==|//|>=)| ?[0-9]| ?[^\sA-Za-z0-9]| "
"""What a token is: a line's beginning with its indentation, a word, a digit or a sign with the space before it."""
BATCH, POOL = 32, 32
PEAK_RATE = 3e-3
LESSON = 0.25
"""Share of a sitting, at its beginning, in which all programs are right."""
WIDTH, LAYERS, HEAD = 64, 3, 32
SEEN = 6000
"""Tasks of which the vocabulary is collected; more than enough for all of its words."""


@cache
def vocabulary() -> tuple[str, ...]:
    """Every token of tasks and programs, sorted."""
    generator, found = Random(0), {*(f" {digit}" for digit in range(10))}
    for _ in range(SEEN):
        task = world.draw(generator)
        for text in (world.prompt(task), world.solution(task), world.beginner(task, generator)):
            found.update(re.findall(PIECE, text))
    return tuple(sorted(found))


def build_tokenizer() -> Any:
    """Pieces that make up the text again, to the letter; ``<bos>`` in front, no ``<eos>``; padding on the left."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pieces = {piece: index for index, piece in enumerate((*SPECIAL, *vocabulary()))}
    inner = Tokenizer(models.WordLevel(pieces, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(PIECE), "isolated")
    inner.decoder = decoders.Fuse()
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


def batches(
    seed: int, write: Callable[[world.Task, Random], str], size: int = BATCH
) -> Iterator[tuple[Tensor, Tensor]]:
    """(ids, labels) without end, each (batch, tokens) int64: tasks of the training split with the program that is
    written for each."""
    generator = Random(fold(seed, "programs"))
    index = {piece: i for i, piece in enumerate((*SPECIAL, *vocabulary()))}
    while True:
        drawn = [world.drawn(generator, out=False) for _ in range(size * POOL)]
        texts = [(world.prompt(task), write(task, generator)) for task in drawn]
        rows = [tuple([index[piece] for piece in re.findall(PIECE, text)] for text in pair) for pair in texts]
        rows.sort(key=lambda row: len(row[0]) + len(row[1]))  # little of a batch is padding
        for first in generator.sample(range(POOL), POOL):
            yield collate(rows[size * first : size * (first + 1)])


def main() -> None:
    given = arguments(__doc__.splitlines()[0], minutes=30).parse_args()
    prepare(given.seed)
    tokenizer = build_tokenizer()
    model = build_model(len(tokenizer), width=WIDTH, layers=LAYERS, head=HEAD).to(given.device)
    parts = {"lm": model.model}  # all there is: the head is the embedding, which would be stored twice
    average = Average(parts, decay=0.998)
    checkpoint = given.cache / "code-lm.safetensors"
    begun = load_checkpoint(checkpoint, parts, average)
    weights = list(model.parameters())
    optimizer = torch.optim.AdamW(weights, PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    lesson = batches(fold(given.seed, str(begun), "right"), lambda task, _: world.solution(task))
    beginners = batches(fold(given.seed, str(begun)), world.beginner)
    seen, turn = 0, (begun + LESSON * (given.minutes - begun)) / given.minutes
    for step, progress in steps(given.minutes, begun=begun):
        ids, labels = (tensor.to(given.device) for tensor in next(lesson if progress < turn else beginners))
        found = loss(model, ids, labels)
        update(optimizer, found, rate(PEAK_RATE, progress, step, warmup=50), weights)
        average.update()
        seen += int((labels != IGNORED).sum())
        if step % 100 == 0:
            print(f"step {step} tokens {seen} loss {found.item():.4f} ppl {math.exp(found.item()):.3f}", flush=True)
        if step % 500 == 499:
            save_checkpoint(checkpoint, parts, average, given.minutes * progress)
    save_checkpoint(checkpoint, parts, average, given.minutes)
    average.copy_to(parts)
    save(model, tokenizer, given.out / "code-lm")


if __name__ == "__main__":
    main()
