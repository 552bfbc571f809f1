"""Rewards that a language model gives: RAFT's KL-corrected ranking and RRHF's p_i, on chains of known odds."""

import math
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest
import torch

from raftdiff.errors import UserError
from raftdiff.llm.figures import Distances
from raftdiff.llm.learning.finetuner import LMFineTunerConfig
from raftdiff.llm.likelihood import (
    KlConfig,
    KlReward,
    LikelihoodConfig,
    LikelihoodReward,
    MutualInformationConfig,
    MutualInformationReward,
)
from raftdiff.llm.model.rows import row_of, score
from raftdiff.llm.sampling.generation import DecodingConfig
from raftdiff.llm.sampling.policy import LMSampler
from raftdiff.ranking import Ranker
from raftdiff.recipes.config import check
from raftdiff.selection.best import BestOfK
from raftdiff.testing.conformance import check_reward
from raftdiff.types import Item, Prompt, Sample, Selection, silent


def sample(text, caption="go", index=0, meta=None, **aux):
    told = {name: torch.tensor(value) for name, value in aux.items()}
    return Sample(0, Prompt(caption, caption, caption, caption, meta=meta or {}), index, 0, "policy", text, told)


def odds(**lps):
    return {word: math.exp(lp) for word, lp in lps.items()}


def swapped(lm, weight):
    @contextmanager
    def base():
        own, lm.model.lm_head.weight.data = lm.model.lm_head.weight.data, weight
        try:
            yield
        finally:
            lm.model.lm_head.weight.data = own

    return base


@dataclass(frozen=True)
class Known:
    """The rewards of E1, by candidate."""

    name: str = "known"

    def score(self, samples):
        return torch.tensor([[0.1, 0.9, 0.8, 0.2][one.index] for one in samples])


@pytest.fixture
def e1(chain, open_lm):
    """Four one-token answers with lp [-3, -1, -2, -4] under the policy and [-3, -4, -2.5, -4] under the base."""
    lm = open_lm(chain({"go": odds(a=-3, b=-1, c=-2, d=-4)}))
    weight = open_lm(chain({"go": odds(a=-3, b=-4, c=-2.5, d=-4)})).model.lm_head.weight.data
    ids = lm.tokenizer.convert_tokens_to_ids(["a", "b", "c", "d"])
    samples = [sample("abcd"[index], index=index, tokens=[number]) for index, number in enumerate(ids)]
    return KlConfig(batch_size=3).build_on(lm, swapped(lm, weight)), samples


def test_worked_numbers_of_the_kl_corrected_ranking(e1):
    reward, samples = e1
    torch.testing.assert_close(reward.score(samples), torch.tensor([0.0, -3.0, -0.5, 0.0]), rtol=0, atol=2e-6)
    for beta, totals, pick in [
        (0.0, [0.1, 0.9, 0.8, 0.2], 1),
        (0.05, [0.1, 0.75, 0.775, 0.2], 2),
        (0.2, [0.1, 0.3, 0.7, 0.2], 2),
    ]:
        ranker = Ranker([(Known(), 1.0), (reward, beta)], BestOfK())
        scores = ranker.score(iter([samples]), ["go"], 4)
        assert scores.total[0].tolist() == pytest.approx(totals, abs=2e-6)
        assert scores.raw["kl"][0].tolist() == pytest.approx([0, -3, -0.5, 0], abs=2e-6)
        selection = ranker.selector.select(scores)
        (item,) = selection.items
        assert item.keys[0].index == pick
        assert item.weight == 1.0  # it moves the pick and never the loss: whoever is picked is learnt from alike


def test_the_kl_reward_asks_for_no_reference_in_the_loss():
    tuner = LMFineTunerConfig()
    assert not tuner.objective.build().requires.reference_model
    assert "beta" not in type(tuner.objective).model_fields
    assert KlConfig().weight == 0.05


def test_kl_is_the_difference_of_sums_under_the_current_policy_whoever_wrote_the_answer(lm_folder, open_lm):
    lm = open_lm(lm_folder)
    config = LMFineTunerConfig(learning_rate=1e-2, batch_size=4, epochs=3)
    tuner = config.build(lm, total_rounds=1, max_tokens=8, seed=0)
    prompt = [Prompt("p", "good", "the film was", "good")]  # a magic prompt: what is learnt is another text
    sampler = LMSampler(lm, DecodingConfig(max_new_tokens=6), 8, "policy")
    drawn = list(sampler.sample(prompt, per_prompt=6, seed=0, round=0, done=frozenset()))
    samples = [*drawn, replace(drawn[0], index=9, source="dataset", media="yes no yes", aux={})]
    rows = [row_of(lm, one, learning=True) for one in samples]
    assert {row.prompt for row in rows} == {(1, 7)}
    reward = KlConfig(name="near").build_on(lm, tuner.base_weights)
    assert reward.name == "near"
    before = score(lm, rows, batch_size=4)
    torch.testing.assert_close(reward.score(samples), torch.zeros(7), rtol=0, atol=1e-5)
    store = {one.key: one for one in samples}
    tuner.fit(Selection("weighted", tuple(Item((key,)) for key in store)), store, seed=0, report=silent)
    after = score(lm, rows, batch_size=4)
    expected = torch.stack([(old - new).sum() for old, new in zip(before, after, strict=True)])
    assert expected.max() < -0.1
    torch.testing.assert_close(reward.score(samples), expected, rtol=0, atol=1e-4)
    check_reward(reward, samples).demand()


def test_worked_numbers_of_rrhf_s_length_normalized_p(chain, open_lm):
    """Token log-probabilities [-.5, -1.1], [-.4, -.6, -.5], [-.9]: the last one of each is the end's."""
    folder = chain(
        {
            "x": odds(a=-0.5),
            "a": {"<eos>": math.exp(-1.1)},
            "y": odds(b=-0.4),
            "b": odds(c=-0.6),
            "c": {"<eos>": math.exp(-0.5)},
            "z": {"<eos>": math.exp(-0.9)},
        }
    )
    config = LikelihoodConfig(model={"base": "judge", "device": "cpu"}, batch_size=2, name="liking")
    reward = config.build(resolve=lambda name: str(folder))
    samples = [sample("a", "x"), sample("b c", "y"), sample("", "z")]
    torch.testing.assert_close(reward.score(samples), torch.tensor([-0.8, -0.5, -0.9]), rtol=0, atol=2e-6)
    assert reward.name == "liking"
    # the margins of the rank loss: only 2 > 3 and 2 > 1 are violated under r = (1, .2, .8)
    p, r = reward.score(samples), [1.0, 0.2, 0.8]
    violated = sum(max(0.0, float(p[i] - p[j])) for i in range(3) for j in range(3) if r[i] < r[j])
    assert violated == pytest.approx(0.70, abs=2e-6)
    check_reward(reward, [*samples, sample("c", "b")]).demand()
    assert open_lm(folder).eos == (2,)


def test_likelihood_reads_the_text_with_its_own_tokenizer_after_the_caption(chain, lm, open_lm):
    judge = open_lm(chain({"good": odds(film=-0.3), "film": {"<eos>": 1.0}, "magic": odds(film=-3.0)}))
    reward = LikelihoodReward(judge)
    policys = {"tokens": [14, 15, 12, 11, 10], "logprobs": [0.0] * 5}  # of a larger vocabulary
    plain, carried = sample("film", "good"), sample("film", "good", **policys)
    assert reward.score([plain, carried]).tolist() == pytest.approx([-0.15, -0.15], abs=1e-5)
    decoupled = replace(plain, prompt=Prompt("p", "good", sampling="magic", learning="magic"))
    assert reward.score([decoupled]).tolist() == pytest.approx([-0.15], abs=1e-5)


def test_worked_numbers_of_what_the_prompt_adds_to_an_answer(chain):
    """After x the answer "a" is as good as certain, after y and after the neutral n it is one of many."""
    folder = chain({"x": odds(a=-0.1), "y": odds(a=-2.1), "n": odds(a=-2.1), "a": {"<eos>": math.exp(-1.1)}})
    config = MutualInformationConfig(model={"base": "judge", "device": "cpu"}, neutral="n", name="fits")
    reward = config.build(resolve=lambda name: str(folder))
    assert reward.name == "fits"
    samples = [sample("a", "x"), sample("a", "y"), sample("a", "x", meta={"system": "y"})]
    found = reward.score(samples)
    torch.testing.assert_close(found[:2], torch.tensor([1.0, 0.0]), rtol=0, atol=2e-6)  # (-0.1 + 2.1) / 2 tokens
    likelihood = LikelihoodConfig(model={"base": "judge", "device": "cpu"}).build(resolve=lambda name: str(folder))
    torch.testing.assert_close(found, likelihood.score(samples) + 1.6, rtol=0, atol=2e-6)
    check_reward(reward, samples).demand()


def test_the_neutral_prompt_says_something():
    with pytest.raises(UserError, match="neutral"):
        check(MutualInformationConfig, {"model": {"base": "x"}, "neutral": " "}, "reward")


def test_what_is_too_long_after_the_prompt_or_the_neutral_one_is_discarded(gpt2):
    reward = MutualInformationReward(gpt2, neutral="good " * 9)
    with pytest.warns(UserWarning, match=r"'mutual_information' discards 2 of 3 answers"):
        found = reward.score([sample("bad", "good"), sample("bad " * 35, "good"), sample("bad", "good " * 39)])
    assert found.isnan().tolist() == [False, True, True]
    long, asked = "good " * 40, [sample("", "good").prompt]
    with pytest.raises(UserError, match="'mutual_information': the prompt 'neutral' is 41 .*; shorten neutral"):
        MutualInformationReward(gpt2, neutral=long).check_prompts(asked)
    with pytest.raises(UserError, match="^The reward 'mutual_information': The prompt 'neutral' is 41 .* more than"):
        MutualInformationReward(replace(gpt2, max_prompt_tokens=9), neutral=long).check_prompts(asked)


def test_likelihood_asks_in_the_judges_own_chat_template(chat_folder, open_lm):
    judge = open_lm(chat_folder)
    one = sample("yes", "good", meta={"system": "dull"})
    (lp,) = score(judge, [row_of(judge, one, learning=True)], batch_size=1)
    assert row_of(judge, one, learning=True).prompt == tuple(
        judge.tokenizer.convert_tokens_to_ids(["system", "dull", "user", "good", "assistant"])
    )
    assert float(LikelihoodReward(judge).score([one])[0]) == pytest.approx(float(lp.mean()), abs=1e-6)


def test_an_answer_that_is_too_long_for_the_judge_is_discarded_and_counted(gpt2):
    judge = LikelihoodReward(gpt2)
    with pytest.warns(UserWarning, match=r"'likelihood' discards 1 of 2 answers \(NaN\): .* longer than its model can"):
        found = judge.score([sample(" ".join(["bad"] * 40), "good"), sample("bad", "good")])
    assert found[0].isnan()
    assert found[1] == judge.score([sample("bad", "good")])[0]
    judge.check_prompts([sample("", "good").prompt])
    with pytest.raises(UserError, match="'likelihood': the prompt '.*' is 41 tokens long, and its model can read 40"):
        judge.check_prompts([sample("", " ".join(["good"] * 40)).prompt])


def test_a_judge_that_cannot_be_loaded_is_a_sentence(tmp_path):
    config = LikelihoodConfig(model={"base": str(tmp_path / "none"), "device": "cpu"})
    with pytest.raises(UserError, match="model.base: there is no folder"):
        config.build()


def test_the_kl_reward_takes_its_two_passes_in_batches(e1):
    reward, samples = e1
    small = KlReward(Distances(reward._distances.lm, reward._distances.base, 1))
    torch.testing.assert_close(small.score(samples), reward.score(samples), rtol=0, atol=1e-6)
