"""Train code-lm, the language model to align in the world of programs: a small Llama that writes Python as a beginner.

    python -m raftdiff.embedded.programs.train --minutes 30 --seed 0

Every batch is freshly drawn: tasks that are not held out, each with a program of ``world.beginner``, right or wrong,
after a lesson of right ones, which teaches soonest what a task's words stand for. The loss is on the program and its
end, not on the task.
"""

import re
from collections.abc import Callable, Iterator
from functools import cache
from random import Random
from typing import Any

from raftdiff.embedded import language
from raftdiff.embedded.language import BATCH, Batch, Row
from raftdiff.embedded.programs import world
from raftdiff.embedded.training import arguments, prepare
from raftdiff.seeds import fold

PIECE = r"\n *| ?[A-Za-z]+| ?(?:==|//|>=)| ?[0-9]| ?[^\sA-Za-z0-9]| "
"""What a token is: a line's beginning with its indentation, a word, a digit or a sign with the space before it."""
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
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    inner = Tokenizer(models.WordLevel(language.numbered(vocabulary()), unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(PIECE), "isolated")
    inner.decoder = decoders.Fuse()
    return language.wrapped(inner)


def batches(seed: int, write: Callable[[world.Task, Random], str], size: int = BATCH) -> Iterator[Batch]:
    """Tasks of the training split with the program that is written for each."""
    generator, number = Random(fold(seed, "programs")), language.numbered(vocabulary())

    def draw() -> Row:
        task = world.drawn(generator, out=False)
        texts = world.prompt(task), write(task, generator)
        return tuple([number[piece] for piece in re.findall(PIECE, text)] for text in texts)

    return language.pooled(draw, lambda pool: generator.sample(range(pool), pool), size)


def main() -> None:
    given = arguments(__doc__.splitlines()[0], minutes=30).parse_args()
    prepare(given.seed)
    tokenizer = build_tokenizer()
    model = language.build_model(len(tokenizer), width=WIDTH, layers=LAYERS, head=HEAD).to(given.device)

    def drawn(begun: float, lesson: bool) -> Iterator[Batch]:
        if lesson:
            return batches(fold(given.seed, str(begun), "right"), lambda task, _: world.solution(task))
        return batches(fold(given.seed, str(begun)), world.beginner)

    language.fit(given, "code-lm", model, tokenizer, drawn, lesson=LESSON)


if __name__ == "__main__":
    main()
