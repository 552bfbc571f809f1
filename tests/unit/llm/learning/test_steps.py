"""What all fine-tuners of texts share: the policy before its first step, and a network in training."""

from dataclasses import replace

import pytest
import torch

from raftdiff.errors import UserError
from raftdiff.llm.learning.finetuner import LMFineTunerConfig
from raftdiff.llm.model import tiny
from raftdiff.llm.model.loading import LMConfig, load
from raftdiff.llm.model.tiny import random_answers
from raftdiff.llm.ppo.finetuner import PpoConfig
from raftdiff.llm.sampling.generation import DecodingConfig
from raftdiff.llm.sampling.policy import LMSampler
from raftdiff.types import Item, Prompt, Selection, silent

WORDS = ("the", "film", "was", "good", "bad", "dull", "fine", "long")
STILL = 1e-9
"""A learning rate at which nothing moves."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("lm") / "tiny", WORDS)


def learner(folder, method, dtype="float32", **options):
    base = LMConfig(base=str(folder), dtype=dtype, device="cpu")
    lm = load(base, str)
    if method == "ppo":
        config = PpoConfig(learning_rate=STILL, **options)
        return config.build(lm, total_rounds=1, seed=0, critic=config.critic.open(base, lm, str, seed=0))
    config = LMFineTunerConfig(objective={"type": "policy_gradient"}, learning_rate=STILL, **options)
    return config.build(lm, total_rounds=1, max_tokens=8, seed=0)


def fit(tuner, samples, method):
    signs = [1.0 if place % 2 else -1.0 for place in range(len(samples))]
    if method == "ppo":
        selection = Selection("all", tuple(Item((key,), scores=(s,)) for key, s in zip(samples, signs, strict=True)))
    else:
        selection = Selection("advantages", tuple(Item((key,), s) for key, s in zip(samples, signs, strict=True)))
    return tuner.fit(selection, samples, seed=1, report=silent)


def drawn(lm, prompts):
    sampler = LMSampler(lm, DecodingConfig(max_new_tokens=6), 64, "policy")
    found = sampler.sample(prompts, per_prompt=4, seed=0, round=0, done=frozenset())
    return {one.key: one for one in found}


# --- the policy before its first step ---


@pytest.mark.parametrize("method", ["grpo", "ppo"])
@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_a_policy_that_has_not_moved_is_as_likely_as_before_in_bfloat16(folder, method, adapter):
    """The sampler's own numbers come from a cache and from rows filled up on the left: other roundings."""
    tuner = learner(folder, method, "bfloat16", adapter=adapter, epochs=2)
    prompts = [Prompt(f"p{n}", text, text, text) for n, text in enumerate(("the film", "film", "the long film was"))]
    figures = fit(tuner, drawn(tuner.lm, prompts), method)
    assert (figures["approx_kl"], figures["clip_fraction"]) == (0, 0)
    if method == "ppo":
        assert (figures["kl"], figures["kl_token"]) == (0, 0)


@pytest.mark.parametrize("method", ["grpo", "ppo"])
def test_what_a_sampler_reports_does_not_decide_the_ratio(folder, method):
    tuner = learner(folder, method)
    samples = {
        key: replace(one, aux={**one.aux, "logprobs": one.aux["logprobs"] - 0.25})
        for key, one in random_answers(tuner.lm).items()
    }
    figures = fit(tuner, samples, method)
    assert figures["approx_kl"] == pytest.approx(0, abs=1e-6)
    assert figures["sampler_gap"] == pytest.approx(0.25, abs=1e-4)


@pytest.mark.parametrize("method", ["grpo", "ppo"])
def test_answers_drawn_after_another_prompt_are_refused(folder, method):
    tuner = learner(folder, method)
    samples = {
        key: replace(one, prompt=replace(one.prompt, sampling="good good good"))
        for key, one in random_answers(tuner.lm).items()
    }
    with pytest.raises(UserError, match=r"for 'p0' these are two texts .* Set prompts\.decouple: false"):
        fit(tuner, samples, method)


@pytest.mark.parametrize("method", ["grpo", "ppo"])
def test_after_a_magic_prompt_that_is_learnt_too_nothing_has_moved(folder, method):
    tuner = learner(folder, method)
    prompts = [Prompt(f"p{n}", text, f"good {text}", f"good {text}") for n, text in enumerate(("the film", "film"))]
    figures = fit(tuner, drawn(tuner.lm, prompts), method)
    assert figures["approx_kl"] == pytest.approx(0, abs=1e-6)
    assert figures["clip_fraction"] == 0


def test_the_loras_dropout_is_not_in_what_the_policy_was(folder):
    tuner = learner(folder, "grpo", dropout=0.5)
    with torch.no_grad():
        for weight in tuner.trainable.live.values():
            weight.add_(0.1)
    tuner.trainable.rest(None)
    samples = random_answers(tuner.lm)
    assert fit(tuner, samples, "grpo")["sampler_gap"] == pytest.approx(0, abs=1e-4)
