"""The language model that translates: it loads as any other, knows both languages, and is careless."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from raftdiff import embedded
from raftdiff.embedded.language import BOS, EOS, IGNORED, PAD, SPECIAL, draw, load
from raftdiff.embedded.translation import world
from raftdiff.embedded.translation.measure import figures
from raftdiff.embedded.translation.train import batches, build_tokenizer

FOLDER = embedded.folder("translate-lm")


@pytest.fixture(scope="module")
def lm() -> tuple[Any, Any]:
    return load(FOLDER)


def held_out(count: int) -> list[str]:
    generator = np.random.default_rng(5)
    return [world.source(world.draw(generator, apart=True)) for _ in range(count)]


def test_the_folder_is_small_and_says_what_it_is() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 2.5 * 2**20
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\n")
    assert all(word in card for word in ("apache-2.0", "--seed", "2 CPU cores", "held out"))
    with safe_open(FOLDER / "model.safetensors", framework="pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"F16"}  # noqa: SIM118


def test_its_words_are_those_of_both_languages(lm: tuple[Any, Any]) -> None:
    model, tokenizer = lm
    words = tokenizer.get_vocab()
    assert sorted(words, key=lambda word: words[word]) == [*SPECIAL, *world.vocabulary()]
    assert model.dtype == torch.float32
    config = model.config
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (PAD, BOS, EOS)
    assert config.vocab_size == len(tokenizer) == len(words)
    assert config.max_position_embeddings == tokenizer.model_max_length == 128


def test_it_translates_sources_that_it_never_saw_fluently_and_mostly_what_they_say(lm: tuple[Any, Any]) -> None:
    prompts = held_out(48)
    found = figures(prompts, draw(*lm, prompts, seed=0))
    assert found["faithfulness"] > 0.6
    assert found["fluent"] > 0.6
    assert found["adequate"] < 0.6, "careless"
    assert found["elegance"] < 0.4, "rarely fine"


# --- how it is made


def test_batches_hold_sources_that_are_not_held_out_and_in_the_lesson_right_translations_of_one_clause() -> None:
    tokenizer = build_tokenizer()
    for lesson in (False, True):
        pairs = []
        for ids, labels in itertools.islice(batches(3, size=4, lesson=lesson), 8):
            for row, targets in zip(ids, labels, strict=True):
                said = tokenizer.decode(targets[targets != IGNORED], skip_special_tokens=True)
                prompt = tokenizer.decode(row[targets == IGNORED], skip_special_tokens=True)
                assert not any(world.held_out(clause) for clause in world.meaning(prompt))
                pairs.append((prompt, said))
        right = np.mean([world.adequate(*pair) and world.fluent(pair[1]) for pair in pairs])
        assert right == 1 if lesson else 0.05 < right < 0.6
        assert ({len(world.meaning(prompt)) for prompt, _ in pairs} == {1}) is lesson


def test_the_figures_of_right_translations_are_full() -> None:
    prompts = held_out(8)
    fine, plain = ([world.references(prompt)[place] for prompt in prompts] for place in (0, 1))
    names = ("adequate", "faithfulness", "fluent", "elegance", "quality")
    assert [figures(prompts, fine)[name] for name in names] == [1, 1, 1, 1, 1]
    assert [figures(prompts, plain)[name] for name in names] == [1, 1, 1, 0, 0.5]
