"""Train review-lm, the language model to align: a small Llama with whole words for tokens.

    python -m raftdiff.embedded.reviews.train --minutes 16 --seed 0

Every batch is freshly drawn from the grammar, so nothing is seen twice but by chance.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from raftdiff.embedded import language
from raftdiff.embedded.language import BATCH, IGNORED, SPECIAL, Batch, Row
from raftdiff.embedded.reviews import world
from raftdiff.embedded.reviews.grammar import AGREEMENT, VALENCES
from raftdiff.embedded.training import arguments, prepare
from raftdiff.seeds import fold

LESSON = 0.25
"""Share of a sitting, at its beginning, that is a lesson on mood: all opinion words agree with it, and `mood_loss`
counts. Without it the model long takes the opinion words of a review for independent."""
WARMUP = 200
"""Steps over which the learning rate first rises."""


def build_tokenizer() -> Any:
    """The words of the reviews."""
    return language.word_tokenizer(world.vocabulary())


def batches(seed: int, size: int = BATCH, agreement: float = AGREEMENT) -> Iterator[Batch]:
    """Prompts of the training split, one fresh review each."""
    generator = np.random.default_rng(fold(seed, "reviews"))
    prompts, number = world.training_prompts(), language.numbered(world.vocabulary())

    def draw() -> Row:
        prompt = prompts[int(generator.integers(len(prompts)))]
        texts = prompt.split(), world.sample(prompt, generator, agreement=agreement).split()
        return tuple([number[word] for word in text] for text in texts)

    return language.pooled(draw, generator.permutation, size)


def losses(model: Any, head: nn.Linear, ids: Tensor, labels: Tensor) -> Tensor:
    """The loss of a language model, and `mood_loss` of what it knows at each word of a review."""
    hidden, found = language.hidden_and_loss(model, ids, labels)
    return found + mood_loss(head(hidden)[..., 0], ids, labels[:, 1:] != IGNORED)


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


def main() -> None:
    given = arguments(__doc__.splitlines()[0], minutes=16).parse_args()
    prepare(given.seed)
    tokenizer = build_tokenizer()
    model = language.build_model(len(tokenizer)).to(given.device)
    head = nn.Linear(model.config.hidden_size, 1).to(given.device)

    def drawn(begun: float, lesson: bool) -> Iterator[Batch]:
        share = 1.0 if lesson else AGREEMENT
        return batches(fold(given.seed, str(begun), str(share)), agreement=share)

    language.fit(
        given,
        "review-lm",
        model,
        tokenizer,
        drawn,
        lesson=LESSON,
        warmup=WARMUP,
        measured=lambda ids, labels: losses(model, head, ids, labels),
        aside=[*head.parameters()],
    )


if __name__ == "__main__":
    main()
