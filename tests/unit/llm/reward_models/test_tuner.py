"""Training reward models: what a step learns from a pair, how the training is cut, resumed and stopped, and what
contrast and MetaRM add to it."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from raftdiff.embedded import resolve
from raftdiff.embedded.reviews import world
from raftdiff.errors import UserError
from raftdiff.llm.data.preferences import Comparison, PairsConfig, build
from raftdiff.llm.data.prompts import DataConfig
from raftdiff.llm.model import tiny
from raftdiff.llm.model.loading import LMConfig
from raftdiff.llm.model.rows import collate, score
from raftdiff.llm.reward_models.contrast import SimcseConfig, SwavConfig, compared, contrast_loss
from raftdiff.llm.reward_models.losses import bradley_terry, meta_difference
from raftdiff.llm.reward_models.meta import meta_gradients
from raftdiff.llm.reward_models.objective import RewardObjective, Whole, taught
from raftdiff.llm.reward_models.strength import plain
from raftdiff.llm.reward_models.tuner import (
    RewardTuner,
    RewardTunerConfig,
    Tally,
    differences,
    features,
    whole_steps,
)
from raftdiff.llm.reward_models.value_model import load_value_model, score_rows, value_row
from raftdiff.seeds import fold
from raftdiff.training.optimizer import exposure_plan
from raftdiff.types import Prompt, silent

WORDS = ("the", "film", "was", "good", "bad", "dull", "fine", "long")
PLAIN = {"batch_size": 4, "learning_rate": 1e-2, "max_grad_norm": None, "adapter": "full"}
SIMCSE = {"contrast": {"type": "simcse"}, "rows_per_pass": 8}
SWAV = {"contrast": {"type": "swav", "prototypes": 3}, "rows_per_pass": 8}
META = {"meta": {"eta": 0.5, "answers": 3, "batch_size": 2}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("lm") / "tiny", WORDS)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("encoders") / "bert"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS)))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        BertModel(BertConfig(vocab_size=13, **sizes)).save_pretrained(folder)
    return folder


def opened(folder, **options):
    return load_value_model(LMConfig(base=str(folder), device="cpu", **options), str)


def tuner(folder, *, rounds=1, seed=0, model=None, **changes):
    return RewardTuner(
        RewardTunerConfig(**{**PLAIN, **changes}), model or opened(folder), total_rounds=rounds, seed=seed
    )


def some(count=10):
    """Pairs of answers of different length."""
    draw = np.random.default_rng(0)
    found = []
    for place in range(count):
        texts = [" ".join(draw.choice(WORDS, size=draw.integers(1, 6))) for _ in range(2)]
        prompt = Prompt(f"p{place}", WORDS[place % 3], "", "")
        found.append(Comparison(f"p{place}", prompt, texts[0], f"{texts[1]} bad"))
    return found


def answers(model, prompts=5, k=3):
    """The policy's answers to some prompts, of different length."""
    draw = np.random.default_rng(1)
    prompt = Prompt("p", "film", "", "")
    texts = [[" ".join(draw.choice(WORDS, size=draw.integers(1, 6))) for _ in range(k)] for _ in range(prompts)]
    return [[value_row(model, prompt, text) for text in known] for known in texts]


def fit(learner, pairs, annotation=None, *, seed=1, pool=None):
    pool = pool if pool is not None else answers(learner.model) if learner.config.meta else ()
    return learner.fit(
        pairs, plain(len(pairs)) if annotation is None else annotation, pool=pool, seed=seed, report=silent
    )


def same(one, other):
    return one.keys() == other.keys() and all(
        one[stem].keys() == other[stem].keys()
        and all(torch.equal(one[stem][name], other[stem][name]) for name in one[stem])
        for stem in one
    )


def near(one, other, tolerance=1e-5):
    for name, weight in one.trainable.live.items():
        torch.testing.assert_close(weight, other.trainable.live[name], rtol=0, atol=tolerance)


def annotated(count, *, flipped=(), margin=None, smoothing=None):
    known = plain(count)
    known.flipped[list(flipped)] = True
    margin = known.margin if margin is None else np.asarray(margin, dtype=np.float64)
    smoothing = known.smoothing if smoothing is None else np.asarray(smoothing, dtype=np.float64)
    return known._replace(margin=margin, smoothing=smoothing)


def gradients(learner, pairs, annotation=None, **options):
    """Those of the first optimizer step."""
    found = {}

    def keep(*_):
        for name, parameter in learner.trainable.parameters.items():
            if parameter.grad is not None:
                found.setdefault(name, parameter.grad.clone())

    hook = learner.course.optimizer.register_step_pre_hook(keep)
    fit(learner, pairs, annotation, **options)
    hook.remove()
    return found


def compared_all(prompts=3, k=4):
    """Every two of ``k`` answers to each of some prompts."""
    draw, found = np.random.default_rng(2), []
    for place in range(prompts):
        prompt = Prompt(f"p{place}", WORDS[place], "", "")
        texts = [" ".join(draw.choice(WORDS, size=draw.integers(1, 6))) + f" {WORDS[n]}" for n in range(k)]
        found += [Comparison(f"{place}-{a}{b}", prompt, texts[a], texts[b]) for a in range(k) for b in range(a)]
    return found


# What a step learns


def test_the_loss_is_that_of_bradley_terry_with_margin_and_smoothing_on_the_pairs_as_trained(folder):
    pairs = some(4)
    margin, smoothing = [0.5, -0.2, 0.0, 1.0], [0.0, 0.1, 0.0, 0.3]
    d = differences(opened(folder), pairs, batch_size=64)
    d[2] = -d[2]
    wanted = bradley_terry(torch.tensor(d), torch.tensor(margin), torch.tensor(smoothing)).mean()
    figures = fit(tuner(folder), pairs, annotated(4, flipped=[2], margin=margin, smoothing=smoothing))
    assert figures["loss"] == pytest.approx(float(wanted), abs=1e-5)
    assert figures["difference"] == pytest.approx(d.mean(), abs=1e-5)
    assert figures["accuracy"] == pytest.approx((d > 0).mean())
    assert (figures["steps"], figures["pairs"]) == (1, 4)


def test_the_heads_gradient_is_that_of_the_closed_form(folder):
    """dL/dw = mean of -sigma(-d) (h_c - h_r)."""
    pairs = some(4)
    model = opened(folder)
    d, (chosen, rejected) = differences(model, pairs, batch_size=64), features(model, pairs, batch_size=3)
    wanted = (-1 / (1 + np.exp(d))[:, None] * (chosen - rejected)).mean(axis=0)
    found = gradients(tuner(folder), pairs)
    np.testing.assert_allclose(found["head.weight"][0], wanted, atol=1e-6)
    assert float(found["head.bias"].abs()) < 1e-6  # a constant changes no difference


def test_features_are_what_rewards_are_read_from(folder):
    model, pairs = opened(folder), some()
    chosen, rejected = features(model, pairs, batch_size=4)
    assert chosen.shape == rejected.shape == (10, 32)
    head = model.head.weight[0].numpy()
    np.testing.assert_allclose((chosen - rejected) @ head, differences(model, pairs, batch_size=64), atol=1e-5)


def test_an_answer_that_is_in_several_pairs_is_asked_once_and_says_the_same(folder):
    model, pairs = opened(folder), compared_all(3, 4)
    rewards, told = dict[str, float](), []
    for one in pairs:
        texts = (one.chosen, one.rejected)
        rows = [value_row(model, one.prompt, text) for text in texts]
        read = [float(score_rows(model, [row], batch_size=1)) for row in rows]
        rewards |= {(one.prompt.id, text): value for text, value in zip(texts, read, strict=True)}
    wanted = [rewards[one.prompt.id, one.chosen] - rewards[one.prompt.id, one.rejected] for one in pairs]
    found = differences(model, pairs, batch_size=5, report=lambda *done: told.append(done))
    np.testing.assert_allclose(found, wanted, atol=2e-5)
    assert told == [(5, 12), (10, 12), (12, 12)], "18 pairs, 12 answers"
    told.clear()
    chosen, rejected = features(model, pairs, batch_size=12, report=lambda *done: told.append(done))
    assert (told, chosen.shape) == ([(12, 12)], (18, 32))
    np.testing.assert_allclose((chosen - rejected) @ model.head.weight[0].numpy(), wanted, atol=2e-5)


def test_a_flipped_pair_is_the_pair_with_its_answers_exchanged(folder):
    pairs = some()
    turned = [Comparison(one.id, one.prompt, one.rejected, one.chosen) for one in pairs]
    one, other = tuner(folder), tuner(folder)
    fit(one, pairs, annotated(10, flipped=range(10)))
    fit(other, turned)
    assert same(one.state_dict(), other.state_dict())


def test_equal_answers_teach_nothing(folder):
    pairs = [Comparison("p", one.prompt, one.chosen, one.chosen) for one in some()]
    learner = tuner(folder)
    assert all(float(gradient.abs().max()) < 1e-6 for gradient in gradients(learner, pairs).values())


@pytest.mark.parametrize("options", [{}, {"lm_weight": 0.7, "centring": 0.2}, META], ids=["plain", "lm", "meta"])
def test_how_a_step_is_cut_into_passes_changes_nothing(folder, options):
    pairs, told = some(), annotated(10, flipped=[3], margin=np.linspace(-1, 1, 10))
    wanted = gradients(tuner(folder, batch_size=10, rows_per_pass=64, **options), pairs, told)
    for rows in (2, 6):
        found = gradients(tuner(folder, batch_size=10, rows_per_pass=rows, **options), pairs, told)
        for name, gradient in wanted.items():
            torch.testing.assert_close(found[name], gradient, rtol=0, atol=2e-6)


def test_the_cross_entropy_of_the_chosen_answers_is_a_mean_over_their_tokens(folder):
    pairs = some(4)
    model = opened(folder)
    lps = torch.cat(score(model.lm, [value_row(model, one.prompt, one.chosen) for one in pairs], batch_size=4))
    bt = fit(tuner(folder), pairs)["loss"]
    figures = fit(tuner(folder, lm_weight=0.5, rows_per_pass=2), pairs)
    assert figures["lm_loss"] == pytest.approx(-float(lps.mean()), abs=1e-5)
    assert figures["loss"] == pytest.approx(bt - 0.5 * float(lps.mean()), abs=1e-5)


def test_centring_adds_the_square_of_the_sum(folder):
    pairs = some(4)
    model = opened(folder)
    chosen, rejected = (
        score_rows(
            model, [value_row(model, one.prompt, text) for one, text in zip(pairs, texts, strict=True)], batch_size=4
        )
        for texts in ([one.chosen for one in pairs], [one.rejected for one in pairs])
    )
    plain_loss = fit(tuner(folder), pairs)["loss"]
    centred = fit(tuner(folder, centring=0.3), pairs)["loss"]
    assert centred - plain_loss == pytest.approx(0.3 * float((chosen + rejected).square().mean()), abs=1e-5)


def test_a_lora_leaves_the_model_and_trains_the_head(folder):
    learner = tuner(folder, adapter="lora", rank=2)
    before = {name: weight.clone() for name, weight in opened(folder).lm.model.state_dict().items()}
    fit(learner, some())
    with learner.trainable.base_weights():
        for name, weight in learner.model.lm.model.state_dict().items():
            if "lora_" not in name:
                assert torch.equal(weight, before[name.replace(".base_layer", "")])
    assert not torch.equal(learner.model.head.weight, opened(folder).head.weight)


# How the training is cut


def test_the_parts_add_up_to_the_whole_training(folder):
    pairs = some()
    for options in ({}, {"lr_schedule": "cosine", "warmup_steps": 2, "adapter": "lora", "dropout": 0.2}, META):
        whole, cut = (tuner(folder, rounds=rounds, epochs=1.5, **options) for rounds in (1, 4))
        fit(whole, pairs)
        steps = [fit(cut, pairs, seed=1)["steps"] for _ in range(4)]
        assert sum(steps) == 4  # 15 pairs in steps of 4
        assert max(steps) - min(steps) <= 1
        assert whole.course.steps == cut.course.steps == 4
        near(whole, cut, 0)


def test_every_pair_is_seen_as_often_as_epochs_say(folder):
    plan = [exposure_plan(10, 1 << 40, 4, 2.0, fold(seed, "pairs")) for seed in (0, 1)]
    for order in plan:
        assert sorted(place for step in order for place in step) == sorted([*range(10)] * 2)
        assert sorted([*order[0], *order[1], *order[2]][:10]) == [*range(10)]
    assert plan[0] != plan[1]


def test_another_seed_is_another_order_and_that_of_the_first_part_holds(folder):
    pairs = some()
    one, other, mixed = (tuner(folder, rounds=2) for _ in range(3))
    for learner, seeds in ((one, (0, 0)), (other, (1, 1)), (mixed, (0, 1))):
        for seed in seeds:
            fit(learner, pairs, seed=seed)
    assert same(one.state_dict(), mixed.state_dict())
    assert not same(one.state_dict(), other.state_dict())


KINDS = {
    "full": {"lr_schedule": "linear"},
    "lora": {"adapter": "lora", "rank": 2, "dropout": 0.3, "lm_weight": 0.5},
    "simcse": {**SIMCSE, "adapter": "lora", "rank": 2},
    "swav": SWAV,
    "meta": {**META, "adapter": "lora", "rank": 2, "dropout": 0.2},
    "meta with contrast": {**META, **SWAV},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_that_was_killed_goes_on_to_the_bit(folder, kind, tmp_path):
    pairs = some()
    straight = tuner(folder, rounds=2, epochs=2, **KINDS[kind])
    fit(straight, pairs)
    kept = {
        stem: {name: tensor.clone() for name, tensor in part.items()} for stem, part in straight.state_dict().items()
    }
    fit(straight, pairs)
    resumed = tuner(folder, rounds=2, epochs=2, **KINDS[kind])
    resumed.load_state_dict(kept)
    assert same(resumed.state_dict(), kept)
    fit(resumed, pairs)
    assert same(resumed.state_dict(), straight.state_dict())
    assert not same(resumed.state_dict(), kept)
    np.testing.assert_array_equal(*(differences(one.model, pairs, batch_size=4) for one in (straight, resumed)))


@pytest.mark.parametrize("options", [{}, SIMCSE, {"adapter": "lora", "dropout": 0.2, "rank": 2}])
def test_nothing_is_drawn_from_the_global_generator_nor_left_in_it(folder, options):
    learner = [tuner(folder, **options) for _ in range(2)]
    torch.manual_seed(5)
    fit(learner[0], some())
    torch.manual_seed(6)
    state = torch.random.get_rng_state()
    fit(learner[1], some())
    assert torch.equal(torch.random.get_rng_state(), state)
    near(*learner, 0)


def test_afterwards_the_network_is_at_rest(folder):
    for options in ({}, SIMCSE, {"adapter": "lora"}):
        learner = tuner(folder, **options)
        fit(learner, some())
        model = learner.model
        assert not any(p.requires_grad for p in (*model.lm.model.parameters(), *model.head.parameters()))
        assert not model.lm.model.training
        assert not model.lm.model.get_input_embeddings()._forward_hooks


def test_half_precision_computes_and_keeps_small_updates(folder):
    model = opened(folder, dtype="bfloat16")
    learner = tuner(folder, model=model, learning_rate=1e-5, adapter="lora", rank=2)
    fit(learner, some())
    assert learner.trainable.live["head.weight"].dtype == torch.float32
    assert model.head.weight.dtype == torch.float32
    assert 0 < float((model.head.weight - opened(folder).head.weight).abs().max()) < 1e-3


# Contrast


@pytest.mark.parametrize("options", [SIMCSE, SWAV])
def test_contrast_without_dropout_is_the_loss_of_two_equal_views(folder, options):
    pairs = some(4)
    told = {**options, "contrast": {**options["contrast"], "dropout": 0.0, "weight": 0.3}}
    learner = tuner(folder, **told)
    contrast = learner.config.contrast
    chosen, rejected = (torch.tensor(part) for part in features(learner.model, pairs, batch_size=4))
    both = compared(contrast.form, chosen, rejected)
    wanted = float(contrast_loss(contrast, both, both, learner.objective.prototypes))
    bt = fit(tuner(folder), pairs)["loss"]
    figures = fit(learner, pairs)
    assert figures["contrast"] == pytest.approx(wanted, abs=1e-4)
    assert figures["loss"] == pytest.approx(bt + 0.3 * wanted, abs=1e-4)
    assert figures["network_evaluations"] == 2 * fit(tuner(folder), pairs)["network_evaluations"]


def test_the_two_views_differ_by_dropout_and_each_counts_half_in_the_preference_loss(folder, monkeypatch):
    learner = tuner(folder, contrast={"type": "simcse", "weight": 0.0}, rows_per_pass=8)
    views, read = [], RewardObjective._view

    def keep(self, pairs, whole):
        views.append(read(self, pairs, whole))
        return views[-1]

    monkeypatch.setattr(RewardObjective, "_view", keep)
    with torch.no_grad():
        rows = taught(learner.model, some(4), plain(4))
        loss = float(learner.objective.loss(rows, Whole(4, 20)).loss)
    one, two = (
        float(bradley_terry(learner.model.read(v.chosen - v.rejected) - learner.model.head.bias).mean()) for v in views
    )
    assert abs(one - two) > 1e-3
    assert loss == pytest.approx((one + two) / 2, abs=1e-5)


def test_the_forms_of_contrast():
    chosen, rejected = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, 3.0]])
    assert compared("direct", chosen, rejected).tolist() == [[1.0, 2.0], [0.5, 3.0]]
    assert compared("difference", chosen, rejected).tolist() == [[0.5, -1.0], [-0.5, 1.0]]


def test_contrast_takes_the_worked_numbers():
    s, t = torch.eye(2), torch.tensor([[0.8, 0.6], [0.6, 0.8]])
    assert float(contrast_loss(SimcseConfig(temperature=0.05), s, t, None)) == pytest.approx(0.01815, abs=2e-6)
    prototypes = nn.Linear(2, 2, bias=False)
    prototypes.weight.data = 3 * torch.eye(2)
    config = SwavConfig(temperature=0.1, epsilon=0.5, iterations=3)
    assert float(contrast_loss(config, s, t, prototypes).detach()) == pytest.approx(4.378503, abs=2e-6)


def test_swavs_prototypes_are_learnt_and_kept(folder):
    learner = tuner(folder, **SWAV)
    before = learner.objective.prototypes.weight.clone()
    fit(learner, some())
    assert not torch.equal(learner.objective.prototypes.weight, before)
    assert learner.state_dict()["weights"]["prototypes.weight"].shape == (3, 32)
    with pytest.raises(UserError, match=r"'prototypes\.weight' is missing"):
        tuner(folder, **SWAV).load_state_dict(tuner(folder).state_dict())


def test_contrast_pulls_the_two_views_of_a_text_together_against_the_others(folder):
    pairs = some()
    options = {**SIMCSE, "batch_size": 10, "rows_per_pass": 20, "learning_rate": 3e-3, "epochs": 20}
    options["contrast"] = {"type": "simcse", "dropout": 0.2, "temperature": 0.2}
    learner = tuner(folder, rounds=2, **options)
    first, last = (fit(learner, pairs)["contrast"] for _ in range(2))
    assert last < 0.8 * first


# MetaRM


def test_meta_takes_the_worked_numbers():
    """Linear rewards, plain gradient descent, eta = alpha = 0.1; see the notes on MetaRM."""
    theta = nn.Parameter(torch.tensor([0.5, -0.2]))
    shown, chosen, rejected = (
        torch.tensor([[1.0, 0], [0, 1], [1, 1]]),
        torch.tensor([1.0, 0.5]),
        torch.tensor([0.2, 0.8]),
    )
    seen = {}

    def ascent():
        j = meta_difference((shown @ theta)[None])
        torch.autograd.backward(j)
        seen.update(j=float(j.detach()), grad_j=theta.grad.tolist())

    def descent():
        seen["theta'"] = theta.tolist()
        loss = bradley_terry(((chosen - rejected) @ theta)[None]).mean()
        torch.autograd.backward(loss)
        seen["loss"] = float(loss.detach())

    before = bradley_terry(((chosen - rejected) @ theta)[None]).mean().detach()
    moved = meta_gradients([theta], ascent, descent, 0.1)
    near_to = {"abs": 2e-6}
    assert float(moved) == pytest.approx(0.1 * math.hypot(0.101493, -0.104273), **near_to)
    assert seen["j"] == pytest.approx(0.408996, **near_to)
    assert seen["grad_j"] == pytest.approx([0.101493, -0.104273], **near_to)
    assert seen["theta'"] == pytest.approx([0.510149, -0.210427], **near_to)
    assert (float(before), seen["loss"]) == (pytest.approx(0.489367, **near_to), pytest.approx(0.48503, **near_to))
    assert theta.grad.tolist() == pytest.approx([-0.307457, 0.115296], **near_to)
    assert theta.tolist() == torch.tensor([0.5, -0.2]).tolist()  # the original, to the bit
    torch.optim.SGD([theta], lr=0.1).step()
    assert theta.tolist() == pytest.approx([0.530746, -0.21153], **near_to)


def test_without_eta_meta_is_the_plain_step_to_the_bit(folder):
    pairs, meta = some(), {"meta": {"eta": 0.0, "answers": 3, "batch_size": 2}}
    for options in ({}, SWAV, {"adapter": "lora", "rank": 2, "dropout": 0.2}):
        one, other, real = (tuner(folder, **options, **told) for told in ({}, meta, META))
        for learner in (one, other, real):
            fit(learner, pairs)
        near(one, other, 0)
        assert not same(real.state_dict(), other.state_dict())


def test_the_policys_answers_raise_j_along_the_ascent(folder):
    """A small step along what ``_ascend`` finds raises J by its length times the gradient's."""
    learner = tuner(folder, **META)
    shown, step = answers(learner.model, prompts=4), 1e-3
    with learner._training():
        learner._ascend(shown, 1, 0, Tally())
        known = [p for p in learner.trainable.parameters.values() if p.grad is not None]
        slope = math.sqrt(sum(float(p.grad.double().square().sum()) for p in known))
        with torch.no_grad():
            before = float(learner.objective.separation(shown))
            for parameter in known:
                parameter.add_(parameter.grad, alpha=step / slope)
            after = float(learner.objective.separation(shown))
    assert slope > 1e-3
    assert after - before == pytest.approx(step * slope, rel=0.05)


def test_answers_in_the_same_words_change_nothing(folder):
    pairs, alone, with_meta = some(), tuner(folder), tuner(folder, **META)
    row = value_row(with_meta.model, Prompt("p", "film", "", ""), "good")
    fit(alone, pairs)
    figures = fit(with_meta, pairs, pool=[[row] * 3] * 4)
    near(alone, with_meta)
    assert figures["separation"] == pytest.approx((3 - 1) / (2 * 3), abs=1e-6)
    assert figures["ascent"] == pytest.approx(0, abs=1e-6)


def test_the_weights_come_back_when_the_descent_fails():
    theta = nn.Parameter(torch.tensor([0.1, 0.2]))

    def ascent():
        theta.grad = torch.ones(2)

    def descent():
        assert theta.tolist() != torch.tensor([0.1, 0.2]).tolist()
        raise RuntimeError

    with pytest.raises(RuntimeError):
        meta_gradients([theta], ascent, descent, 0.7)
    assert theta.tolist() == torch.tensor([0.1, 0.2]).tolist()


def test_meta_learns_from_the_first_k_answers_only(folder):
    pairs, one, other = some(), tuner(folder, **META), tuner(folder, **META)
    pool = answers(one.model, k=5)
    fit(one, pairs, pool=pool)
    fit(other, pairs, pool=[known[:3] for known in pool])
    assert same(one.state_dict(), other.state_dict())


# What is learnt


def test_a_reward_model_learns_to_tell_good_reviews_from_bad_ones():
    pairs = build(PairsConfig(data=DataConfig(file="configs/prompts/reviews_pairs.jsonl")), Path(), "pairs")
    shown, held_out = pairs[:160], pairs[340:]
    model = load_value_model(LMConfig(base="review-lm", device="cpu"), resolve)
    before = (differences(model, held_out, batch_size=64) > 0).mean()
    config = RewardTunerConfig(adapter="full", learning_rate=1e-3, batch_size=16)
    fit(RewardTuner(config, model, total_rounds=1, seed=0), shown)
    d = differences(model, held_out, batch_size=64)
    assert before < 0.7
    assert (d > 0).mean() >= 0.8
    truth = [true_difference(one) for one in held_out]
    assert np.corrcoef(d, truth)[0, 1] > 0.3  # clearer pairs are told further apart


def true_difference(pair):
    better, worse = (world.reward(pair.prompt.caption, text) for text in (pair.chosen, pair.rejected))
    return better - worse


@pytest.mark.parametrize(("network", "adapter"), [("folder", "lora"), ("bert", "full"), ("bert", "lora")])
def test_decoders_and_encoders_learn_a_word(request, network, adapter):
    """The better answer holds "good" somewhere, the worse one "bad" in its place."""
    draw = np.random.default_rng(2)
    pairs = []
    for place in range(48):
        words = list(draw.choice(["the", "film", "was", "long"], size=4))
        at = int(draw.integers(4))
        one, other = ([*words[:at], word, *words[at + 1 :]] for word in ("good", "bad"))
        pairs.append(Comparison(f"p{place}", Prompt(f"p{place}", "film", "", ""), " ".join(one), " ".join(other)))
    modules = {"target_modules": ("query", "key", "value", "dense")} if network == "bert" and adapter == "lora" else {}
    learner = tuner(
        request.getfixturevalue(network), adapter=adapter, epochs=4, batch_size=8, learning_rate=5e-3, rank=4, **modules
    )
    fit(learner, pairs[:32])
    assert (differences(learner.model, pairs[32:], batch_size=8) > 0).mean() >= 0.9


# Sentences


def test_a_training_that_is_over_is_a_sentence(folder):
    learner = tuner(folder)
    fit(learner, some())
    with pytest.raises(UserError, match="all 1 parts of the training are done"):
        fit(learner, some())


def test_what_does_not_belong_together_is_a_sentence(folder):
    with pytest.raises(UserError, match="10 pairs with 3 annotations"):
        fit(tuner(folder), some(), plain(3))
    with pytest.raises(UserError, match="0 pairs with 0 annotations"):
        fit(tuner(folder), [])
    with pytest.raises(UserError, match=r"tuner\.meta: MetaRM needs answers of the current policy"):
        fit(tuner(folder, **META), some(), pool=())
    short = tuner(folder, **META)
    with pytest.raises(UserError, match=r"tuner\.meta: 3 answers to each prompt are needed, and one has 2"):
        fit(short, some(), pool=answers(short.model, k=2))


def test_models_that_cannot_learn_it_are_sentences(folder, bert):
    with pytest.raises(UserError, match=r"tuner\.lm_weight: '.*bert' is an encoder"):
        tuner(bert, lm_weight=1.0)
    with pytest.raises(UserError, match=r"model\.dtype: float16 needs its gradients scaled"):
        tuner(folder, model=opened(folder, dtype="float16"))
    with pytest.raises(UserError, match=r"^tuner\.target_modules: no layer of the model ends in any of nothing"):
        tuner(folder, adapter="lora", target_modules=("nothing",))
    model = opened(folder)
    tuner(folder, model=model, adapter="lora")
    with pytest.raises(UserError, match="already carries a LoRA"):
        tuner(folder, model=model)


def test_contrast_that_does_not_see_its_step_is_refused():
    with pytest.raises(ValueError, match=r"rows_per_pass \(64\) must hold both answers of all 33 of them; make it 66"):
        RewardTunerConfig(batch_size=33, contrast={"type": "simcse"})
    assert RewardTunerConfig(batch_size=33).batch_size == 33


def test_states_of_another_tuner_are_refused(folder):
    state = tuner(folder).state_dict()
    with pytest.raises(UserError, match=r"holds no 'adapter' weights: tuner\.adapter was different"):
        tuner(folder, adapter="lora").load_state_dict(state)
    lora = tuner(folder, adapter="lora", rank=2).state_dict()
    with pytest.raises(UserError, match="has another shape"):
        tuner(folder, adapter="lora", rank=4).load_state_dict(lora)


def test_a_loss_that_is_no_number_stops_with_a_sentence(folder):
    with pytest.raises(
        UserError, match=r"^tuner: the loss is no longer a number at step 1\. Lower tuner\.learning_rate"
    ):
        fit(tuner(folder), some(), annotated(10, margin=[math.nan] * 10))


def test_a_batch_of_one_pair_trains(folder):
    pairs = some(1)
    for options in ({}, SIMCSE, META):
        assert math.isfinite(fit(tuner(folder, **options), pairs)["loss"])
    assert collate([value_row(opened(folder), pairs[0].prompt, "good")], 0).answer_tokens == 2


# All pairs of a prompt


@pytest.mark.parametrize("lm_weight", [0.0, 0.3])
def test_an_answer_in_several_pairs_is_read_once_and_teaches_the_same(folder, lm_weight):
    """One pass of whole prompts against passes of single pairs: the same gradient, from a reading of each answer."""
    pairs = compared_all()
    options = {"batch_size": 18, "whole_prompts": True, "lm_weight": lm_weight, "centring": 0.1}
    together, apart = (tuner(folder, rows_per_pass=rows, **options) for rows in (64, 2))
    one, other = gradients(together, pairs), gradients(apart, pairs)
    assert one.keys() == other.keys()
    for name, gradient in one.items():
        torch.testing.assert_close(gradient, other[name], rtol=1e-4, atol=1e-6)

    def read(texts):
        prompts = {pair.prompt.caption: pair.prompt for pair in pairs}
        return sum(value_row(together.model, prompts[asked], text).tokens for asked, text in texts)

    chosen, rejected = (
        [(pair.prompt.caption, getattr(pair, side)) for pair in pairs] for side in ("chosen", "rejected")
    )
    once = [*chosen, *set(rejected)] if lm_weight else set(chosen) | set(rejected)
    figures = fit(tuner(folder, rows_per_pass=64, **options), pairs)
    assert figures["network_evaluations"] == read(once) < read(chosen + rejected)


def test_steps_take_whole_prompts_each_as_often_as_the_epochs_say():
    prompts = [name for name in "abcde" for _ in range(3)] + ["f"]
    groups = [[place for place, other in enumerate(prompts) if other == name] for name in "abcdef"]
    steps = whole_steps(groups, 4, 2.0, seed=3)
    assert sorted(place for step in steps for place in step) == sorted([*range(16), *range(16)])
    for step in steps:
        assert all({place for place, name in enumerate(prompts) if name == prompts[one]} <= set(step) for one in step)
    assert all(len(step) >= 4 for step in steps[:-1])
    assert steps != whole_steps(groups, 4, 2.0, seed=4)


def test_whole_prompts_and_contrast_are_refused():
    with pytest.raises(ValueError, match="contrast sets the texts of a step apart, and whole_prompts repeats them"):
        RewardTunerConfig(**{**PLAIN, **SIMCSE, "whole_prompts": True})
