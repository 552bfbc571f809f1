"""PPO: what a step's gradient is, what each ingredient changes, what it resumes to, and where it stops."""

import json
import math
from pathlib import Path

import pytest
import torch

from raftdiff.embedded.reviews import ptx as review_ptx
from raftdiff.errors import UserError
from raftdiff.llm.data.prompts import read_prompts
from raftdiff.llm.model import tiny
from raftdiff.llm.model.loading import LMConfig, load
from raftdiff.llm.model.rows import Row, collate, row_of
from raftdiff.llm.model.tiny import random_answers
from raftdiff.llm.model.tokens import entropy, log_probabilities
from raftdiff.llm.ppo.finetuner import PpoConfig
from raftdiff.llm.ppo.losses import RewardScaler, adaptive_kl, gae, token_rewards, whiten
from raftdiff.llm.ppo.rollouts import figures, written_rows
from raftdiff.llm.recipe import load_text_recipe
from raftdiff.recipes.config import check, differing, plain
from raftdiff.recipes.files import locate, recipes
from raftdiff.testing.conformance import check_finetuner
from raftdiff.types import Item, Prompt, Sample, Selection, silent

WORDS = ("the", "film", "was", "good", "bad", "dull", "fine", "long")
PROMPTS = ("the film", "film", "the long film was", "was")
PLAIN = {"kl": {"beta": 0.0}, "advantage": {"lam": 1.0, "whiten": False}}
MAX = {
    "kl": {"beta": 0.05, "adaptive": {"target": 0.5, "horizon": 100}},
    "reward_norm": "normalise",
    "reward_clip": 1.5,
    "value_clip": 0.2,
    "max_grad_norm": 1.0,
    "critic": {"learning_rate": 1e-3, "pretrain_steps": 4},
    "ptx": {"data": {"captions": [{"prompt": "film", "response": "was fine"}]}, "batch_size": 4, "weight": 0.3},
    "lr_schedule": "linear",
    "warmup_steps": 2,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("lm") / "tiny", WORDS)


def tuner(folder, *, rounds=3, written=(), dtype="float32", **changes):
    options = {"adapter": "full", "learning_rate": 1e-3, "batch_size": 12, **changes}
    config = check(PpoConfig, options)
    base = LMConfig(base=str(folder), dtype=dtype, device="cpu")
    lm = load(base, str)
    critic = config.critic.open(base, lm, str, seed=0)
    return config.build(lm, total_rounds=rounds, seed=0, critic=critic, pretraining=written)


def selected(samples, scale=1.0):
    """Rewards between -1 and 1, none like another."""
    items = [Item((key,), scores=(scale * math.cos(2.4 * place),)) for place, key in enumerate(samples)]
    return Selection("all", tuple(items))


def fit(learner, samples, scale=1.0, seed=1):
    return learner.fit(selected(samples, scale), samples, seed=seed, report=silent)


def moved(learner):
    """The same fine-tuner some way from its base."""
    generator = torch.Generator().manual_seed(7)
    for weight in learner.trainable.live.values():
        weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.03)
    learner.trainable.rest(None)
    return learner


def gradients(learner, samples, seed=1):
    """Those of actor and critic in the first optimizer step, before clipping, and the round's figures."""
    found = ({}, {})
    hooks = []
    for side, kept in zip((learner.actor, learner.critic), found, strict=True):

        def keep(*_, side=side, kept=kept):
            for name, parameter in side.trainable.parameters.items():
                if parameter.grad is not None:
                    kept.setdefault(name, parameter.grad.clone())

        hooks.append(side.optimizer.register_step_pre_hook(keep))
    told = fit(learner, samples, seed=seed)
    for hook in hooks:
        hook.remove()
    return *found, told


def close(one, other, **tolerance):
    tolerance = {"rtol": 1e-4, "atol": 1e-6, **tolerance}
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], **tolerance)


def largest(grads):
    return max(float(grad.abs().max()) for grad in grads.values())


def known(learner, samples):
    """The buffer as one batch: log p now (with a graph), of the base, values before each token, the mask."""
    rows = [row_of(learner.lm, sample, learning=True) for sample in samples.values()]
    batch = collate(rows, learner.lm.pad)
    for parameter in learner.trainable.parameters.values():
        parameter.requires_grad_(True)
    ask = {"input_ids": batch.ids, "attention_mask": batch.attention}
    logits = learner.lm.model(**ask).logits
    with torch.no_grad():
        values = learner.critic.model.values(batch)[:, :-1]
        with learner.base_weights():
            reference = log_probabilities(learner.lm.model(**ask).logits, batch.ids)
    return log_probabilities(logits, batch.ids), reference, values, batch.mask, logits


def expected(learner, loss):
    """The gradients of a loss, by parameter."""
    found = torch.autograd.grad(loss, list(learner.trainable.parameters.values()), allow_unused=True)
    grads = {name: grad for name, grad in zip(learner.trainable.parameters, found, strict=True) if grad is not None}
    for parameter in learner.trainable.parameters.values():
        parameter.requires_grad_(False)
    return grads


def rewards_of(samples):
    return torch.tensor([item.scores[0] for item in selected(samples).items])


# --- what a step is ---


def test_the_first_step_is_minus_a_grad_log_p(folder):
    """The ratio is 1 and nothing is clipped; without KL, lambda = gamma = 1, the advantage is R - V before a token."""
    learner = moved(tuner(folder, **PLAIN))
    samples = random_answers(learner.lm)
    lp, _, values, mask, _ = known(learner, samples)
    advantages = torch.where(mask, rewards_of(samples)[:, None] - values, 0.0)
    wanted = expected(learner, -(advantages * torch.where(mask, lp, 0.0)).sum() / mask.sum())
    found, _, told = gradients(learner, samples)
    assert largest(wanted) > 1e-3
    close(found, wanted, atol=2e-6)
    assert told["clip_fraction"] == 0
    assert told["approx_kl"] == pytest.approx(0, abs=1e-6)


def test_the_kl_penalty_and_whitening_are_those_of_the_formulas(folder):
    """Some way from the base, so that the penalty is not 0."""
    learner = moved(tuner(folder, kl={"beta": 0.3}, advantage={"lam": 0.9, "gamma": 0.97}))
    samples = random_answers(learner.lm)
    lp, reference, values, mask, _ = known(learner, samples)
    rewards = token_rewards(lp.detach(), reference, rewards_of(samples), mask, 0.3)
    advantages, returns = gae(rewards, values, mask, 0.97, 0.9)
    weights = whiten(advantages, mask)
    wanted = expected(learner, -(weights * torch.where(mask, lp, 0.0)).sum() / mask.sum())
    found, _, told = gradients(learner, samples)
    close(found, wanted, atol=2e-6)
    drift = torch.where(mask, lp.detach() - reference, 0.0).sum(dim=1).mean()
    assert abs(told["kl"]) > 1e-3
    assert told["kl"] == pytest.approx(float(drift), rel=1e-4)
    assert told["value_loss"] == pytest.approx(float(((values - returns)[mask]).square().mean() / 2), rel=1e-4)


def test_prompt_and_padding_have_no_gradient(folder):
    """Neither in the policy's hidden states nor in the critic's."""
    learner = tuner(folder, **MAX | {"ptx": None})
    samples = random_answers(learner.lm)
    mask = collate([row_of(learner.lm, one, learning=True) for one in samples.values()], learner.lm.pad).mask
    seen = {}

    def watch(name):
        def hook(module, args, output):
            output = getattr(output, "last_hidden_state", output)
            if output.requires_grad:
                output.retain_grad()
                seen.setdefault(name, output)  # what the head is shown comes after

        return hook

    held = [
        learner.lm.model.base_model.register_forward_hook(watch("policy")),
        learner.critic.model.head.register_forward_hook(watch("critic")),
    ]
    kept = {}
    learner.actor.optimizer.register_step_pre_hook(lambda *_: kept.update(policy=seen["policy"].grad))
    learner.critic.optimizer.register_step_pre_hook(lambda *_: kept.update(critic=seen["critic"].grad))
    learner.config = learner.config.model_copy(update={"batch_size": len(samples)})
    fit(learner, samples)
    for hook in held:
        hook.remove()
    for grad in kept.values():
        at = grad.abs().sum(dim=-1)
        lengths = sorted(int(row.sum()) for row in (at > 0))
        assert lengths == sorted(mask.sum(dim=1).tolist())
        assert not bool(at[:, -1].any()), "nothing is predicted from the last token"


def test_how_a_step_is_cut_into_passes_changes_nothing(folder):
    """Neither gradients nor figures; also a test of padding: alone in its pass, a row has none."""
    options = {**MAX, "entropy": {"weight": 0.1, "target": 1.0}, "max_grad_norm": None}
    written = written_rows(load(LMConfig(base=str(folder), device="cpu"), str), written_prompts())
    whole = moved(tuner(folder, written=written, **options))
    samples = random_answers(whole.lm)
    policy, critic, told = gradients(whole, samples)
    assert min(largest(policy), largest(critic)) > 1e-3
    for rows in (1, 5):
        cut = moved(tuner(folder, written=written, rows_per_pass=rows, **options))
        found, others, figures_of = gradients(cut, samples)
        close(found, policy, atol=1e-6 * max(1.0, largest(policy)))
        close(others, critic, atol=1e-6 * max(1.0, largest(critic)))
        same = told.keys() - {"network_evaluations"}
        assert {k: figures_of[k] for k in same} == pytest.approx({k: told[k] for k in same}, rel=1e-4, abs=1e-5)


# --- the ingredients ---


def written_prompts():
    rows = {"film": "was fine", "the film": "was long good good", "was": "dull"}
    return [Prompt(text, text, text, text, meta={"answers": [{"text": one}]}) for text, one in rows.items()]


def test_text_of_the_pretraining_adds_its_cross_entropy(folder):
    plain = moved(tuner(folder, **PLAIN))
    samples = random_answers(plain.lm)
    written = written_rows(plain.lm, written_prompts())
    batch = collate(written, plain.lm.pad)
    for parameter in plain.trainable.parameters.values():
        parameter.requires_grad_(True)
    logits = plain.lm.model(input_ids=batch.ids, attention_mask=batch.attention).logits
    alone = expected(plain, -0.7 * log_probabilities(logits, batch.ids)[batch.mask].mean())
    without, _, _ = gradients(plain, samples)
    ptx = {"data": {"captions": ["-"]}, "weight": 0.7, "batch_size": 8}
    with_it, _, told = gradients(moved(tuner(folder, written=written, ptx=ptx, **PLAIN)), samples)
    close(with_it, {name: without[name] + alone[name] for name in without}, atol=3e-6)
    assert largest(alone) > 1e-3
    assert told["ptx_loss"] > 0


def test_of_rated_answers_the_best_is_learnt_beside(folder):
    """The rejected answer of a pair is no text to remember."""
    lm = load(LMConfig(base=str(folder), device="cpu"), str)
    pair = [{"text": "dull", "score": 0.0}, {"text": "fine", "score": 1.0}]
    unrated = [{"text": "good", "score": None}, {"text": "bad"}]
    prompts = [
        Prompt(name, "film", "film", "film", meta={"answers": rows}) for name, rows in (("a", pair), ("b", unrated))
    ]
    assert [lm.text(row.answer) for row in written_rows(lm, prompts)] == ["fine", "good", "bad"]


def test_each_step_draws_other_text(folder):
    lm = load(LMConfig(base=str(folder), device="cpu"), str)
    written = [Row((1, 4), (5 + place, 2)) for place in range(6)]
    learner = tuner(folder, written=written, ptx={"data": {"captions": ["-"]}, "batch_size": 2}, batch_size=3)
    drawn, forward = [], lm.model.__class__.forward
    samples = random_answers(learner.lm)
    with pytest.MonkeyPatch.context() as patch:

        def keep(self, *args, **inputs):
            if len(inputs.get("input_ids", ())) == 2 and torch.is_grad_enabled():
                drawn.append(tuple(inputs["input_ids"][:, 2].tolist()))
            return forward(self, *args, **inputs)

        patch.setattr(lm.model.__class__, "forward", keep)
        fit(learner, samples)
    assert len(drawn) == 4
    assert len(set(drawn)) > 1
    assert all(a != b for a, b in drawn), "without repetition within a step"


def test_the_entropy_is_held_near_its_target(folder):
    plain = moved(tuner(folder, **PLAIN))
    samples = random_answers(plain.lm)
    _, _, _, mask, logits = known(plain, samples)
    spread = torch.where(mask, entropy(logits[:, :-1]), 0.0).sum(dim=1) / mask.sum(dim=1)
    alone = expected(plain, 0.5 * (spread - 1.0).abs().mean())
    without, _, _ = gradients(plain, samples)
    with_it, _, told = gradients(moved(tuner(folder, entropy={"weight": 0.5, "target": 1.0}, **PLAIN)), samples)
    close(with_it, {name: without[name] + alone[name] for name in without}, atol=3e-6)
    assert told["entropy"] == pytest.approx(float(spread.detach().mean()), rel=1e-4)


def test_advantages_are_clipped_after_whitening(folder):
    learner = moved(tuner(folder, kl={"beta": 0.0}, advantage={"clip": 0.5}))
    samples = random_answers(learner.lm)
    lp, _, values, mask, _ = known(learner, samples)
    rewards = token_rewards(lp.detach(), lp.detach(), rewards_of(samples), mask, 0.0)
    weights = whiten(gae(rewards, values, mask, 1.0, 0.95).advantages, mask).clamp(-0.5, 0.5)
    wanted = expected(learner, -(weights * torch.where(mask, lp, 0.0)).sum() / mask.sum())
    found, _, _ = gradients(learner, samples)
    close(found, wanted, atol=2e-6)


@pytest.mark.parametrize("norm", ["none", "scale", "normalise"])
def test_rewards_are_scaled_by_the_history_of_all_rounds(folder, norm):
    learner, scaler = tuner(folder, reward_norm=norm, reward_clip=1.2), RewardScaler()
    for turn, scale in enumerate((1.0, 30.0)):
        samples = random_answers(learner.lm, turn)
        raw = rewards_of(samples) * scale
        told = fit(learner, samples, scale)
        if norm == "none":
            wanted = raw.clamp(-1.2, 1.2)
        else:
            wanted = scaler.scale(raw, subtract_mean=norm == "normalise", clip=1.2)
        assert told["reward_std"] == pytest.approx(float(raw.std(correction=0)), rel=1e-5)
        assert told["scaled_mean"] == pytest.approx(float(wanted.mean()), rel=1e-4, abs=1e-6)
        assert told["scaled_std"] == pytest.approx(float(wanted.std(correction=0)), rel=1e-4)
    count = float(learner.state_dict()["ppo"]["reward_count"])
    assert count == (0 if norm == "none" else 24)


def test_a_single_reward_is_no_nan(folder):
    """The first batch of one has no standard deviation."""
    learner = tuner(folder, reward_norm="normalise", reward_clip=0.8)
    samples = dict(list(random_answers(learner.lm).items())[:1])
    told = fit(learner, samples)
    assert all(math.isfinite(value) for value in told.values())


def test_the_penalty_follows_the_kl(folder):
    adaptive = {"target": 0.1, "horizon": 50}
    learner = moved(tuner(folder, kl={"beta": 0.2, "adaptive": adaptive}))
    told = fit(learner, random_answers(learner.lm))
    assert told["beta"] == 0.2
    assert learner.beta == adaptive_kl(0.2, told["kl"], 0.1, 12, 50)
    assert learner.beta != 0.2
    still = moved(tuner(folder, kl={"beta": 0.2}))
    fit(still, random_answers(still.lm))
    assert still.beta == 0.2


# --- the critic learns first ---


def test_pretraining_the_critic_leaves_the_policy_to_the_bit(folder):
    learner = tuner(folder, critic={"learning_rate": 1e-2, "pretrain_steps": 6}, batch_size=6)
    before = {name: weight.clone() for name, weight in learner.trainable.live.items()}
    critic = {name: weight.clone() for name, weight in learner.critic.trainable.live.items()}
    seen = []

    def look(*_):
        if not seen:
            same = all(torch.equal(before[name], weight) for name, weight in learner.trainable.live.items())
            moved_on = {
                name for name, weight in learner.critic.trainable.live.items() if not torch.equal(critic[name], weight)
            }
            seen.append((same, moved_on, learner.critic.steps))

    learner.actor.optimizer.register_step_pre_hook(look)
    told = fit(learner, random_answers(learner.lm))
    (same, moved_on, steps) = seen[0]
    assert same
    assert {"head.weight", "head.bias"} <= moved_on
    assert steps == told["pretrain_steps"] == 6
    assert told["steps"] == 2
    assert told["pretrain_last_loss"] < told["pretrain_first_loss"]


def test_it_is_of_the_first_round_alone_also_when_resumed(folder):
    options = {"critic": {"pretrain_steps": 2}}
    learner = tuner(folder, **options)
    samples = random_answers(learner.lm)
    assert fit(learner, samples)["pretrain_steps"] == 2
    again = tuner(folder, **options)
    again.load_state_dict(learner.state_dict())
    for one in (learner, again):
        assert "pretrain_steps" not in fit(one, samples)


def test_it_ends_earlier_once_the_loss_is_low_enough(folder):
    critic = {"learning_rate": 1e-2, "pretrain_steps": 200, "pretrain_until": 0.1}
    learner = tuner(folder, critic=critic, batch_size=6)
    told = fit(learner, random_answers(learner.lm))
    assert 2 < told["pretrain_steps"] < 200
    assert told["pretrain_steps"] % 2 == 0, "looked at after a pass through the answers"
    assert told["explained_variance"] > 0.3


# --- contract ---


@pytest.mark.parametrize("options", [{}, MAX, {**MAX, "adapter": "lora", "rank": 4, "dropout": 0.1}])
def test_it_keeps_the_contract_of_a_fine_tuner(folder, options):
    """Learns, is deterministic, and resumes to the bit: weights, critic, both optimizers, history, beta."""
    lm = load(LMConfig(base=str(folder), device="cpu"), str)
    samples, written = random_answers(lm), written_rows(lm, written_prompts())
    check_finetuner(lambda: tuner(folder, written=written, **options), selected(samples), samples).demand()


def test_the_state_names_what_it_holds(folder):
    learner = tuner(folder, **MAX, written=written_rows(tuner(folder).lm, written_prompts()))
    fit(learner, random_answers(learner.lm))
    state = learner.state_dict()
    assert set(state) == {"weights", "optimizer", "critic", "critic_optimizer", "ppo"}
    assert {"head.weight", "head.bias"} <= set(state["critic"])
    assert {"rounds", "steps", "critic_steps", "beta", "reward_count", "reward_mean", "reward_squares"} == set(
        state["ppo"]
    )


def test_the_base_is_what_it_was(folder):
    learner, untouched = tuner(folder, learning_rate=1e-2), load(LMConfig(base=str(folder), device="cpu"), str)
    samples = random_answers(learner.lm)
    fit(learner, samples)
    ids = torch.tensor([[1, 4, 5, 6, 7]])
    with torch.no_grad():
        assert not torch.equal(learner.lm.model(ids).logits, untouched.model(ids).logits)
        with learner.base_weights():
            assert torch.equal(learner.lm.model(ids).logits, untouched.model(ids).logits)
    assert learner.parameter_count() == sum(one.numel() for one in untouched.model.parameters())


def test_bfloat16_trains_in_float32_weights(folder):
    learner = tuner(folder, dtype="bfloat16", **MAX | {"ptx": None})
    samples = random_answers(learner.lm)
    first = {name: weight.clone() for name, weight in learner.trainable.live.items()}
    told = fit(learner, samples)
    assert all(math.isfinite(value) for value in told.values())
    assert told["kl"] == pytest.approx(0, abs=0.2)
    assert any(not torch.equal(first[name], weight) for name, weight in learner.trainable.live.items())
    assert {weight.dtype for weight in learner.trainable.live.values()} == {torch.float32}
    assert learner.lm.model.dtype == torch.bfloat16


# --- figures ---


def test_the_figures_of_a_buffer(folder):
    learner = tuner(folder, **PLAIN)
    samples = random_answers(learner.lm)
    with learner.actor.training(), learner.critic.training():
        buffer = learner._buffer(selected(samples), samples)
        found = figures(buffer, buffer.reward, learner._estimated(buffer, buffer.reward, 1.0))
    lengths = [len(one.aux["tokens"]) for one in samples.values()]
    assert found["length"] == pytest.approx(sum(lengths) / len(lengths))
    lps = torch.cat([one.aux["logprobs"] for one in samples.values()])
    assert found["perplexity"] == pytest.approx(float(lps.mean().neg().exp()), rel=1e-4)
    assert found["kl"] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(
    ("rewards", "tail"),
    [([0.0, 0.5, 1.0], 0.5), ([0.0, 0.1, 1.0], 0.9), ([0.0, 0.9, 1.0], 0.1), ([0.3, 0.3, 0.3], 0.5)],
)
def test_a_long_upper_tail_of_the_rewards_shows(folder, rewards, tail):
    learner = tuner(folder)
    samples = dict(list(random_answers(learner.lm).items())[:3])
    items = tuple(Item((key,), scores=(reward,)) for key, reward in zip(samples, rewards, strict=True))
    told = learner.fit(Selection("all", items), samples, seed=0, report=silent)
    assert told["reward_tail"] == pytest.approx(tail, abs=0.01)


# --- where it stops ---


def test_answers_without_log_probabilities_are_refused(folder):
    learner = tuner(folder)
    samples = {
        key: Sample(one.round, one.prompt, one.index, 0, "dataset", "good", {})
        for key, one in random_answers(learner.lm).items()
    }
    with pytest.raises(UserError, match="comes without the log-probabilities of its tokens"):
        fit(learner, samples)


def test_a_selection_without_rewards_is_refused(folder):
    learner = tuner(folder)
    samples = random_answers(learner.lm)
    with pytest.raises(UserError, match="selected without its reward; use the selector 'all'"):
        learner.fit(Selection("all", tuple(Item((key,)) for key in samples)), samples, seed=0, report=silent)


def test_the_state_of_another_fine_tuner_is_refused(folder):
    learner = tuner(folder)
    state = learner.state_dict()
    with pytest.raises(UserError, match="holds no critic: the fine-tuner was another than ppo"):
        learner.load_state_dict({name: part for name, part in state.items() if name != "critic"})
    with pytest.raises(UserError, match="finetuner.adapter was different"):
        tuner(folder, adapter="lora").load_state_dict(state)


def test_data_without_answers_cannot_be_learnt_beside(folder):
    lm = load(LMConfig(base=str(folder), device="cpu"), str)
    with pytest.raises(UserError, match=r"finetuner.ptx.data: no prompt comes with an answer"):
        written_rows(lm, [Prompt("p", "film", "film", "film")])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"reward_clip": 0.0}, "reward_clip: this should be more than 0"),
        ({"critic": {"learing_rate": 1}}, "Did you mean 'learning_rate'"),
        ({"kl": {"adaptive": {}}}, "kl.adaptive.target: this key is required"),
    ],
)
def test_a_config_that_cannot_be_meant_is_a_sentence(options, sentence):
    """A clip of 0 would make every reward 0, as a released script does."""
    with pytest.raises(UserError, match=sentence):
        check(PpoConfig, options)


def test_float16_is_refused(folder):
    with pytest.raises(UserError, match="float16 needs its gradients scaled"):
        tuner(folder, precision="float16")


def test_a_loss_that_is_no_number_names_whose_rate_to_lower(folder):
    learner = tuner(folder, critic={"learning_rate": 1e-3})
    learner.critic.trainable.live["head.weight"].fill_(math.inf)
    learner.critic.trainable.rest(None)
    with pytest.raises(UserError, match=r"no longer a number"):
        fit(learner, random_answers(learner.lm))


# --- recipes ---


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        (
            "ranker.selector.type=best_of_k",
            "it selects candidates, each with a weight, and the fine-tuner 'ppo' learns from all candidates",
        ),
        ("sampler={type: dataset}", "the fine-tuner 'ppo' learns from the policy's own fresh answers"),
        ("sampler.decoding.temperature=0.7", "the fine-tuner 'ppo' needs answers drawn from the model itself"),
        ("loop.sample_every=2", "loop.sample_every: the fine-tuner 'ppo' learns from fresh answers"),
        ("loop.replay_rounds=1", "loop.replay_rounds: the fine-tuner 'ppo' learns from fresh answers"),
    ],
)
def test_a_recipe_that_does_not_fit_is_a_sentence(override, sentence):
    with pytest.raises(UserError, match=sentence):
        load_text_recipe(locate("ppo_max"), [override])


def test_the_ablations_are_one_ingredient_from_ppo_max():
    """What differs from ppo_max, by the keys of the recipe."""
    whole = plain(load_text_recipe(locate("ppo_max")))
    found = {
        name: {
            "finetuner.ptx" if "ptx" in key else key for key in differing(whole, plain(load_text_recipe(locate(name))))
        }
        for name in recipes()
        if name.startswith("ppo_max_no_")
    }
    size = {"loop.rounds", "loop.prompts_per_round"}
    assert {name: keys - {"name"} for name, keys in found.items()} == {
        "ppo_max_no_norm": {"finetuner.reward_norm", "finetuner.reward_clip", "finetuner.kl.beta"},
        "ppo_max_no_kl": {"finetuner.kl.beta"},
        "ppo_max_no_critic_init": set(),  # until a reward model is named in the others
        "ppo_max_no_pretraining": {"finetuner.critic.pretrain_steps"},
        "ppo_max_no_grad_clip": {"finetuner.max_grad_norm"},
        "ppo_max_no_value_clip": {"finetuner.value_clip"},
        "ppo_max_no_ptx": {"finetuner.ptx"},
        "ppo_max_no_small_buffer": size,
    }


def test_a_small_buffer_draws_as_many_answers_in_four_times_the_rounds():
    sizes = [load_text_recipe(locate(name)).loop for name in ("ppo_max", "ppo")]
    assert [one.rounds * (one.prompts_per_round or 0) * one.candidates for one in sizes] == [4096, 4096]
    assert sizes[0].rounds == 4 * sizes[1].rounds


def test_the_text_of_the_pretraining_is_sealed():
    """A resumed run refuses other text; where the file lies is no part of what a run is."""
    recipe = load_text_recipe(locate("ppo_max"))
    assert isinstance(recipe.finetuner, PpoConfig)
    assert recipe.finetuner.ptx is not None
    assert len(recipe.finetuner.ptx.data.sha256 or "") == 64
    with pytest.raises(UserError, match="is not what the run began with"):
        read_prompts(recipe.finetuner.ptx.data.model_copy(update={"sha256": "0" * 64}), Path(), "finetuner.ptx.data")


def test_reviews_of_the_pretraining_are_those_of_its_generator():
    prompts = locate("ppo").parents[1] / "prompts"
    rows = (prompts / "reviews_ptx.jsonl").read_text().splitlines()
    assert [json.loads(row) for row in rows] == review_ptx.written()
    held_out = set((prompts / "reviews_held_out.txt").read_text().splitlines())
    assert not held_out & {row["prompt"] for row in review_ptx.written()}
