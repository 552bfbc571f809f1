"""How the small language models learn: a lesson, then the rest, on from where an earlier sitting ended."""

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from raftdiff.embedded import language
from raftdiff.embedded.language import IGNORED, Batch, Row, build_model, fit, load, pooled, word_tokenizer

WORDS = ("is", "it", "so", "yes", "no")


def test_batches_of_a_pool_hold_what_is_alike_in_length_in_an_order_of_their_own() -> None:
    lengths = itertools.cycle(range(1, 2 * language.POOL + 1))

    def draw() -> Row:
        return [4], [5] * next(lengths)

    found = [labels for _, labels in itertools.islice(pooled(draw, lambda pool: range(pool)[::-1], 2), language.POOL)]
    said = [(labels != IGNORED).sum(dim=1).tolist() for labels in found]  # the end counts
    assert said == [[length, length + 1] for length in range(2 * language.POOL, 0, -2)]


@pytest.fixture
def sitting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    def eight(minutes: float, *, begun: float) -> Iterator[tuple[int, float]]:
        for step in range(8):
            yield step, (begun + (minutes - begun) * step / 8) / minutes

    monkeypatch.setattr(language, "steps", eight)
    return argparse.Namespace(minutes=1.0, device="cpu", cache=tmp_path / "cache", out=tmp_path)


def test_a_sitting_begins_with_its_lesson_and_goes_on_from_the_one_before(sitting: argparse.Namespace) -> None:
    torch.manual_seed(0)
    tokenizer = word_tokenizer(WORDS)
    model, head = build_model(len(tokenizer), width=48, layers=1), nn.Linear(1, 1)
    asked: list[tuple[float, bool]] = []
    taken: list[str] = []

    def drawn(begun: float, lesson: bool) -> Iterator[Batch]:
        asked.append((begun, lesson))
        while True:
            taken.append("lesson" if lesson else "rest")
            yield language.collate([([4, 5], [7])])

    def measured(ids: Tensor, labels: Tensor) -> Tensor:
        taken.append("measured")
        return language.loss(model, ids, labels) + head(torch.ones(1))[0] ** 2

    before = head.bias.item()
    how = {"lesson": 0.25, "measured": measured, "aside": [*head.parameters()]}
    fit(sitting, "tiny", model, tokenizer, drawn, **how)  # type: ignore[arg-type]
    assert taken == ["lesson", "measured"] * 2 + ["rest"] * 6
    assert head.bias.item() != before
    assert {path.name for path in (sitting.out / "tiny").iterdir()} >= {"model.safetensors", "tokenizer.json"}
    stored, _ = load(sitting.out / "tiny")
    sitting.minutes, again = 2.0, build_model(len(tokenizer), width=48, layers=1)
    fit(sitting, "tiny", again, tokenizer, drawn, lesson=0.25)
    assert asked == [(0.0, True), (0.0, False), (1.0, True), (1.0, False)]
    taught = [language.loss(one.float(), *language.collate([([4, 5], [7])])).item() for one in (stored, again)]
    assert taught[1] < taught[0] < 2.3  # 2.6 before
