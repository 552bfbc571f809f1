"""The language model that ships: it loads as any other, it parses, and its probabilities are near the true ones."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from raftdiff import embedded
from raftdiff.embedded.language import (
    BOS,
    EOS,
    IGNORED,
    PAD,
    SPECIAL,
    build_model,
    collate,
    draw,
    load,
    log_probabilities,
    loss,
    save,
)
from raftdiff.embedded.reviews import world
from raftdiff.embedded.reviews.grammar import NEGATIONS, VALENCES
from raftdiff.embedded.reviews.measure import figures
from raftdiff.embedded.reviews.train import batches, build_tokenizer, losses, mood_loss

PROMPT = "western about pirates :"


@pytest.fixture(scope="module")
def lm() -> tuple[Any, Any]:
    return load(embedded.folder("review-lm"))


@pytest.fixture(scope="module")
def tiny() -> Any:
    torch.manual_seed(0)
    return build_model(len(build_tokenizer()), width=48, layers=1).eval()


def true_reviews(prompts: list[str]) -> list[str]:
    generator = np.random.default_rng(0)
    return [world.sample(prompt, generator) for prompt in prompts]


# --- what ships


def test_the_folder_is_small_and_says_what_it_is() -> None:
    folder = embedded.folder("review-lm")
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 6 * 2**20
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\n")
    assert all(word in card for word in ("apache-2.0", "--seed", "2 CPU cores", "reviews_held_out.txt"))
    assert "/work" not in card


def test_it_is_a_small_llama_that_loads_in_float32_without_being_told() -> None:
    from transformers import AutoModelForCausalLM, LlamaForCausalLM

    model = AutoModelForCausalLM.from_pretrained(embedded.folder("review-lm"))
    assert isinstance(model, LlamaForCausalLM)
    assert model.dtype == torch.float32
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert 1e6 <= model.num_parameters() <= 3e6
    assert model.config.max_position_embeddings == 128
    with safe_open(embedded.folder("review-lm") / "model.safetensors", framework="pt") as file:
        names = list(file.keys())
        assert {file.get_slice(name).get_dtype() for name in names} == {"F16"}


def test_its_words_are_the_grammars(lm: tuple[Any, Any]) -> None:
    model, tokenizer = lm
    words = tokenizer.get_vocab()
    assert sorted(words, key=lambda word: words[word]) == [*SPECIAL, *world.vocabulary()]
    assert words == build_tokenizer().get_vocab()
    assert model.config.vocab_size == len(tokenizer) == len(words)
    assert (model.config.pad_token_id, model.config.bos_token_id, model.config.eos_token_id) == (PAD, BOS, EOS)
    assert model.generation_config.eos_token_id == EOS
    assert model.generation_config.pad_token_id == PAD


def test_a_prompt_begins_with_bos_and_does_not_end_with_eos(lm: tuple[Any, Any]) -> None:
    tokenizer = lm[1]
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (PAD, BOS, EOS)
    ids = tokenizer(PROMPT)["input_ids"]
    assert ids[0] == BOS
    assert tokenizer.convert_ids_to_tokens(ids[1:]) == PROMPT.split()
    assert set(tokenizer(PROMPT)) == {"input_ids", "attention_mask"}
    assert tokenizer("pirates qwerty", add_special_tokens=False)["input_ids"][1] == tokenizer.unk_token_id


def test_decoding_gives_the_review_back_to_the_letter(lm: tuple[Any, Any]) -> None:
    tokenizer = lm[1]
    for review in true_reviews(world.prompts()):
        ids = [*tokenizer(review, add_special_tokens=False)["input_ids"], EOS, PAD]
        assert tokenizer.decode(ids, skip_special_tokens=True) == review


def test_prompts_of_unlike_length_are_padded_on_the_left(lm: tuple[Any, Any]) -> None:
    given = lm[1]([PROMPT, "western"], padding=True)
    assert given["input_ids"][1][:3] == [PAD] * 3
    assert given["attention_mask"][1] == [0, 0, 0, 1, 1]


@pytest.mark.parametrize("split", ["training", "held out"])
def test_what_it_says_parses(lm: tuple[Any, Any], split: str) -> None:
    prompts = world.training_prompts()[::3] if split == "training" else world.held_out_prompts()
    prompts = (prompts * 2)[:64]
    texts = draw(*lm, prompts, seed=1)
    assert np.mean([world.fluent(*pair) for pair in zip(prompts, texts, strict=True)]) >= 0.9
    assert len(set(texts)) > 60
    greedy = draw(*lm, prompts[:8], seed=0, greedy=True)
    assert all(world.fluent(*pair) for pair in zip(prompts, greedy, strict=False))


def test_it_has_no_opinion_to_begin_with(lm: tuple[Any, Any]) -> None:
    prompts = world.training_prompts()
    rewards = np.array([world.reward(*pair) for pair in zip(prompts, draw(*lm, prompts, seed=2), strict=True)])
    assert abs(rewards.mean()) < 0.2
    assert rewards.std() > 0.4


@pytest.mark.parametrize("prompts", [world.training_prompts()[::2], world.held_out_prompts() * 2])
def test_its_log_probabilities_are_near_the_true(lm: tuple[Any, Any], prompts: list[str]) -> None:
    texts = true_reviews(prompts)
    lengths = np.array([len(text.split()) + 1 for text in texts])
    own = log_probabilities(*lm, prompts, texts).double().numpy()
    true = np.array([world.log_probability(*pair) for pair in zip(prompts, texts, strict=True)])
    assert np.corrcoef(own / lengths, true / lengths)[0, 1] > 0.9
    assert abs((true.sum() - own.sum()) / lengths.sum()) < 0.08


def test_it_carries_the_mood_through(lm: tuple[Any, Any]) -> None:
    """After a good beginning a good verdict is the likelier one, after a bad beginning a bad one."""
    good, bad = "the final script is brilliant .", "the final script is dreadful ."
    starts = [f"i {word} this western about pirates . {middle}" for word, middle in (("adored", good), ("hated", bad))]
    ends = ["what a triumph !", "what a disaster !"]
    texts = [f"{start} {end}" for start in starts for end in ends]
    found = log_probabilities(*lm, [PROMPT] * 4, texts).reshape(2, 2)
    assert found[0, 0] > found[0, 1] + 1
    assert found[1, 1] > found[1, 0] + 1


# --- how it is made


def test_the_loss_is_on_the_review_and_its_end_only() -> None:
    ids, labels = collate([([10, 11], [20, 21, 22]), ([12, 13], [23])])
    assert ids.tolist() == [[BOS, 10, 11, 20, 21, 22, EOS], [BOS, 12, 13, 23, EOS, PAD, PAD]]
    assert labels.tolist() == [
        [IGNORED] * 3 + [20, 21, 22, EOS],
        [IGNORED] * 3 + [23, EOS] + [IGNORED] * 2,
    ]


def test_the_loss_is_the_mean_over_words_and_padding_is_never_seen(tiny: Any) -> None:
    rows = [([10, 11], [20, 21, 22]), ([12, 13], [23])]
    alone = [loss(tiny, *collate([row])).item() for row in rows]
    assert loss(tiny, *collate(rows)).item() == pytest.approx((4 * alone[0] + 2 * alone[1]) / 6, abs=1e-5)


def test_the_loss_agrees_with_the_log_probabilities(tiny: Any) -> None:
    texts = true_reviews([PROMPT])
    found = log_probabilities(tiny, build_tokenizer(), [PROMPT], texts).item()
    index = build_tokenizer().get_vocab()
    row = tuple([index[word] for word in text.split()] for text in (PROMPT, texts[0]))
    assert -loss(tiny, *collate([row])).item() * (len(row[1]) + 1) == pytest.approx(found, abs=1e-3)


def test_the_lesson_on_mood_asks_of_every_word_whether_the_review_is_good() -> None:
    words = build_tokenizer().get_vocab()
    texts = ["superb superb dull", "dull dull awful", "superb awful the"]  # good, bad, neither
    ids = torch.tensor([[BOS, *(words[word] for word in text.split())] for text in texts])
    said = torch.tensor([[False, True, True]] * 3)
    assert mood_loss(torch.zeros(3, 3), ids, said).item() == pytest.approx(math.log(2), abs=2e-6)
    right = torch.tensor([[-9.0, 9.0, 9.0], [9.0, -9.0, -9.0], [9.0, 9.0, 9.0]])
    assert mood_loss(right, ids, said).item() == pytest.approx(math.log1p(math.exp(-9)), abs=2e-6)
    assert mood_loss(right[2:], ids[2:], said[2:]).item() == 0


def test_without_the_lesson_the_loss_is_that_of_the_words(tiny: Any) -> None:
    given = collate([([10, 11], [20, 21, 22])])
    head = torch.nn.Linear(48, 1)
    assert loss(tiny, *given).item() < losses(tiny, head, *given).item()


def test_in_the_lesson_all_opinion_words_agree() -> None:
    tokenizer, plain = build_tokenizer(), 0
    for ids, _ in itertools.islice(batches(0, size=8, agreement=1.0), 8):
        for text in tokenizer.batch_decode(ids[:, 5:], skip_special_tokens=True):
            words = set(text.split())
            if not words & {*NEGATIONS, "but"}:
                plain += 1
                assert len({VALENCES[word] > 0 for word in words & set(VALENCES)}) == 1
    assert plain > 10


def test_batches_hold_reviews_of_training_prompts_only_and_follow_the_seed() -> None:
    tokenizer, training = build_tokenizer(), set(world.training_prompts())
    for ids, labels in itertools.islice(batches(3, size=8), 6):
        for row, targets in zip(ids, labels, strict=True):
            prompt, review = tokenizer.decode(row[1:5]), tokenizer.decode(row[5:], skip_special_tokens=True)
            assert prompt in training
            assert world.fluent(prompt, review)
            assert tokenizer.decode(targets[targets != IGNORED]) == review + " <eos>"
    once, again, other = (next(batches(seed, size=8))[0] for seed in (3, 3, 4))
    assert torch.equal(once, again)
    assert not (once.shape == other.shape and torch.equal(once, other))


def test_what_is_saved_loads_as_it_was(tiny: Any, tmp_path: Path) -> None:
    before = tiny(input_ids=torch.tensor([[BOS, 10, 11]])).logits
    copy = build_model(len(build_tokenizer()), width=48, layers=1)
    copy.load_state_dict(tiny.state_dict())
    save(copy, build_tokenizer(), tmp_path)
    model, tokenizer = load(tmp_path)
    assert torch.allclose(model(input_ids=torch.tensor([[BOS, 10, 11]])).logits, before, atol=2e-3)
    assert tokenizer.decode([10, 11]) == build_tokenizer().decode([10, 11])


def test_figures_of_an_untrained_model_are_bad(tiny: Any) -> None:
    found = figures(tiny, build_tokenizer(), world.training_prompts()[:8], seed=0)
    assert found["parse"] == 0
    assert found["mean reward"] == -1
    assert found["cross-entropy over entropy"] > 2
    assert found["cross-entropy of the model, nats a word"] == pytest.approx(math.log(326), rel=0.1)
    assert found["true perplexity of the samples"] > 50
