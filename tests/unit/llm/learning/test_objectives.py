"""What the objectives make of a batch: the pure functions' losses, on the answers' tokens and nothing else."""

import math
from functools import cache

import numpy as np
import pytest
import torch

from raftdiff.llm.learning import preference_losses
from raftdiff.llm.learning.finetuner import LMFineTunerConfig
from raftdiff.llm.learning.objectives import Lesson, Whole
from raftdiff.llm.learning.policy_gradient import clipped_objective
from raftdiff.llm.learning.rrhf import rank_loss, rrhf
from raftdiff.llm.model import tiny
from raftdiff.llm.model.loading import LMConfig, load
from raftdiff.llm.model.network import Moment, Network
from raftdiff.llm.model.rows import Batch, Row, collate, row_of, score
from raftdiff.llm.model.tokens import aggregate, means, sums
from raftdiff.selection.lessons import RankedConfig
from raftdiff.types import Item, Key, Prompt, Sample, Scores, Selection, silent

WORDS = ("the", "film", "was", "good", "bad", "dull", "fine", "long")
PAIRS = ("dpo", "cdpo", "robust", "ipo", "hinge", "simpo", "orpo")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("lm") / "tiny", WORDS)


def open_lm(folder, dtype="float32"):
    return load(LMConfig(base=str(folder), dtype=dtype, device="cpu"), str)


def tuner(folder, objective, *, dtype="float32", **changes):
    options = {"rank": 4, "learning_rate": 1e-2, "batch_size": 64, "objective": objective, **changes}
    return LMFineTunerConfig(**options).build(open_lm(folder, dtype), total_rounds=3, max_tokens=8, seed=0)


def answers(lm, texts=("good film", "bad", "the film was dull", "fine fine long"), prompts=("the film", "was")):
    """Each text as an answer to each prompt, with its log-probabilities under ``lm`` as it stands."""
    samples = [
        Sample(0, Prompt(f"p{p}", prompt, prompt, prompt), k, k, "policy", text)
        for p, prompt in enumerate(prompts)
        for k, text in enumerate(texts)
    ]
    rows = [row_of(lm, sample, learning=True) for sample in samples]
    lps = score(lm, rows, batch_size=64)
    return {
        one.key: Sample(
            0, one.prompt, one.index, 0, "policy", one.media, {"tokens": torch.tensor(row.answer), "logprobs": lp}
        )
        for one, row, lp in zip(samples, rows, lps, strict=True)
    }


def p(index, prompt=0):
    return Key(0, f"p{prompt}", index)


def pairs():
    return Selection("pairs", (Item((p(0), p(1))), Item((p(2, 1), p(3, 1))), Item((p(3), p(2)))))


def labelled():
    return Selection("labelled", tuple(Item((p(k, q),), 1.0 if k % 2 else -1.0) for k in range(4) for q in range(2)))


def advantages(*values):
    return Selection("advantages", tuple(Item((p(k),), a) for k, a in enumerate(values)))


def fit(learner, selection, samples, seed=1):
    return learner.fit(selection, samples, seed=seed, report=silent)


def gradients(learner, selection, samples):
    found = {}

    def keep(*_):
        found.update({name: q.grad.clone() for name, q in learner.trainable.parameters.items() if q.grad is not None})

    hook = learner.course.optimizer.register_step_pre_hook(keep)
    fit(learner, selection, samples)
    hook.remove()
    return found


def close(one, other, **tolerance):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], **{"rtol": 1e-4, "atol": 1e-6, **tolerance})


@cache
def taught(folder):
    """Answers, and the adapter after two rounds of another kind of learning from them; not to be changed."""
    teacher = tuner(folder, {"type": "sft"})
    samples = answers(teacher.lm)
    weights = (1.0, 0.1, 2.0, 0.5, 0.0, 3.0, 0.2, 1.0)
    for seed in (3, 4):
        fit(teacher, Selection("weighted", tuple(map(lambda k, w: Item((k,), w), samples, weights))), samples, seed)
    return samples, teacher.state_dict()["adapter"]


def moved(folder, objective, **changes):
    """A fine-tuner after a round of another kind of learning: policy, base and sampler are three."""
    samples, adapter = taught(folder)
    learner = tuner(folder, objective, **changes)
    learner.load_state_dict({"adapter": {name: weight.clone() for name, weight in adapter.items()}})
    return learner, samples


def lps(lm, samples, keys):
    return score(lm, [row_of(lm, samples[key], learning=True) for key in keys], batch_size=64)


# --- the losses of a round are the pure functions' ---


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("average", [True, False])
def test_pair_losses_in_the_second_round(folder, name, average):
    """The reference is the base model still, not the policy at the start of the round."""
    options = {"beta": 0.3, "smoothing": 0.1, "gamma": 0.4, "orpo_weight": 0.2, "ipo_average": average}
    learner, samples = moved(folder, {"type": "preference", "loss": name, **options})
    keys = [key for item in pairs().items for key in item.keys]
    policy, base = lps(learner.lm, samples, keys), lps(open_lm(folder), samples, keys)

    def sides(values, measure):
        found = torch.stack([measure(lp) for lp in values])
        return found[0::2], found[1::2]

    mean_of = torch.mean if average and name == "ipo" else torch.sum
    (pc, pr), (qc, qr) = sides(policy, mean_of), sides(base, mean_of)
    h, (ac, ar) = preference_losses.reference_margin(pc, qc, pr, qr), sides(policy, torch.mean)
    expected = {
        "dpo": lambda: preference_losses.dpo(h, 0.3),
        "cdpo": lambda: preference_losses.dpo(h, 0.3, 0.1),
        "robust": lambda: preference_losses.robust_dpo(h, 0.3, 0.1),
        "ipo": lambda: preference_losses.ipo(h, 0.3),
        "hinge": lambda: preference_losses.hinge(h, 0.3),
        "simpo": lambda: preference_losses.simpo(ac, ar, 0.3, 0.4),
        "orpo": lambda: preference_losses.orpo(ac, ar, 0.2),
    }[name]()
    figures = fit(learner, pairs(), samples)
    assert float(h.abs().min()) > 0.01
    assert figures["loss"] == pytest.approx(float(expected.mean()), abs=1e-5)
    margin = ac - ar if name in ("simpo", "orpo") else h
    assert figures["margin"] == pytest.approx(float(margin.mean()), abs=1e-5)
    assert figures["accuracy"] == pytest.approx(float((margin > 0).float().mean()))


def test_kto_in_the_second_round(folder):
    """Its reference point: the drift on answers to other prompts."""
    objective = {"type": "kto", "beta": 0.3, "desirable_weight": 1.5, "undesirable_weight": 0.5}
    learner, samples = moved(folder, objective)
    two = Selection("labelled", (Item((p(0),), 1.0), Item((p(2, 1),), -1.0)))
    keys, base = [p(0), p(2, 1)], open_lm(folder)
    h = torch.stack(
        [a.sum() - b.sum() for a, b in zip(*(lps(lm, samples, keys) for lm in (learner.lm, base)), strict=True)]
    )
    rows = [row_of(base, samples[key], learning=True) for key in keys]
    swapped = [Row(rows[0].prompt, rows[1].answer), Row(rows[1].prompt, rows[0].answer)]
    drift = [
        a.sum() - b.sum() for a, b in zip(*(score(lm, swapped, batch_size=2) for lm in (learner.lm, base)), strict=True)
    ]
    z = preference_losses.kto_reference_point(torch.stack(drift))
    expected = preference_losses.kto(
        h, torch.tensor([True, False]), z, 0.3, desirable_weight=1.5, undesirable_weight=0.5
    )
    figures = fit(learner, two, samples)
    assert figures["loss"] == pytest.approx(float(expected.mean()), abs=1e-5)
    assert figures["reference_point"] == pytest.approx(float(z), abs=1e-4)


@pytest.mark.parametrize("options", [{}, {"ft": "mean", "rank_weight": 10.0}, {"compat_official": True}])
def test_rrhf(folder, options):
    learner, samples = moved(folder, {"type": "rrhf", **options})
    ranking = Selection(
        "ranked",
        (
            Item((p(1), p(0), p(2), p(3)), scores=(3.0, 2.0, 2.0, -1.0)),
            Item((p(3, 1), p(0, 1)), scores=(1.0, 0.5)),
        ),
    )
    keys = [key for item in ranking.items for key in item.keys]
    rows = [row_of(learner.lm, samples[key], learning=True) for key in keys]
    batch = collate(rows, 0)
    lp = torch.zeros(batch.mask.shape).masked_scatter(batch.mask, torch.cat(lps(learner.lm, samples, keys)))
    group, scores = torch.tensor([0, 0, 0, 0, 1, 1]), torch.tensor([3.0, 2, 2, -1, 1, 0.5])
    # the order of the rows in a step is the plan's; but for the released code's padding nothing depends on it
    expected = rrhf(lp, batch.mask, group, scores, **options)
    figures = fit(learner, ranking, samples)
    assert float(expected.rank) > 0.01
    assert figures["loss"] == pytest.approx(float(expected.total), rel=1e-5)
    assert figures["rank_loss"] == pytest.approx(float(expected.rank), abs=1e-5)
    assert figures["ft_loss"] == pytest.approx(float(expected.ft), abs=1e-5)


@pytest.mark.parametrize("how", ["token_mean", "seq_mean_token_mean", "seq_mean_token_sum", "dr_grpo"])
@pytest.mark.parametrize("beta", [0.0, 0.2])
def test_policy_gradients_off_the_policy_that_sampled(folder, how, beta):
    learner, samples = moved(
        folder, {"type": "policy_gradient", "aggregation": how, "beta": beta, "clip_low": 0.1, "clip_high": 0.3}
    )
    keys = [p(k) for k in range(4)]
    batch = collate([row_of(learner.lm, samples[key], learning=True) for key in keys], 0)

    def laid_out(values):
        return torch.zeros(batch.mask.shape).masked_scatter(batch.mask, torch.cat(list(values)))

    base = laid_out(lps(open_lm(folder), samples, keys))
    found = clipped_objective(
        laid_out(lps(learner.lm, samples, keys)),
        laid_out(samples[key].aux["logprobs"] for key in keys),
        torch.tensor([1.0, -0.5, 2.0, -1.5]),
        batch.mask,
        clip_low=0.1,
        clip_high=0.3,
        reference=base,
        beta=beta,
    )
    old = laid_out(samples[key].aux["logprobs"] for key in keys)
    told = Lesson(batch, torch.arange(4), torch.tensor([1.0, -0.5, 2.0, -1.5]), torch.zeros(4), old, base)
    with learner._training():
        whole = Whole(batch.answer_tokens, 4, 8)
        loss, figures = learner.objective.loss(told, whole, learner.network, Moment(0, 0.0, 1))
    expected = aggregate(found.losses, batch.mask, how, max_length=8)
    assert float(found.clip_fraction) > 0
    assert float(loss.detach()) == pytest.approx(float(expected), abs=1e-5)
    assert figures["clip_fraction"] == pytest.approx(float(found.clip_fraction))
    assert figures["approx_kl"] == pytest.approx(float(found.approx_kl), rel=1e-3)


@pytest.mark.parametrize("how", ["token_mean", "seq_mean_token_mean", "seq_mean_token_sum", "dr_grpo"])
def test_sft(folder, how):
    learner, samples = moved(folder, {"type": "sft", "aggregation": how})
    keys, weights = [p(k) for k in range(4)], (1.0, 0.5, 2.0, 0.25)
    found = lps(learner.lm, samples, keys)
    total = sum(-w * float(lp.sum()) for lp, w in zip(found, weights, strict=True))
    expected = {
        "token_mean": total / sum(map(len, found)),
        "seq_mean_token_mean": sum(-w * float(lp.mean()) for lp, w in zip(found, weights, strict=True)) / 4,
        "seq_mean_token_sum": total / 4,
        "dr_grpo": total / (4 * 8),
    }[how]
    selection = Selection("weighted", tuple(Item((key,), w) for key, w in zip(keys, weights, strict=True)))
    assert fit(learner, selection, samples)["loss"] == pytest.approx(expected, abs=1e-5)


# --- where the policy is still the base ---

AT_BASE = {
    "dpo": (math.log(2), {}),
    "cdpo": (math.log(2), {"smoothing": 0.1}),
    "robust": (math.log(2), {"smoothing": 0.1}),
    "hinge": (1.0, {}),
    "ipo": (25.0, {"beta": 0.1}),
}


@pytest.mark.parametrize("name", [*AT_BASE, "kto"])
@pytest.mark.parametrize(
    "model",
    [
        {},
        {"adapter": "full"},
        {"rows_per_pass": 2},
        {"dtype": "bfloat16"},
        {"dtype": "bfloat16", "precision": "float32"},
        {"dtype": "bfloat16", "adapter": "full"},
        {"precision": "bfloat16"},
        {"dropout": 0.5, "gradient_checkpointing": True},
    ],
    ids=str,
)
def test_the_first_step_is_at_the_reference(folder, name, model):
    """DPO's loss is log 2 there. In half precision too: policy and reference are computed alike."""
    expected, options = AT_BASE.get(name, (0.5, {}))
    objective = {"type": "kto"} if name == "kto" else {"type": "preference", "loss": name, **options}
    learner = tuner(folder, objective, **model)
    figures = fit(learner, labelled() if name == "kto" else pairs(), answers(learner.lm))
    assert figures["loss"] == pytest.approx(expected, rel=2e-3 if "bfloat16" in str(model) else 1e-5)


def test_rrhf_of_one_answer_is_sft_on_its_sum(folder):
    ranking = Selection("ranked", tuple(Item((p(k),), scores=(float(k),)) for k in range(4)))
    learner = tuner(folder, {"type": "rrhf"}, adapter="full")
    samples = answers(learner.lm)
    sft = tuner(folder, {"type": "sft", "aggregation": "seq_mean_token_sum"}, adapter="full")
    same = Selection("weighted", ranking.items)
    close(gradients(learner, ranking, samples), gradients(sft, same, samples))


def test_rrhf_ties_contribute_nothing_from_table_to_gradient(folder):
    """All rewards equal: what is left is SFT on the first, through the real selector."""
    learner = tuner(folder, {"type": "rrhf"}, adapter="full")
    samples = answers(learner.lm)
    select = RankedConfig().build(seed=0).select
    tied = select(Scores(0, ("p0", "p1"), np.full((2, 4), 0.3), {}))
    assert [item.scores for item in tied.items] == [(0.3,) * 4] * 2
    first = Selection("weighted", tuple(Item((item.keys[0],)) for item in tied.items))
    sft = tuner(folder, {"type": "sft", "aggregation": "seq_mean_token_sum"}, adapter="full")
    close(gradients(learner, tied, samples), gradients(sft, first, samples))
    again = tuner(folder, {"type": "rrhf"}, adapter="full")
    assert fit(again, tied, samples)["rank_loss"] == 0


def test_rrhf_of_a_ranking_without_scores_goes_by_its_order(folder):
    """The released code lost its ranking loss in silence when scores came in another shape."""
    learner, samples = moved(folder, {"type": "rrhf"})
    keys = tuple(p(k) for k in (3, 1, 0, 2))
    values = torch.stack([lp.mean() for lp in lps(learner.lm, samples, keys)])
    expected = rank_loss(values[None], torch.tensor([[4.0, 3, 2, 1]]))
    figures = fit(learner, Selection("ranked", (Item(keys),)), samples)
    assert float(expected) > 0
    assert figures["rank_loss"] == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize("how", ["token_mean", "seq_mean_token_mean", "seq_mean_token_sum", "dr_grpo"])
@pytest.mark.parametrize("clip", [0.2, None])
def test_the_first_step_of_a_policy_gradient_is_reinforce(folder, how, clip):
    """Ratio 1: the gradient is -A grad log p, which SFT with the advantage as weight has."""
    options = {"aggregation": how, "clip_low": clip, "clip_high": clip}
    learner = tuner(folder, {"type": "policy_gradient", **options}, adapter="full")
    samples = answers(learner.lm)
    selection = advantages(1.0, -0.5, 2.0, -1.5)
    expected = gradients(
        tuner(folder, {"type": "sft", "aggregation": how}, adapter="full"),
        Selection("weighted", selection.items),
        samples,
    )
    close(gradients(learner, selection, samples), expected, rtol=1e-3, atol=1e-5)
    again = tuner(folder, {"type": "policy_gradient", **options}, adapter="full")
    figures = fit(again, selection, samples)
    assert figures["clip_fraction"] == 0
    assert figures["approx_kl"] == pytest.approx(0, abs=1e-6)


def test_the_kl_to_the_base_is_in_the_loss_even_where_there_is_no_advantage(folder):
    learner, samples = moved(folder, {"type": "policy_gradient", "beta": 0.5})
    figures = fit(learner, advantages(0.0, 0.0), samples)
    assert figures["loss"] > 0
    assert figures["grad_norm"] > 0


# --- prompts and padding ---

OBJECTIVES = {
    "sft": {"type": "sft"},
    "sft-mean": {"type": "sft", "aggregation": "seq_mean_token_mean"},
    "neftune": {"type": "sft", "embedding": {"type": "neftune"}},
    "scheduled": {"type": "sft", "embedding": {"type": "scheduled", "k": 0.5}},
    "trc": {"type": "sft", "embedding": {"type": "trc", "weight": 0.5}},
    "trc-soft": {"type": "sft", "embedding": {"type": "trc", "soft": True}},
    **{f"drp-{v}": {"type": "sft", "weighting": {"type": "drp", "variant": v}} for v in ("code", "eq21", "alg1")},
    "rrhf": {"type": "rrhf"},
    "rrhf-compat": {"type": "rrhf", "compat_official": True},
    **{name: {"type": "preference", "loss": name} for name in PAIRS},
    "kto": {"type": "kto"},
    "pg": {"type": "policy_gradient", "beta": 0.1},
    "pg-mean": {"type": "policy_gradient", "aggregation": "seq_mean_token_mean"},
}


def lesson(lm, *, padded=0):
    """Four answers of two items, every stream that an objective may ask for, and padding beyond the longest."""
    samples = answers(lm)
    rows = [row_of(lm, samples[key], learning=True) for key in (p(0), p(2), p(1, 1), p(3, 1))]

    def batch(found):
        one = collate(found, 0)
        width = one.ids.shape[1] + padded
        grown = [torch.zeros(4, width, dtype=torch.int64) for _ in range(2)]
        mask = torch.zeros(4, width - 1, dtype=torch.bool)
        for whole, part in zip((*grown, mask), (one.ids, one.attention, one.mask), strict=True):
            whole[:, : part.shape[1]] = part
        return Batch(*grown, mask)

    mine = batch(rows)

    def stream(shift):
        values = torch.cat(score(lm, rows, batch_size=4)) + shift
        return torch.zeros(mine.mask.shape).masked_scatter(mine.mask, values)

    return Lesson(
        mine,
        torch.tensor([0, 0, 1, 1]),
        torch.tensor([1.0, -1.0, 1.0, -0.5]),
        torch.tensor([0.1, 2.0, 3.0, 1.0]),
        stream(0.1),
        stream(-0.2),
        torch.tensor(0.3),
    )


def loss_and_gradients(lm, objective, one):
    """Of the loss with respect to the hidden states that its pass ends in, and to every weight."""
    built = LMFineTunerConfig(objective=objective).objective.build()
    network = Network(lm, torch.float32)
    lm.model.requires_grad_(True)
    seen = []

    def keep(_module, _inputs, output):
        if output.last_hidden_state.requires_grad:
            output.last_hidden_state.retain_grad()
            seen.append(output.last_hidden_state)

    hook = lm.model.model.register_forward_hook(keep)
    loss, _ = built.loss(one, Whole(int(one.batch.mask.sum()), 4, 8), network, Moment(0, 1.0, 5))
    torch.autograd.backward(loss)
    hook.remove()
    weights = {name: q.grad.clone() for name, q in lm.model.named_parameters()}
    lm.model.zero_grad()
    lm.model.requires_grad_(False)
    return loss.detach(), seen[0].grad, weights


@pytest.mark.parametrize("name", OBJECTIVES)
def test_prompts_and_padding_have_no_gradient(folder, name):
    lm = open_lm(folder)
    one = lesson(lm)
    _, hidden, _ = loss_and_gradients(lm, OBJECTIVES[name], one)
    assert torch.count_nonzero(hidden[:, :-1][~one.batch.mask]) == 0
    assert torch.count_nonzero(hidden[:, -1]) == 0  # predicts nothing
    learnt = hidden[:, :-1].abs().sum(-1) > 0
    if name not in ("rrhf", "rrhf-compat", "hinge"):  # where an order is right already there is nothing to learn
        assert torch.equal(learnt, one.batch.mask)  # the end token's is among them
    assert learnt.any()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_more_padding_changes_nothing(folder, name):
    lm = open_lm(folder)
    loss, _, weights = loss_and_gradients(lm, OBJECTIVES[name], lesson(lm))
    other, _, others = loss_and_gradients(lm, OBJECTIVES[name], lesson(lm, padded=5))
    torch.testing.assert_close(other, loss, rtol=1e-5, atol=1e-6)
    largest = max(float(weight.abs().max()) for weight in weights.values())
    close(others, weights, rtol=1e-3, atol=1e-5 * largest)  # sums of float32 in another order


@pytest.mark.parametrize("name", ["sft", "sft-mean", "rrhf", "dpo", "pg"])
def test_what_the_padding_says_changes_nothing(folder, name):
    lm = open_lm(folder)
    one = lesson(lm, padded=3)
    loss, _, weights = loss_and_gradients(lm, OBJECTIVES[name], one)
    one.batch.ids[one.batch.attention == 0] = 7
    other, _, others = loss_and_gradients(lm, OBJECTIVES[name], one)
    assert torch.equal(loss, other)
    close(others, weights, rtol=1e-5, atol=1e-7)


def test_sums_and_means_of_the_same_tokens(folder):
    """SimPO and ORPO take means, DPO sums: a pair of equal means and unequal lengths tells them apart."""
    lm = open_lm(folder)
    one = lesson(lm)
    found = Network(lm, torch.float32).lp(one.batch)
    assert torch.allclose(means(found, one.batch.mask) * one.batch.mask.sum(1), sums(found, one.batch.mask))
    assert found.dtype == torch.float32
