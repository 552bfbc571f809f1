"""Train translate-lm, the language model that translates: a small Llama with whole words for tokens.

    python -m raftdiff.embedded.translation.train --minutes 12 --seed 0

Every batch is freshly drawn: sources that are not held out, each with one careless translation. So the model knows both
languages and translates, but leaves out, mistakes, and rarely says things finely.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from raftdiff.embedded import language
from raftdiff.embedded.language import BATCH, Batch, Row
from raftdiff.embedded.training import arguments, prepare
from raftdiff.embedded.translation import world
from raftdiff.embedded.translation.careless import careless, spoken
from raftdiff.embedded.translation.world import Choice
from raftdiff.seeds import fold

WIDTH = 96
LESSON = 0.4
"""Share of a sitting, at its beginning, that is a lesson on words: sources of one clause, each with a right translation
and every choice at random. Alignment is learnt several times sooner from these."""
_EVENLY: dict[Choice, float] = {"register": 0.5, "order": 0.5, "pronoun": 0.5}


def build_tokenizer() -> Any:
    """The words of both languages."""
    return language.word_tokenizer(world.vocabulary())


def batches(seed: int, size: int = BATCH, *, lesson: bool = False) -> Iterator[Batch]:
    """Sources of the training, one careless translation each; in the lesson sources of one clause and right
    translations."""
    generator = np.random.default_rng(fold(seed, "translations"))
    number = language.numbered(world.vocabulary())

    def draw() -> Row:
        meant = world.draw(generator, most=1 if lesson else 3)
        said = spoken(meant, generator, fine=_EVENLY, slips=0.0) if lesson else careless(meant, generator)
        texts = world.source(meant).split(), said.split()
        return tuple([number[word] for word in text] for text in texts)

    return language.pooled(draw, generator.permutation, size)


def main() -> None:
    given = arguments(__doc__.splitlines()[0], minutes=12).parse_args()
    prepare(given.seed)
    tokenizer = build_tokenizer()
    model = language.build_model(len(tokenizer), width=WIDTH).to(given.device)

    def drawn(begun: float, lesson: bool) -> Iterator[Batch]:
        return batches(fold(given.seed, f"{begun} {lesson}"), lesson=lesson)

    language.fit(given, "translate-lm", model, tokenizer, drawn, lesson=LESSON)


if __name__ == "__main__":
    main()
