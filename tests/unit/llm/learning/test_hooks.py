"""NEFTune, scheduled sampling and IFT as hooks of supervised fine-tuning: what they come down to, and their draws."""

import json
import shutil

import pytest
import torch

from raftdiff.llm.learning.embeddings import teacher_forcing_probability
from raftdiff.llm.learning.finetuner import LMFineTunerConfig
from raftdiff.llm.learning.hooks import (
    DrpConfig,
    NeftuneConfig,
    NoEmbedding,
    ScheduledConfig,
    TrcConfig,
    inputs,
    row_losses,
)
from raftdiff.llm.learning.ift import mix_hard, mix_soft, relation_loss
from raftdiff.llm.model import tiny
from raftdiff.llm.model.loading import LMConfig, load
from raftdiff.llm.model.network import Moment, Network
from raftdiff.llm.model.rows import Row, collate
from raftdiff.types import Item, Prompt, Sample, Selection, silent

WORDS = ("the", "film", "was", "good", "bad", "dull", "fine", "long")
ROWS = [Row((1, 4, 5), (7, 5, 2)), Row((1, 6), (8, 9, 10, 11, 2)), Row((1, 4, 5, 6), (4, 2))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("lm") / "tiny", WORDS)


@pytest.fixture(scope="module")
def untied(tmp_path_factory, folder):
    """The same weights, input table and output head apart."""
    from safetensors.torch import load_file, save_file

    path = tmp_path_factory.mktemp("lm") / "untied"
    shutil.copytree(folder, path)
    weights = load_file(path / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((path / "config.json").read_text()) | {"tie_word_embeddings": False}
    (path / "config.json").write_text(json.dumps(config))
    return path


def tuner(folder, embedding=None, *, weighting=None, aggregation="seq_mean_token_mean", rounds=2, **changes):
    objective = {"type": "sft", "aggregation": aggregation}
    objective |= {"embedding": embedding} if embedding else {}
    objective |= {"weighting": weighting} if weighting else {}
    options = {"rank": 4, "learning_rate": 1e-3, "batch_size": 3, "adapter": "full", "objective": objective, **changes}
    lm = load(LMConfig(base=str(folder), device="cpu"), str)
    return LMFineTunerConfig(**options).build(lm, total_rounds=rounds, max_tokens=8, seed=0)


def fit(learner, seed=1, repeats=1):
    texts = ("good film", "bad", "the film was dull") * repeats
    samples = [
        Sample(0, Prompt(f"p{k}", "film", "film", "the film was"[: 4 * (k % 3) + 3]), 0, 0, "policy", text)
        for k, text in enumerate(texts)
    ]
    chosen = Selection("weighted", tuple(Item((one.key,)) for one in samples))
    return learner.fit(chosen, {one.key: one for one in samples}, seed=seed, report=silent)


def weights_after(learner, seed=1):
    fit(learner, seed)
    return {name: weight.clone() for name, weight in learner.trainable.live.items()}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def close(one, other):
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-5, atol=1e-6)


def logits(folder, hook, moment, rows=ROWS):
    lm = load(LMConfig(base=str(folder), device="cpu"), str)
    batch = collate(rows, 0)
    network = Network(lm, torch.float32)
    with torch.no_grad():
        return network.logits(batch, **inputs(hook, batch, network, moment)), network, batch


# --- what they come down to ---


@pytest.mark.parametrize(
    ("embedding", "weighting"),
    [
        ({"type": "neftune", "alpha": 0.0}, None),
        ({"type": "scheduled", "k": 1.0}, None),
        ({"type": "trc", "weight": 0.0, "train_input_embedding": True}, None),
        ({"type": "trc", "weight": 0.0, "train_input_embedding": True, "soft": True}, None),
        (None, {"type": "drp", "gamma": 0.0}),
        ({"type": "trc", "weight": 0.0, "train_input_embedding": True}, {"type": "drp", "gamma": 0.0}),
    ],
    ids=["neftune", "scheduled", "trc", "trc-soft", "drp", "ift"],
)
@pytest.mark.parametrize("rows_per_pass", [1, 64])
def test_with_nothing_in_it_a_hook_is_sft(folder, embedding, weighting, rows_per_pass):
    plain = tuner(folder)
    hooked = tuner(folder, embedding, weighting=weighting, rows_per_pass=rows_per_pass)
    assert fit(hooked)["loss"] == pytest.approx(fit(plain)["loss"], abs=1e-6)
    close(hooked.trainable.live, plain.trainable.live)


def test_ift_without_lambda_and_gamma_is_sft_for_a_lora_whatever_the_input_table(folder):
    plain = tuner(folder, adapter="lora", learning_rate=1e-2)
    ift = tuner(
        folder,
        {"type": "trc", "weight": 0.0},
        weighting={"type": "drp", "gamma": 0.0},
        adapter="lora",
        learning_rate=1e-2,
    )
    for seed in (1, 2):
        close(weights_after(ift, seed), weights_after(plain, seed))


@pytest.mark.parametrize(
    "embedding",
    [
        {"type": "neftune", "alpha": 5.0},
        {"type": "scheduled", "k": 0.3},
        {"type": "trc", "weight": 0.5},
        {"type": "trc", "weight": 0.5, "soft": True},
    ],
    ids=["neftune", "scheduled", "trc", "trc-soft"],
)
def test_with_something_in_it_a_hook_is_another_loss(folder, embedding):
    assert abs(fit(tuner(folder, embedding))["loss"] - fit(tuner(folder))["loss"]) > 1e-4


@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("variant", ["code", "eq21", "alg1"])
def test_drp_is_the_mean_of_the_rows_losses(folder, variant, detach):
    """Whatever the aggregation says: relation propagation has its own."""
    weighting = {"type": "drp", "variant": variant, "gamma": 0.9, "detach_weights": detach}
    learner = tuner(folder, weighting=weighting, aggregation="token_mean")
    lm = load(LMConfig(base=str(folder), device="cpu"), str)
    rows = [
        Row(tuple(lm.tokenizer(prompt)["input_ids"]), tuple(lm.answer_ids(text)))
        for prompt, text in (("the", "good film"), ("the fil", "bad"), ("the film wa", "the film was dull"))
    ]
    batch = collate(rows, 0)
    with torch.no_grad():
        lp = Network(lm, torch.float32).lp(batch)
    expected = relation_loss(lp, batch.mask, 0.9, variant, detach)
    assert torch.equal(
        row_losses(DrpConfig(**{k: v for k, v in weighting.items() if k != "type"}), lp, batch.mask), expected
    )
    assert fit(learner)["loss"] == pytest.approx(float(expected.mean()), rel=1e-5)


# --- what they draw ---


def moment(step=0, progress=1.0, seed=11, first=0):
    return Moment(step, progress, seed, first)


@pytest.mark.parametrize("hook", [NeftuneConfig(), ScheduledConfig(k=0.5), TrcConfig(weight=0.5, disturb=True)])
def test_draws_differ_by_step_and_are_the_same_for_the_same_step(folder, hook):
    one, network, batch = logits(folder, hook, moment())
    with torch.no_grad():
        assert torch.equal(network.logits(batch, **inputs(hook, batch, network, moment())), one)
        assert not torch.equal(network.logits(batch, **inputs(hook, batch, network, moment(seed=12))), one)


@pytest.mark.parametrize("embedding", [{"type": "neftune"}, {"type": "scheduled", "k": 0.5}])
def test_rounds_of_another_seed_are_noised_otherwise(folder, embedding):
    one, again, other = (tuner(folder, embedding) for _ in range(3))
    assert equal(weights_after(one), weights_after(again))
    assert not equal(weights_after(one, seed=2), weights_after(other, seed=3))


@pytest.mark.parametrize("hook", [NeftuneConfig(), ScheduledConfig(k=0.5), TrcConfig(weight=0.5, disturb=True)])
def test_a_row_draws_the_same_in_any_batch(folder, hook):
    """Alone, or beside longer rows: its noise is its own, as is its place in the step."""
    whole, network, _ = logits(folder, hook, moment())
    for place, row in enumerate(ROWS):
        single = collate([row], 0)
        with torch.no_grad():
            alone = network.logits(single, **inputs(hook, single, network, moment(first=place)))
        width = len(row.prompt) + len(row.answer)
        torch.testing.assert_close(alone[0], whole[place, :width], rtol=1e-4, atol=1e-5)


def test_rows_of_a_step_are_noised_each_in_its_own_way(folder):
    found, _, _ = logits(folder, NeftuneConfig(), moment(), rows=[ROWS[0], ROWS[0]])
    assert not torch.equal(found[0], found[1])


def test_neftune_has_the_size_that_it_should(folder):
    lm = load(LMConfig(base=str(folder), device="cpu"), str)
    batch, network = collate(ROWS, 0), Network(lm, torch.float32)
    noisy = inputs(NeftuneConfig(alpha=5.0), batch, network, moment())["inputs_embeds"]
    noise = (noisy - network.embeddings(batch.ids)).detach()
    real = batch.attention.bool()
    assert torch.count_nonzero(noise[~real]) == 0
    for row, there in zip(noise, real, strict=True):
        bound = 5 / (int(there.sum()) * 32) ** 0.5
        assert 0.9 * bound < float(row[there].abs().max()) <= bound + 1e-6


def test_scheduled_sampling_feeds_the_models_own_tokens(folder):
    """With no gold at all, the inputs are the greedy guesses of the first pass, in the answer alone."""
    found, network, batch = logits(folder, ScheduledConfig(k=0.0), moment())
    with torch.no_grad():
        own = network.logits(batch)[:, :-1].argmax(-1)
        ids = batch.ids.clone()
        ids[:, 1:] = torch.where(batch.mask, own, ids[:, 1:])
        expected = network.logits(batch, input_ids=ids)
    assert not torch.equal(ids, batch.ids)
    assert torch.equal(found, expected)


def test_the_share_of_gold_falls_with_the_steps_of_all_rounds(folder):
    """The step that the schedule sees goes on in the second round, and in another process."""
    embedding = {"type": "scheduled", "schedule": "linear", "k": 1.0, "c": 0.25}
    seen = []

    def spy(kind, step, **options):
        seen.append(step)
        return teacher_forcing_probability(kind, step, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("raftdiff.llm.learning.hooks.teacher_forcing_probability", spy)
        first = tuner(folder, embedding, rows_per_pass=1)
        fit(first, repeats=2)
        other = tuner(folder, embedding, rows_per_pass=1)
        other.load_state_dict(first.state_dict())
        fit(other, repeats=2)
    assert seen == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3  # every pass of a step sees the same


@pytest.mark.parametrize("soft", [False, True])
def test_the_residual_connection_is_the_mix_of_the_first_pass(folder, soft):
    found, network, batch = logits(folder, TrcConfig(weight=0.4, soft=soft), moment())
    with torch.no_grad():
        gold, first = network.embeddings(batch.ids), network.logits(batch)[:, :-1]
        table = network.lm.model.get_input_embeddings().weight
        mixed = (
            mix_soft(gold, first.softmax(-1), table, batch.mask, 0.4)
            if soft
            else mix_hard(gold, first.argmax(-1), table, batch.mask, 0.4)
        )
        torch.testing.assert_close(found, network.logits(batch, inputs_embeds=mixed))
        plain = network.logits(batch)
    # before the first token of the answer nothing is mixed
    for row, (one, other) in zip(ROWS, zip(found, plain, strict=True), strict=True):
        torch.testing.assert_close(one[: len(row.prompt)], other[: len(row.prompt)], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(one[len(row.prompt)], other[len(row.prompt)], atol=1e-4)


def test_the_ramp_goes_through_all_rounds(folder):
    found = [logits(folder, TrcConfig(weight=0.5, ramp=True), moment(progress=progress))[0] for progress in (0.0, 0.5)]
    assert torch.equal(found[0], logits(folder, TrcConfig(weight=0.0), moment())[0])
    assert torch.equal(found[1], logits(folder, TrcConfig(weight=0.25), moment())[0])
    plain = logits(folder, NoEmbedding(), moment())[0]
    torch.testing.assert_close(found[0], plain, rtol=1e-5, atol=1e-5)


# --- gradients of the input table ---


def table_gradient(folder, embedding):
    learner = tuner(folder, embedding, max_grad_norm=None)
    name = next(name for name in learner.trainable.parameters if name.endswith("embed_tokens.weight"))
    found = []
    hook = learner.course.optimizer.register_step_pre_hook(
        lambda *_: found.append(learner.trainable.parameters[name].grad)
    )
    fit(learner)
    hook.remove()
    return found[0]


@pytest.mark.parametrize("soft", [False, True])
def test_the_residual_connection_trains_no_input_table_unless_asked(folder, untied, soft):
    trc = {"type": "trc", "soft": soft}
    assert table_gradient(untied, trc) is None
    asked = table_gradient(untied, {**trc, "train_input_embedding": True})
    assert float(asked.abs().max()) > 0
    # a table that is the head too learns there, and by the same amount whether or not it learns as the input as well
    through_the_head = table_gradient(folder, trc)
    assert float(through_the_head.abs().max()) > 0
    both = table_gradient(folder, {**trc, "train_input_embedding": True})
    torch.testing.assert_close(both - through_the_head, asked, rtol=1e-3, atol=1e-6)


def test_neftune_trains_the_input_table(untied):
    assert float(table_gradient(untied, {"type": "neftune"}).abs().max()) > 0
