"""What all fine-tuners of texts share: the policy before its first step, and a network in training."""

import shutil
from dataclasses import replace

import pytest
import torch

from raftdiff.errors import UserError
from raftdiff.llm.learning.finetuner import LMFineTunerConfig
from raftdiff.llm.learning.steps import before_steps
from raftdiff.llm.model import tiny
from raftdiff.llm.model.loading import LMConfig, load
from raftdiff.llm.model.rows import collate, row_of, score
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


# --- a network in training ---


@pytest.fixture(scope="module")
def opt(tmp_path_factory, folder):
    """Its blocks drop activations by their own flag, and its stack of blocks drops whole ones."""
    from transformers import OPTConfig, OPTForCausalLM

    path = tmp_path_factory.mktemp("lm") / "opt"
    drop = {"dropout": 0.3, "attention_dropout": 0.3, "activation_dropout": 0.3, "layerdrop": 0.5}
    size = {"hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 32, "num_hidden_layers": 3}
    tokens = {"vocab_size": 12, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = OPTConfig(num_attention_heads=2, max_position_embeddings=64, **tokens, **size, **drop)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        OPTForCausalLM(config).save_pretrained(path)
    for file in folder.glob("tokenizer*"):
        shutil.copy2(file, path)
    return path


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_no_activation_is_dropped_where_they_are_computed_again(opt, adapter):
    """OPT's blocks look at their own flag, which the library's checkpointing wants on."""
    plain = learner(opt, "grpo", adapter=adapter, target_modules=("q_proj", "fc1"))
    samples = random_answers(plain.lm)
    rows = [row_of(plain.lm, one, learning=True) for one in samples.values()]
    expected = torch.cat(score(plain.lm, rows, batch_size=64))
    again = learner(opt, "grpo", adapter=adapter, target_modules=("q_proj", "fc1"), gradient_checkpointing=True)
    computed = []
    again.lm.model.model.decoder.layers[1].self_attn.register_forward_hook(lambda *_: computed.append(1))
    with again._training():
        for _ in range(2):
            batch = collate(rows, again.lm.pad)
            lp = again.network.lp(batch)[batch.mask]
            torch.testing.assert_close(lp.detach(), expected)
        torch.testing.assert_close(torch.cat(before_steps(again.network, rows, batch_size=5)), expected)
        before = len(computed)
        lp.sum().backward()
        assert len(computed) == before + 1, "computed again for the backward pass"
    torch.testing.assert_close(torch.cat(score(again.lm, rows, batch_size=64)), expected)
    assert not any(module.training for module in again.lm.model.modules())


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_gradients_of_a_network_that_drops_are_the_same_checkpointed(opt, adapter):
    found = []
    for checkpointing in (False, True):
        tuner = learner(opt, "grpo", adapter=adapter, target_modules=("q_proj",), gradient_checkpointing=checkpointing)
        kept = {}

        def keep(*_, tuner=tuner, kept=kept):
            kept.update({n: p.grad.clone() for n, p in tuner.trainable.parameters.items() if p.grad is not None})

        tuner.course.optimizer.register_step_pre_hook(keep)
        fit(tuner, random_answers(tuner.lm), "grpo")
        found.append(kept)
    assert found[0].keys() == found[1].keys()
    for name in found[0]:
        torch.testing.assert_close(found[1][name], found[0][name], rtol=1e-4, atol=1e-6)
