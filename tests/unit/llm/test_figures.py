"""What is said of answers beside their rewards: the worked diversity, and the distance from the base in closed form."""

import math
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from raftdiff.llm.figures import Distances, describe, diversity, perplexity, similarity
from raftdiff.llm.learning.finetuner import LMFineTunerConfig
from raftdiff.llm.model.rows import Row, row_of, score
from raftdiff.llm.sampling.generation import DecodingConfig
from raftdiff.llm.sampling.policy import LMSampler
from raftdiff.types import Item, Key, Prompt, Sample, Scores, Selection, silent


def sample(text, prompt="p", index=0, **aux):
    told = {name: torch.tensor(value) for name, value in aux.items()}
    return Sample(0, Prompt(prompt, "go", "go", "go"), index, 0, "policy", text, told)


@pytest.fixture
def moved(chain, open_lm):
    """A policy, and its base: two chains that differ in their first word."""
    words = {"a": {"<eos>": 1.0}, "b": {"<eos>": 1.0}}
    lm = open_lm(chain({"go": {"a": 0.8, "b": 0.2}, **words}))
    other = open_lm(chain({"go": {"a": 0.3, "b": 0.7}, **words})).model.lm_head.weight.data

    @contextmanager
    def base():
        own, lm.model.lm_head.weight.data = lm.model.lm_head.weight.data, other
        try:
            yield
        finally:
            lm.model.lm_head.weight.data = own

    return lm, base


def test_worked_numbers_of_diversity():
    found = diversity(["the cat sat on the mat", "the dog sat"])
    assert found["distinct_1"] == pytest.approx(0.666667, abs=2e-6)
    assert (found["unique_1"], found["distinct_2"], found["unique_2"], found["length"]) == (4.0, 1.0, 7.0, 4.5)
    assert found["msttr_100"] is None  # less than one window of text


def test_without_text_the_figures_are_none_rather_than_nan():
    assert diversity([]) == {
        "distinct_1": None,
        "distinct_2": None,
        "unique_1": 0.0,
        "unique_2": 0.0,
        "msttr_100": None,
        "length": None,
    }
    assert diversity([""])["length"] == 0.0


def test_all_candidates_and_the_selected_are_described_apart():
    """Reward hacking shows in the selected first."""
    batches = [[sample("x y z", index=0), sample("x x x", index=1)], [sample("u v w", "q", 0)]]
    found = describe(batches, {Key(0, "p", 1)})
    assert found == {
        "diversity_all": diversity(["x y z", "x x x", "u v w"]),
        "diversity_selected": diversity(["x x x"]),
    }
    assert found["diversity_selected"]["distinct_2"] == 0.5


def test_answers_are_compared_with_those_to_their_own_prompt():
    """They come in any order; a candidate that is not there is like nothing."""
    batches = [[sample("x", "q", 2), sample("x", index=1)], [sample("x", index=0), sample("y", "q", 0)]]
    found = similarity(batches, Scores(0, ("p", "q"), np.zeros((2, 3)), {}))
    nan = np.nan
    np.testing.assert_array_equal(found[0], [[1, 1, nan], [1, 1, nan], [nan, nan, nan]])
    np.testing.assert_array_equal(found[1], [[1, nan, 0], [nan, nan, nan], [0, nan, 1]])


def test_perplexity_is_taken_over_all_tokens_together():
    assert perplexity([torch.tensor([-1.0, -1.0, -1.0]), torch.tensor([-3.0])]) == pytest.approx(math.exp(1.5))


def test_distance_and_perplexity_in_closed_form(moved):
    lm, base = moved
    a, b = lm.tokenizer.convert_tokens_to_ids(["a", "b"])
    samples = [sample("a", index=0, tokens=[a, 2]), sample("a", index=1, tokens=[a, 2]), sample("b", tokens=[b, 2])]
    found = Distances(lm, base, 2)(samples)
    assert found["kl"] == pytest.approx((2 * math.log(0.8 / 0.3) + math.log(0.2 / 0.7)) / 3, abs=1e-5)
    # of the answers under the base, a token; their ends are certain
    assert found["perplexity"] == pytest.approx(math.exp(-(2 * math.log(0.3) + math.log(0.7)) / 6), abs=1e-5)
    assert (found["length"], found["distinct_2"]) == (1.0, pytest.approx(math.nan, nan_ok=True))


def test_the_mean_over_draws_approaches_the_kl_divergence(moved):
    lm, base = moved
    prompts = [Prompt("p", "go", "go", "go")]
    drawn = LMSampler(lm, DecodingConfig(max_new_tokens=4), 500, "policy").sample(
        prompts, per_prompt=2000, seed=0, round=0, done=frozenset()
    )
    truth = 0.8 * math.log(0.8 / 0.3) + 0.2 * math.log(0.2 / 0.7)
    spread = math.sqrt(0.8 * math.log(0.8 / 0.3) ** 2 + 0.2 * math.log(0.2 / 0.7) ** 2 - truth**2)
    assert Distances(lm, base, 500)(list(drawn))["kl"] == pytest.approx(truth, abs=3 * spread / math.sqrt(2000))


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_the_base_is_there_under_a_tuned_policy(lm_folder, open_lm, adapter):
    lm = open_lm(lm_folder)
    config = LMFineTunerConfig(adapter=adapter, learning_rate=1e-2, batch_size=4, epochs=4)
    tuner = config.build(lm, total_rounds=1, max_tokens=8, seed=0)
    sampler = LMSampler(lm, DecodingConfig(max_new_tokens=6), 8, "policy")
    prompt = [Prompt("p", "the film", "the film", "the film")]
    samples = {s.key: s for s in sampler.sample(prompt, per_prompt=8, seed=0, round=0, done=frozenset())}
    rows = [row_of(lm, one, learning=True) for one in samples.values()]
    before = score(lm, rows, batch_size=8)
    distances = Distances(lm, tuner.base_weights, 3)
    assert distances(list(samples.values()))["kl"] == pytest.approx(0, abs=1e-6)
    tuner.fit(Selection("weighted", tuple(Item((key,)) for key in samples)), samples, seed=0, report=silent)
    now, base = distances.log_probabilities(rows)
    for found, expected in zip(base, before, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert distances(list(samples.values()))["kl"] > 0.5  # it learnt these very answers
    after = score(lm, rows, batch_size=8)  # and is the policy again
    assert all(torch.allclose(x, y, atol=1e-5) for x, y in zip(now, after, strict=True))


def test_answers_of_others_are_read_by_the_policys_tokenizer(moved):
    lm, base = moved
    assert Distances(lm, base, 4)([sample("a")])["kl"] == pytest.approx(math.log(0.8 / 0.3), abs=1e-5)
    row = Row(tuple(lm.prompt_ids(sample("a").prompt, "go")), tuple(lm.answer_ids("a")))
    assert row_of(lm, sample("a"), learning=True) == row
