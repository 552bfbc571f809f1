"""Fine-tuning a language model: how a step is cut, what it resumes to, what the base is, and where it stops."""

import itertools
import math
import shutil

import numpy as np
import pytest
import torch

from raftdiff.errors import UserError
from raftdiff.llm.learning.finetuner import LMFineTunerConfig, mismatched
from raftdiff.llm.model import tiny
from raftdiff.llm.model.loading import LMConfig, load
from raftdiff.llm.model.rows import Row, row_of, score
from raftdiff.llm.model.tiny import random_answers
from raftdiff.selection.lessons import Advantage
from raftdiff.training.optimizer import exposure_plan
from raftdiff.types import Item, Key, Prompt, Sample, Scores, Selection, silent

WORDS = ("the", "film", "was", "good", "bad", "dull", "fine", "long")
PROMPTS = ("the film", "film", "the long film was", "was")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("lm") / "tiny", WORDS)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory, folder):
    """A model with dropout of its own, everywhere."""

    from transformers import GPT2Config, GPT2LMHeadModel

    path = tmp_path_factory.mktemp("lm") / "gpt2"
    drop = {"resid_pdrop": 0.3, "embd_pdrop": 0.3, "attn_pdrop": 0.3}
    config = GPT2Config(vocab_size=12, n_positions=32, n_embd=16, n_layer=2, n_head=2, eos_token_id=2, **drop)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        GPT2LMHeadModel(config).save_pretrained(path)
    for file in folder.glob("tokenizer*"):
        shutil.copy2(file, path)
    return path


def open_lm(folder, dtype="float32"):
    return load(LMConfig(base=str(folder), dtype=dtype, device="cpu"), str)


def tuner(folder, *, dtype="float32", rounds=3, **changes):
    options = {"rank": 4, "learning_rate": 1e-2, "batch_size": 12, "max_grad_norm": None, **changes}
    return LMFineTunerConfig(**options).build(open_lm(folder, dtype), total_rounds=rounds, max_tokens=8, seed=0)


def with_aux(sample, **aux):
    return Sample(
        sample.round, sample.prompt, sample.index, sample.seed, sample.source, sample.media, {**sample.aux, **aux}
    )


def moved(learner):
    """The same fine-tuner some way from its base, and from the policy that sampled."""
    generator = torch.Generator().manual_seed(7)
    for weight in learner.trainable.live.values():
        weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.03)
    learner.trainable.rest(None)
    return learner


def items(kind, samples):
    """Something to learn of every kind, with ties and zeros where the kind has them."""
    keys = list(samples)
    by_prompt = [[key for key in keys if key.prompt == f"p{place}"] for place in range(len(PROMPTS))]
    match kind:
        case "weighted":
            found = [Item((key,), weight) for key, weight in zip(keys, itertools.cycle((1.0, 0.25, 2.0)), strict=False)]
        case "ranked":
            found = [Item(tuple(group), scores=(2.0, 0.5, 0.5)[: len(group)]) for group in by_prompt]
        case "pairs":
            found = [Item((group[0], group[-1]), scores=(1.0, 0.0)) for group in by_prompt]
        case "labelled":
            found = [Item((key,), sign) for key, sign in zip(keys, itertools.cycle((1.0, -1.0)), strict=False)]
        case _:
            found = [Item((key,), a) for key, a in zip(keys, itertools.cycle((1.5, 0.0, -0.7)), strict=False)]
    return Selection(kind, tuple(found))


def fit(learner, samples, kind="weighted", seed=1):
    selection = kind if isinstance(kind, Selection) else items(kind, samples)
    return learner.fit(selection, samples, seed=seed, report=silent)


def gradients(learner, samples, kind="weighted", seed=1):
    """Those of the first optimizer step, before clipping, and the round's figures."""
    found = {}

    def keep(*_):
        for name, parameter in learner.trainable.parameters.items():
            if parameter.grad is not None:
                found.setdefault(name, parameter.grad.clone())

    hook = learner.course.optimizer.register_step_pre_hook(keep)
    figures = fit(learner, samples, kind, seed)
    hook.remove()
    return found, figures


def close(one, other, **tolerance):
    tolerance = {"rtol": 1e-4, "atol": 1e-6, **tolerance}
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], **tolerance)


def same(one, other):
    return one.keys() == other.keys() and all(
        one[stem].keys() == other[stem].keys()
        and all(torch.equal(one[stem][name], other[stem][name]) for name in one[stem])
        for stem in one
    )


def largest(grads):
    return max(float(grad.abs().max()) for grad in grads.values())


AGGREGATIONS = ("token_mean", "seq_mean_token_mean", "seq_mean_token_sum", "dr_grpo")
SFT = {how: ({"type": "sft", "aggregation": how}, "weighted") for how in AGGREGATIONS}
POLICY = {f"pg-{how}": ({"type": "policy_gradient", "aggregation": how}, "advantages") for how in AGGREGATIONS}
HOOKS = {
    "neftune": ({"type": "sft", "embedding": {"type": "neftune"}}, "weighted"),
    "scheduled": ({"type": "sft", "embedding": {"type": "scheduled", "k": 0.5}}, "weighted"),
    "trc-hard": ({"type": "sft", "embedding": {"type": "trc", "disturb": True, "ramp": True}}, "weighted"),
    "trc-soft": ({"type": "sft", "embedding": {"type": "trc", "soft": True, "weight": 0.5}}, "weighted"),
    "drp": ({"type": "sft", "weighting": {"type": "drp"}}, "weighted"),
    "drp-eq21": ({"type": "sft", "weighting": {"type": "drp", "variant": "eq21"}}, "weighted"),
    "drp-alg1": ({"type": "sft", "weighting": {"type": "drp", "variant": "alg1"}}, "weighted"),
}
PAIRS = {
    name: ({"type": "preference", "loss": name}, "pairs")
    for name in ("dpo", "cdpo", "robust", "ipo", "hinge", "simpo", "orpo")
}
RANKED = {
    "rrhf": ({"type": "rrhf"}, "ranked"),
    "rrhf-mean": ({"type": "rrhf", "ft": "mean", "rank_weight": 10.0}, "ranked"),
    "rrhf-official": ({"type": "rrhf", "compat_official": True}, "ranked"),
}
KL = {"pg-kl": ({"type": "policy_gradient", "beta": 0.1, "aggregation": "seq_mean_token_mean"}, "advantages")}
KTO = {"kto": ({"type": "kto"}, "labelled")}
UNCUT = {**SFT, **POLICY, **KL, **HOOKS, **PAIRS, **RANKED, **KTO}


# --- what a step is does not depend on how it is computed ---


@pytest.mark.parametrize("name", UNCUT)
def test_how_a_step_is_cut_into_passes_changes_nothing(folder, name):
    """Also a test of padding: alone in its pass, a row has none."""
    objective, kind = UNCUT[name]
    samples = random_answers(open_lm(folder))
    whole = moved(tuner(folder, objective=objective, adapter="full", learning_rate=1e-3))
    expected, figures = gradients(whole, samples, kind)
    assert largest(expected) > 1e-3
    for rows in (1, 5):
        cut = moved(tuner(folder, objective=objective, adapter="full", learning_rate=1e-3, rows_per_pass=rows))
        found, others = gradients(cut, samples, kind)
        close(found, expected, atol=1e-6 * max(1.0, largest(expected)))
        close(cut.trainable.live, whole.trainable.live, atol=2e-5)
        same_for_all = figures.keys() - {"network_evaluations"}
        assert {k: others[k] for k in same_for_all} == pytest.approx(
            {k: figures[k] for k in same_for_all}, rel=1e-5, abs=1e-5
        )


def test_the_figures_of_a_policy_gradient_do_not_depend_on_the_cut_either(folder):
    """Ratios beyond the clip in some tokens of the second epoch, so that a mean over passes would be another number."""
    found = []
    for rows in (1, 5, 64):
        learner = tuner(folder, objective={"type": "policy_gradient"}, rows_per_pass=rows, epochs=2)
        samples = random_answers(learner.lm)
        found.append(fit(learner, samples, Selection("advantages", tuple(Item((key,)) for key in samples))))
    tokens = sum(len(one.aux["tokens"]) for one in samples.values())
    for figures in found:
        assert 0 < figures["clip_fraction"] < 0.5
        assert figures["clip_fraction"] * 2 * tokens == pytest.approx(round(figures["clip_fraction"] * 2 * tokens))
        assert figures["approx_kl"] == pytest.approx(found[0]["approx_kl"], rel=1e-3)


def test_kto_learns_in_passes_and_steps_of_one_answer(folder):
    """Where a step has one prompt alone, an answer to another comes from the round."""
    learner = moved(tuner(folder, objective={"type": "kto"}, rows_per_pass=1, batch_size=1))
    figures = fit(learner, random_answers(learner.lm), "labelled")
    assert figures["steps"] == 12
    assert math.isfinite(figures["loss"])


def test_kto_needs_a_second_prompt(folder):
    learner = tuner(folder, objective={"type": "kto"})
    samples = random_answers(learner.lm)
    three = Selection("labelled", items("labelled", samples).items[:3])
    with pytest.raises(UserError, match="everything that was selected answers one prompt"):
        fit(learner, samples, three)


def test_mismatched_answers_are_of_other_prompts():
    """Whatever the order: neighbours of one prompt, too, and two prompts of the same words."""
    rows = [Row((1, prompt), (10 * prompt + n,)) for prompt in range(3) for n in range(4)]
    for seed in range(20):
        order = torch.randperm(12, generator=torch.Generator().manual_seed(seed)).tolist()
        shuffled = [rows[place] for place in order]
        for row, pair in zip(shuffled, mismatched(shuffled, rows), strict=True):
            assert pair.prompt == row.prompt
            assert pair.answer[0] // 10 != row.prompt[1]
    one = rows[:2]
    assert [pair.answer[0] // 10 for pair in mismatched(one, rows)] == [2, 2]
    pairs = mismatched([rows[0], rows[5], rows[1]], rows)
    assert [pair.answer for pair in pairs] == [rows[5].answer, rows[0].answer, rows[5].answer]


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")  # peft's, of GPT-2's transposed layers
@pytest.mark.parametrize("adapter", ["lora", "full"])
@pytest.mark.parametrize("model", ["llama", "gpt2"])
def test_gradient_checkpointing_gives_the_same_gradients(folder, gpt2, model, adapter):
    """Also where the model has dropout of its own, which fine-tuning leaves off."""
    where = {"llama": folder, "gpt2": gpt2}[model]
    targets = {} if model == "llama" else {"target_modules": ("c_attn", "c_fc")}
    plain = tuner(where, adapter=adapter, **targets)
    samples = random_answers(plain.lm)
    expected, _ = gradients(plain, samples)
    computed = []
    checkpointed = tuner(where, adapter=adapter, gradient_checkpointing=True, **targets)
    block = next(
        module
        for module in checkpointed.lm.model.modules()
        if "DecoderLayer" in type(module).__name__ or "Block" in type(module).__name__
    )
    attention = next(child for name, child in block.named_children() if "attn" in name)
    attention.register_forward_hook(lambda *_: computed.append(1))
    found, _ = gradients(checkpointed, samples)
    close(found, expected)
    assert len(computed) == 2  # forward, and again for the backward pass
    assert not block.gradient_checkpointing  # what samples afterwards is not


@pytest.mark.parametrize("name", ["token_mean", "dpo", "rrhf", "pg-token_mean"])
def test_the_padding_token_may_be_the_end_token(folder, tmp_path, name):
    objective, kind = UNCUT[name]
    learner = tuner(folder, objective=objective, adapter="full")
    twin = tuner(folder, objective=objective, adapter="full")
    twin.lm.tokenizer.pad_token = "<eos>"
    assert (learner.lm.pad, twin.lm.pad) == (0, 2)
    samples = random_answers(learner.lm)
    close(gradients(twin, samples, kind)[0], gradients(learner, samples, kind)[0])


def test_the_end_of_an_answer_is_learnt(folder):
    learner = tuner(folder, epochs=20)
    samples = random_answers(learner.lm)
    rows = [row_of(learner.lm, sample, learning=True) for sample in samples.values()]
    before = torch.stack([lp[-1] for lp in score(learner.lm, rows, batch_size=64)])
    fit(learner, samples)
    after = torch.stack([lp[-1] for lp in score(learner.lm, rows, batch_size=64)])
    assert all(row.answer[-1] == 2 for row in rows)
    assert after.mean() > before.mean() + 0.5


def test_a_text_without_tokens_is_tokenized_and_ends(folder):
    learner = tuner(folder, adapter="full")
    drawn = random_answers(learner.lm)
    written = {
        key: Sample(
            0, one.prompt, one.index, 0, "dataset", " ".join(learner.lm.text(one.aux["tokens"].tolist()).split())
        )
        for key, one in drawn.items()
    }
    expected, _ = gradients(learner, drawn)
    found, _ = gradients(tuner(folder, adapter="full"), written)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_learning_prompt_is_what_is_learnt(folder):
    learner = tuner(folder, adapter="full")
    plain = random_answers(learner.lm)
    magic = {
        key: Sample(
            0, Prompt(one.prompt.id, "?", "good good good", one.prompt.learning), one.index, 0, "policy", "", one.aux
        )
        for key, one in plain.items()
    }
    expected, _ = gradients(learner, plain)
    found, _ = gradients(tuner(folder, adapter="full"), magic)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


# --- learning ---


@pytest.mark.parametrize("adapter", ["lora", "full"])
@pytest.mark.parametrize("optimizer", ["adamw", "rmsprop"])
def test_the_loss_of_what_is_learnt_falls(folder, adapter, optimizer):
    learner = tuner(folder, adapter=adapter, optimizer=optimizer, learning_rate=3e-3, epochs=15, max_grad_norm=1.0)
    samples = random_answers(learner.lm)
    first = fit(learner, samples)["loss"]
    assert fit(learner, samples)["loss"] < 0.8 * first


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_a_learning_rate_of_0_leaves_the_weights(folder, adapter):
    config = LMFineTunerConfig(adapter=adapter, rank=4).model_copy(update={"learning_rate": 0.0})
    learner = config.build(open_lm(folder), total_rounds=1, max_tokens=8, seed=0)
    before = {name: weight.clone() for name, weight in learner.trainable.live.items()}
    fit(learner, random_answers(learner.lm))
    assert all(torch.equal(before[name], weight) for name, weight in learner.trainable.live.items())


def test_equal_rewards_leave_the_weights_of_a_policy_gradient(folder):
    learner = tuner(folder, objective={"type": "policy_gradient"}, weight_decay=0.1)
    samples = random_answers(learner.lm)
    fit(learner, samples, "advantages")  # so that the optimizer has a momentum that would go on
    saved = learner.state_dict()
    table = np.full((len(PROMPTS), 3), 0.3)
    selection = Advantage("grpo").select(Scores(0, tuple(f"p{place}" for place in range(4)), table, {}))
    figures = fit(learner, samples, selection)
    assert len(selection.items) == 12
    assert (figures["loss"], figures["grad_norm"], figures["network_evaluations"]) == (0, 0, 0)
    after = learner.state_dict()
    assert after["schedule"]["rounds"] == 2
    assert same({**saved, "schedule": {}}, {**after, "schedule": {}})


def test_answers_of_no_advantage_count_where_losses_are_averaged(folder):
    """They are left out of the passes, and the gradient is what it is with them: that of SFT with the same weights."""
    learner = tuner(folder, adapter="full", objective={"type": "policy_gradient"})
    samples = random_answers(learner.lm)
    selection = items("advantages", samples)
    found, figures = gradients(learner, samples, selection)
    weighted, others = gradients(tuner(folder, adapter="full"), samples, Selection("weighted", selection.items))
    close(found, weighted)
    assert figures["items"] == others["items"] == 12
    assert figures["network_evaluations"] < others["network_evaluations"]


def test_figures_are_of_the_whole_round(folder):
    learner = tuner(folder, batch_size=5, epochs=2)
    samples = random_answers(learner.lm)
    seen = []
    figures = learner.fit(
        items("weighted", samples), samples, seed=1, report=lambda done, total: seen.append((done, total))
    )
    assert seen == [(n, 5) for n in range(1, 6)]
    assert (figures["steps"], figures["items"]) == (5, 24)
    rows = [row_of(learner.lm, sample, learning=True) for sample in samples.values()]
    assert figures["network_evaluations"] == 2 * sum(len(row.prompt) + len(row.answer) for row in rows)
    assert figures["grad_norm"] > 0
    assert figures["learning_rate"] == 1e-2
    assert learner.parameter_count() == sum(weight.numel() for weight in learner.trainable.live.values())


def test_the_loss_of_a_round_is_the_mean_over_its_steps(folder):
    """Weighed by their items: 8 and 4 of 12. With a rate of nothing, it is the loss that the answers have."""
    config = LMFineTunerConfig(rank=4, batch_size=8).model_copy(update={"learning_rate": 0.0})
    learner = config.build(open_lm(folder), total_rounds=1, max_tokens=8, seed=0)
    samples = random_answers(learner.lm)
    every = Selection("weighted", tuple(Item((key,)) for key in samples))
    order = list(samples)
    expected = 0.0
    for places in exposure_plan(12, 10_000, 8, 1.0, 1):
        lps = [samples[order[place]].aux["logprobs"] for place in places]
        expected += len(places) / 12 * -float(torch.cat(lps).mean())
    assert fit(learner, samples, every)["loss"] == pytest.approx(expected, abs=1e-5)


def test_gradients_longer_than_the_limit_are_shortened(folder):
    free, held = tuner(folder, adapter="full"), tuner(folder, adapter="full", max_grad_norm=0.01)
    samples = random_answers(free.lm)
    seen = []
    held.course.optimizer.register_step_pre_hook(
        lambda *_: seen.append(
            torch.nn.utils.get_total_norm([p.grad for p in held.trainable.parameters.values() if p.grad is not None])
        )
    )
    norm = fit(free, samples)["grad_norm"]
    assert fit(held, samples)["grad_norm"] == pytest.approx(norm)
    assert norm > 0.01
    assert float(seen[0]) == pytest.approx(0.01, rel=1e-3)


def test_an_empty_selection_teaches_nothing(folder):
    learner = tuner(folder)
    before = learner.state_dict()
    figures = fit(learner, {}, Selection("weighted", ()))
    assert (figures["steps"], figures["loss"], learner.course.rounds) == (0, 0, 1)
    assert same({**before, "schedule": {}}, {**learner.state_dict(), "schedule": {}})


# --- the learning rate ---


def rates(learner, samples, rounds):
    found = []
    hook = learner.course.optimizer.register_step_pre_hook(lambda opt, *_: found.append(opt.param_groups[0]["lr"]))
    for seed in range(rounds):
        fit(learner, samples, seed=seed)
    hook.remove()
    return found


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("linear", [1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]),
        ("cosine", [0.5 * (1 + math.cos(math.pi * place / 8)) for place in range(8)]),
        ("constant", [1.0] * 8),
    ],
)
def test_the_schedule_spans_all_rounds(folder, kind, expected):
    """Pitfall of other loops: a schedule built for one round is at 0 from the second on."""
    learner = tuner(folder, rounds=2, lr_schedule=kind, batch_size=3)
    found = rates(learner, random_answers(learner.lm), 2)
    assert found == pytest.approx([1e-2 * share for share in expected])
    assert min(found) > 0


def test_the_schedule_goes_on_in_another_process(folder):
    learner = tuner(folder, rounds=2, lr_schedule="linear", batch_size=3, warmup_steps=6)
    samples = random_answers(learner.lm)
    first = rates(learner, samples, 1)
    other = tuner(folder, rounds=2, lr_schedule="linear", batch_size=3, warmup_steps=6)
    other.load_state_dict(learner.state_dict())
    second = rates(other, samples, 1)
    shape = [1 - place / 8 for place in range(8)]
    ramp = [min(1, (place + 1) / 6) for place in range(8)]
    assert first + second == pytest.approx([1e-2 * s * r for s, r in zip(shape, ramp, strict=True)])


# --- state ---

STATES = {
    "lora": {},
    "full": {"adapter": "full", "learning_rate": 1e-3},
    "rmsprop": {"optimizer": "rmsprop", "learning_rate": 1e-3},
    "dropout": {"dropout": 0.3, "rows_per_pass": 2},
    "checkpointed": {"dropout": 0.3, "gradient_checkpointing": True, "lr_schedule": "cosine", "warmup_steps": 3},
    "bfloat16": {"dtype": "bfloat16", "dropout": 0.1},
    "bfloat16-full": {"dtype": "bfloat16", "adapter": "full", "learning_rate": 1e-3},
    "mixed": {"dtype": "bfloat16", "precision": "float32"},
    "decayed": {"weight_decay": 0.1, "betas": (0.8, 0.9)},
}


def resumed(folder, kind, **options):
    """State dicts of two rounds in one fine-tuner, and of one round in each of two."""
    straight = tuner(folder, batch_size=5, **options)
    samples = [random_answers(straight.lm, number, per_prompt=2) for number in (0, 1)]
    start = straight.state_dict()
    fit(straight, samples[0], kind, seed=1)
    saved = straight.state_dict()
    assert not same(start, saved)
    fit(straight, samples[1], kind, seed=2)
    other = tuner(folder, batch_size=5, **options)
    other.load_state_dict(saved)
    assert same(other.state_dict(), saved)
    fit(other, samples[1], kind, seed=2)
    return straight, other


@pytest.mark.parametrize("name", STATES)
def test_it_resumes_to_the_bit(folder, name):
    straight, other = resumed(folder, "weighted", **STATES[name])
    assert same(straight.state_dict(), other.state_dict())
    ids = torch.tensor([[1, 4, 5, 6, 7]])
    with torch.no_grad():
        assert torch.equal(straight.lm.model(ids).logits, other.lm.model(ids).logits)
    assert all(weight.dtype == torch.float32 for weight in straight.state_dict()[straight.trainable.stem].values())


@pytest.mark.parametrize("name", [*HOOKS, "dpo", "rrhf", "pg-token_mean", "pg-kl", "kto"])
def test_every_objective_resumes_to_the_bit(folder, name):
    objective, kind = {**UNCUT, **KTO}[name]
    straight, other = resumed(folder, kind, objective=objective, dropout=0.1)
    assert same(straight.state_dict(), other.state_dict())


def test_seeds_decide_and_nothing_else_does(folder):
    def after(seed, disturbed=False):
        learner = tuner(folder, dropout=0.2, batch_size=4)
        samples = random_answers(learner.lm)
        if disturbed:
            torch.rand(7)
        state = torch.random.get_rng_state()
        fit(learner, samples, seed=seed)
        assert torch.equal(torch.random.get_rng_state(), state)  # nor does it draw from anybody else's generator
        return learner.state_dict()

    one = after(1)
    assert same(one, after(1, disturbed=True))
    assert not same(one, after(2))


def test_states_of_another_finetuner_are_refused(folder, tmp_path):
    lora, full = tuner(folder), tuner(folder, adapter="full")
    with pytest.raises(UserError, match=r"holds no 'weights' weights: finetuner.adapter was different"):
        full.load_state_dict(lora.state_dict())
    with pytest.raises(UserError, match="has another shape"):
        tuner(folder, rank=2).load_state_dict(lora.state_dict())
    with pytest.raises(UserError, match="is missing"):
        lora.load_state_dict(tuner(folder, target_modules=("q_proj",)).state_dict())
    wider = tiny.write(tmp_path / "wide", WORDS, width=64)
    with pytest.raises(UserError, match=r"the saved weights are not of this fine-tuner: .* has another shape"):
        tuner(wider, adapter="full").load_state_dict(full.state_dict())


# --- the base model ---


@pytest.mark.parametrize("options", [{}, {"adapter": "full"}, {"dtype": "bfloat16"}], ids=["lora", "full", "bfloat16"])
def test_the_base_stays_within_reach(folder, options):
    untouched = open_lm(folder, options.get("dtype", "float32"))
    learner = tuner(folder, **options)
    rows = [row_of(untouched, sample, learning=True) for sample in random_answers(untouched).values()]

    def scores_of(lm):
        return torch.cat(score(lm, rows, batch_size=64))

    base = scores_of(untouched)
    assert torch.equal(scores_of(learner.lm), base)  # it starts as no change, in every dtype
    samples = random_answers(learner.lm)
    for seed in (1, 2):
        fit(learner, samples, seed=seed)
    tuned = scores_of(learner.lm)
    assert float((tuned - base).abs().mean()) > 0.01
    with learner.base_weights():
        assert torch.equal(scores_of(learner.lm), base)
    assert torch.equal(scores_of(learner.lm), tuned)


def test_a_model_in_half_precision_keeps_its_positions(folder):
    """Rotary frequencies are a float32 buffer; in bfloat16 far positions would be others than in the model's own."""
    lm = open_lm(folder, "bfloat16")
    before = {name: buffer.clone() for name, buffer in lm.model.named_buffers()}
    learner = LMFineTunerConfig(rank=4).build(lm, total_rounds=1, max_tokens=8, seed=0)
    fit(learner, random_answers(lm))
    after = dict(lm.model.named_buffers())
    assert before
    assert all(
        torch.equal(after[name], buffer) and after[name].dtype == buffer.dtype for name, buffer in before.items()
    )


def test_updates_too_small_for_half_precision_are_not_rounded_away(folder):
    """Steps of 1e-6 on weights of about 0.1: the distance between two bfloat16 numbers there is 500 times as much."""
    learner = tuner(folder, dtype="bfloat16", learning_rate=1e-6, batch_size=6)
    fit(learner, random_answers(learner.lm))  # LoRA's A moves only once B is not 0
    before = {name: weight.clone() for name, weight in learner.trainable.live.items()}
    fit(learner, random_answers(learner.lm), seed=2)
    moved = {name: (weight - before[name]).abs() for name, weight in learner.trainable.live.items()}
    for name, distance in moved.items():
        assert 1e-7 < float(distance.max()) < 1e-4, name
    with torch.no_grad():
        assert all(p.dtype == torch.bfloat16 for p in learner.lm.model.parameters())


def test_after_a_round_the_network_is_at_rest(folder):
    learner = tuner(folder, gradient_checkpointing=True, dropout=0.1)
    fit(learner, random_answers(learner.lm))
    model = learner.lm.model
    assert not any(module.training for module in model.modules())
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())


# --- sentences ---


def test_a_loss_that_is_no_number_stops_with_a_sentence(folder):
    learner = tuner(folder)
    samples = random_answers(learner.lm)
    before = learner.state_dict()
    broken = Selection("weighted", tuple(Item((key,), math.nan) for key in samples))
    with pytest.raises(UserError, match=r"the loss is no longer a number at step 1. Lower finetuner.learning_rate"):
        fit(learner, samples, broken)
    after = learner.state_dict()
    apart = ("optimizer", "schedule")
    assert same(
        {name: it for name, it in after.items() if name not in apart}, {learner.trainable.stem: before["adapter"]}
    )
    assert not any(it.any() for it in after["optimizer"].values()), "its averages and steps are those of none taken"
    assert after["schedule"].keys() == before["schedule"].keys()
    assert after["schedule"]["rounds"] == before["schedule"]["rounds"]
    assert not any(p.requires_grad for p in learner.lm.model.parameters())


@pytest.mark.parametrize("logprobs", [None, torch.zeros(1)])
def test_a_policy_gradient_without_the_log_probabilities_of_the_sampler_is_a_sentence(folder, logprobs):
    learner = tuner(folder, objective={"type": "policy_gradient"})
    samples = {
        key: with_aux(one, logprobs=logprobs)
        if logprobs is not None
        else Sample(0, one.prompt, one.index, 0, "dataset", "good film")
        for key, one in random_answers(learner.lm).items()
    }
    with pytest.raises(UserError, match="comes without the log-probabilities of its tokens"):
        fit(learner, samples, "advantages")


def test_an_empty_answer_is_a_sentence(folder):
    learner = tuner(folder)
    samples = random_answers(learner.lm)
    samples[Key(0, "p0", 0)] = with_aux(samples[Key(0, "p0", 0)], tokens=torch.empty(0, dtype=torch.int64))
    with pytest.raises(UserError, match="this answer is empty"):
        fit(learner, samples)


def test_errors_of_the_recipe_are_sentences(folder):
    with pytest.raises(UserError, match="float16 needs its gradients scaled"):
        tuner(folder, precision="float16")
    with pytest.raises(UserError, match="no layer of the model ends in any of to_nowhere"):
        tuner(folder, target_modules=("to_nowhere",))
    learner = tuner(folder)
    with pytest.raises(UserError, match="already carries a LoRA"):
        LMFineTunerConfig().build(learner.lm, total_rounds=1, max_tokens=8, seed=0)
