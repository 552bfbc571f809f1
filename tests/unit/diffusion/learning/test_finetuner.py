"""Fine-tuning on latents: it learns, resumes to the bit, and leaves the base within reach."""

import math
from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from raftdiff.diffusion import process
from raftdiff.diffusion.assembly import chains_of
from raftdiff.diffusion.learning.drift import drift
from raftdiff.diffusion.learning.finetuner import DiffusionFineTunerConfig
from raftdiff.diffusion.learning.policy_gradient import chain_of
from raftdiff.diffusion.models.loading import ModelConfig, load
from raftdiff.diffusion.sampler import DiffusionSamplerConfig
from raftdiff.errors import UserError
from raftdiff.recipes.config import check
from raftdiff.training import course
from raftdiff.training.trainable import lora_layers
from raftdiff.types import Item, Prompt, Sample, Selection, silent


def pictures(count=6, std=0.5, scale=1.0):
    """Samples whose latents are one pattern and a little noise: something to learn."""
    generator = torch.Generator().manual_seed(0)
    pattern = torch.randn(4, 8, 8, generator=generator)
    samples = {}
    for index in range(count):
        prompt = Prompt(f"p{index % 3}", "x", "sampling text", f"picture {index % 3}")
        latent = scale * (pattern + std * torch.randn(4, 8, 8, generator=generator))
        sample = Sample(0, prompt, index, index, "policy", Image.new("RGB", (16, 16)), {"latent": latent})
        samples[sample.key] = sample
    return samples


def of_sizes(frame=(16.0, 16.0)):
    """Seven samples with latents of three shapes, 4, 2 and 1 of each, all but the first with a frame."""
    samples = {}
    for index, (rows, columns) in enumerate([(8, 8), (4, 8), (8, 8), (8, 4), (8, 8), (4, 8), (8, 8)]):
        aux = {"latent": torch.randn(4, rows, columns, generator=torch.Generator().manual_seed(index))}
        if index:
            aux["frame"] = torch.tensor([*frame, 0.0, float(index)])
        prompt, picture = Prompt("p", "x", "x", "x"), Image.new("RGB", (2 * columns, 2 * rows))
        sample = Sample(0, prompt, index, index, "policy", picture, aux)
        samples[sample.key] = sample
    return samples


def selection(samples, weight=1.0):
    return Selection("weighted", tuple(Item((key,), weight) for key in samples))


def better_and_worse(count=6):
    """Samples of two patterns, and selections of each kind that say which of the two is better."""
    generator = torch.Generator().manual_seed(2)
    patterns = torch.randn(2, 4, 8, 8, generator=generator)
    samples = {}
    for index in range(2 * count):
        latent = patterns[index % 2] + 0.1 * torch.randn(4, 8, 8, generator=generator)
        sample = Sample(
            0, Prompt("p", "x", "x", "x"), index, index, "policy", Image.new("RGB", (16, 16)), {"latent": latent}
        )
        samples[sample.key] = sample
    keys = list(samples)
    signed = tuple(Item((key,), weight=-1.0 if row % 2 else 1.0) for row, key in enumerate(keys))
    pairs = tuple(Item((keys[row], keys[row + 1])) for row in range(0, 2 * count, 2))
    return samples, {"advantages": signed, "labelled": signed, "pairs": pairs}


def errors(learner, samples):
    """Mean squared error of the policy's prediction on the better and on the worse pictures, at one noise."""
    latents = torch.stack([sample.aux["latent"] for sample in samples.values()])
    places, noise = torch.full((len(latents),), 500), torch.randn(latents[:1].shape, generator=torch.Generator())
    trained = learner.parts.process
    level = trained.level[places]
    xt = process.add_noise(latents, noise.expand_as(latents), level)
    target = process.target(trained.predicts, latents, noise.expand_as(latents), level)
    with torch.no_grad():
        said = learner.parts.predict(xt, trained.timesteps[places], learner.parts.prompts(["x"] * len(latents)))
    each = ((said - target) ** 2).mean(dim=(1, 2, 3))
    return each[::2].mean(), each[1::2].mean()


def tuner(folder, *, dtype="float32", rounds=2, guidance=3.0, **changes):
    parts = load(ModelConfig(base=str(folder), dtype=dtype))
    config = DiffusionFineTunerConfig(**{"rank": 4, "batch_size": 3, "learning_rate": 1e-2, **changes})
    return config.build(parts, total_rounds=rounds, guidance=guidance, seed=0)


def same(one, other):
    return set(one) == set(other) and all(
        set(one[stem]) == set(other[stem])
        and all(torch.equal(one[stem][name], other[stem][name]) for name in one[stem])
        for stem in one
    )


def predictions(parts):
    generator = torch.Generator().manual_seed(1)
    xt = torch.randn(3, 4, 8, 8, generator=generator)
    with torch.no_grad():
        return parts.predict(xt, torch.tensor([10, 400, 900]), parts.prompts(["picture 0"] * 3))


EVERYTHING = {
    "loss_on": "guided",
    "anchor": 0.1,
    "ema": 0.9,
    "min_snr_gamma": 5.0,
    "caption_dropout": 0.2,
    "offset_noise": 0.1,
    "pure_noise_steps": 50,
    "lr_schedule": "cosine",
    "warmup_steps": 2,
    "gradient_accumulation": 2,
    "weight_decay": 0.01,
}
KINDS = [
    pytest.param("sd15", {}, id="lora"),
    pytest.param("sd15", {"target_modules": "all", "channels_last": True}, id="lora-all"),
    pytest.param("sd21", {"adapter": "full", "learning_rate": 1e-3, "channels_last": True}, id="full"),
    pytest.param("sd21", {"train_text_encoder": True}, id="text-encoder"),
    pytest.param("sd15", EVERYTHING, id="everything"),
    pytest.param("sd21", {**EVERYTHING, "adapter": "full", "train_text_encoder": True}, id="everything-full"),
]


@pytest.mark.parametrize("kind", ["sd15", "sd21"])
@pytest.mark.parametrize("loss_on", ["conditional", "guided"])
def test_it_learns_the_selected_pictures(models, kind, loss_on):
    samples = pictures(std=0.1)
    fast = {"steps": 8, "learning_rate": 2e-2, "batch_size": 6, "exposures": None, "max_grad_norm": None}
    learner = tuner(models[kind], loss_on=loss_on, **fast)
    first = learner.fit(selection(samples), samples, seed=0, report=silent)["loss"]
    last = learner.fit(selection(samples), samples, seed=1, report=silent)["loss"]
    assert last < 0.95 * first


@pytest.mark.parametrize(("kind", "changes"), KINDS)
def test_it_resumes_to_the_bit(models, kind, changes):
    samples = pictures()
    straight = tuner(models[kind], steps=2, **changes)
    start = straight.state_dict()
    straight.fit(selection(samples), samples, seed=1, report=silent)
    saved = straight.state_dict()
    assert not same(start, saved)
    straight.fit(selection(samples), samples, seed=2, report=silent)

    resumed = tuner(models[kind], steps=2, **changes)
    resumed.load_state_dict(saved)
    assert same(resumed.state_dict(), saved)
    resumed.fit(selection(samples), samples, seed=2, report=silent)
    assert same(resumed.state_dict(), straight.state_dict())
    assert torch.equal(predictions(resumed.parts), predictions(straight.parts))


@pytest.mark.parametrize(("kind", "changes"), KINDS)
def test_the_base_stays_within_reach(models, kind, changes):
    untouched = predictions(load(ModelConfig(base=str(models[kind]))))
    samples = pictures()
    learner = tuner(models[kind], steps=2, **changes)
    torch.testing.assert_close(predictions(learner.parts), untouched, atol=1e-5, rtol=1e-5)  # it starts as no change
    learner.fit(selection(samples), samples, seed=1, report=silent)
    tuned = predictions(learner.parts)
    assert not torch.allclose(tuned, untouched, atol=1e-4)
    with learner.base_weights():
        torch.testing.assert_close(predictions(learner.parts), untouched, atol=1e-5, rtol=1e-5)
    assert torch.equal(predictions(learner.parts), tuned)


def test_the_base_comes_back_to_the_bit_from_under_a_merged_lora(models):
    samples = pictures()
    learner = tuner(models["sd15"], dtype="bfloat16", precision="float32", steps=2)
    untouched = predictions(load(ModelConfig(base=str(models["sd15"]), dtype="bfloat16")))
    for seed in (1, 2):
        learner.fit(selection(samples), samples, seed=seed, report=silent)
    with learner.base_weights():
        assert torch.equal(predictions(learner.parts), untouched)


@pytest.mark.parametrize("kind", ["sd15", "sd21"])
def test_a_change_too_small_for_half_precision_still_changes_the_pictures(models, kind):
    """A tenth of the distance between two bfloat16 numbers: merged, it would be rounded away."""
    learner = tuner(models[kind], dtype="bfloat16", precision="float32")
    untouched = predictions(learner.parts)
    for layer in lora_layers([learner.parts.denoiser]):
        base = layer.get_base_layer().weight.float()
        wanted = base.abs().mean() * 2.0**-8 / 10
        layer.lora_B["default"].weight.data.fill_(1.0)
        scale = wanted / layer.get_delta_weight("default").float().abs().mean()
        layer.lora_B["default"].weight.data.fill_(float(scale))
    for name, parameter in learner.trainable.parameters.items():
        learner.trainable.live[name].copy_(parameter.data)
    learner.trainable.rest(None)
    assert not torch.equal(predictions(learner.parts), untouched)
    with learner.base_weights():
        assert torch.equal(predictions(learner.parts), untouched)


RULES = [
    pytest.param({"type": "advantage", "clip": 1.0}, id="advantage"),
    pytest.param({"type": "nft", "most": 1.0}, id="nft"),
    pytest.param({"type": "dpo", "beta": 20.0}, id="dpo"),
    pytest.param({"type": "dpo", "beta": 20.0, "loss": "ipo"}, id="ipo"),
    pytest.param({"type": "kto", "beta": 20.0}, id="kto"),
]


def lesson(learner, items):
    kind = learner.requires.kinds[0]
    return Selection(kind, items[kind])


@pytest.mark.parametrize("rule", RULES)
def test_rules_of_difference_prefer_the_better_pictures(models, rule):
    samples, items = better_and_worse()
    learner = tuner(models["sd21"], learning=rule, steps=6, exposures=None, batch_size=6)
    before = errors(learner, samples)
    learner.fit(lesson(learner, items), samples, seed=0, report=silent)
    after = errors(learner, samples)
    assert after[1] - after[0] > before[1] - before[0] + 0.002


@pytest.mark.parametrize("rule", RULES[1:3])
def test_rules_of_difference_resume_to_the_bit(models, rule):
    samples, items = better_and_worse(3)
    straight = tuner(models["sd21"], learning=rule, steps=2, ema=0.5)
    straight.fit(lesson(straight, items), samples, seed=1, report=silent)
    saved = straight.state_dict()
    straight.fit(lesson(straight, items), samples, seed=2, report=silent)
    resumed = tuner(models["sd21"], learning=rule, steps=2, ema=0.5)
    resumed.load_state_dict(saved)
    resumed.fit(lesson(resumed, items), samples, seed=2, report=silent)
    assert same(resumed.state_dict(), straight.state_dict())


@pytest.mark.parametrize("rule", RULES[1:3])
def test_a_step_of_whole_items_is_the_same_however_it_is_cut(models, rule):
    samples, items = better_and_worse(3)
    states = []
    for batch, accumulation in ((6, 1), (2, 3)):
        learner = tuner(
            models["sd15"],
            learning=rule,
            batch_size=batch,
            gradient_accumulation=accumulation,
            steps=1,
            max_grad_norm=None,
        )
        figures = learner.fit(lesson(learner, items), samples, seed=1, report=silent)
        assert figures["network_evaluations"] == 2 * 6 + 2 * min(len(samples), 16)  # a reference's beside its own
        states.append(learner.state_dict()["optimizer"])
    moments = [torch.cat([w.flatten() for n, w in state.items() if n.endswith("exp_avg")]) for state in states]
    torch.testing.assert_close(moments[0], moments[1], atol=1e-5, rtol=1e-2)


def test_old_is_the_policy_that_the_round_began_with_and_base_the_one_before_all(models):
    """At the first step of a round nothing has moved away from old, so the loss is minus the mean advantage."""
    samples, items = better_and_worse(3)
    plenty = Selection("advantages", tuple(Item(item.keys, weight=2.0) for item in items["advantages"]))
    learner = tuner(models["sd15"], learning={"type": "advantage"}, steps=1, batch_size=6)
    losses = [learner.fit(plenty, samples, seed=seed, report=silent)["loss"] for seed in (1, 2)]
    assert losses == pytest.approx([-2.0, -2.0], abs=1e-5)
    learner = tuner(models["sd15"], learning={"type": "dpo"}, steps=1, batch_size=6)
    losses = [learner.fit(lesson(learner, items), samples, seed=seed, report=silent)["loss"] for seed in (1, 2)]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-5)
    assert abs(losses[1] - math.log(2)) > 1e-3


def test_the_anchor_shares_the_base_that_a_rule_asks_for(models):
    samples, items = better_and_worse(3)
    learner = tuner(models["sd15"], learning={"type": "dpo"}, steps=1, batch_size=6, anchor=0.1)
    assert learner.fit(lesson(learner, items), samples, seed=1, report=silent)["network_evaluations"] == 2 * 6 + 2 * 6


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"loss_on": "guided"}, "loss_on: guided is for learning: sft alone; nft has no need of it"),
        (
            {"train_text_encoder": True},
            "train_text_encoder is for learning: sft alone; what nft compares with would move",
        ),
        ({"min_snr_gamma": 5.0}, "min_snr_gamma is for learning: sft alone, not for nft"),
    ],
)
def test_what_is_for_imitation_alone_is_refused_elsewhere(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        check(DiffusionFineTunerConfig, {"learning": {"type": "nft"}, **changes}, "recipe.yaml")


def walked(folder, count=6, guidance=2.0, **changes):
    """A tuner by ddpo, and pictures that its model drew, with their paths and advantages."""
    parts = load(ModelConfig(base=str(folder)))
    drawing = DiffusionSamplerConfig(steps=4, guidance=guidance, scheduler="ddim", eta=1.0, batch_size=count)
    sampler = drawing.build(parts, ("latent", "path"))
    chain = chain_of(sampler.solver(), drawing.effective_eta, guidance)
    config = DiffusionFineTunerConfig(
        **{"learning": {"type": "ddpo"}, "rank": 4, "batch_size": 3, "learning_rate": 1e-3, **changes}
    )
    learner = config.build(parts, total_rounds=2, guidance=1.0, seed=0, chains={(8, 8): chain})
    drawn = sampler.sample([Prompt("p", "x", "x", "x", "bad")], per_prompt=count, seed=0, round=0, done=set())
    samples = {sample.key: sample for sample in drawn}
    items = tuple(Item((key,), weight=-1.0 if row % 2 else 2.0) for row, key in enumerate(samples))
    return learner, samples, Selection("advantages", items)


def test_a_step_of_the_path_becomes_likelier_where_it_led_to_a_better_picture(models):
    """At the first step of a round nothing has moved away from old; after some the better steps have gained."""
    free = {"learning": {"type": "ddpo", "clip": 10.0}, "batch_size": 6, "exposures": None}
    learner, samples, lesson = walked(models["sd21_zero_snr"], steps=1, **free)
    first = learner.fit(lesson, samples, seed=1, report=silent)
    assert first["loss"] == pytest.approx(-0.5, abs=1e-6)
    assert (first["clipped"], first["approx_kl"]) == (0.0, 0.0)
    learner, samples, lesson = walked(models["sd21_zero_snr"], steps=6, **free)
    assert learner.fit(lesson, samples, seed=1, report=silent)["loss"] < -0.5 - 1e-4


def test_a_sampler_that_draws_no_noise_is_told_before_anything_is_drawn(models):
    parts = load(ModelConfig(base=str(models["sd15"])))
    still = DiffusionSamplerConfig(steps=4, guidance=2.0, scheduler="ddim").build(parts, ("latent", "path"))
    chain = chain_of(still.solver(), 0.0, 2.0)
    config = DiffusionFineTunerConfig(learning={"type": "ddpo"})
    with pytest.raises(UserError, match="sampler.steps: no step of this sampler draws noise"):
        config.build(parts, total_rounds=1, guidance=1.0, seed=0, chains={(8, 8): chain})


def test_ddpo_resumes_to_the_bit(models):
    straight, samples, lesson = walked(models["sd21"], steps=2, ema=0.5)
    straight.fit(lesson, samples, seed=1, report=silent)
    saved = straight.state_dict()
    straight.fit(lesson, samples, seed=2, report=silent)
    resumed, _, _ = walked(models["sd21"], steps=2, ema=0.5)
    resumed.load_state_dict(saved)
    resumed.fit(lesson, samples, seed=2, report=silent)
    assert same(resumed.state_dict(), straight.state_dict())


def test_steps_of_paths_are_the_same_however_they_are_cut_and_cost_both_halves_twice(models):
    moments = []
    for batch, accumulation in ((6, 1), (2, 3)):
        learner, samples, lesson = walked(
            models["sd15"],
            batch_size=batch,
            gradient_accumulation=accumulation,
            steps=1,
            max_grad_norm=None,
            anchor=0.1,
        )
        figures = learner.fit(lesson, samples, seed=1, report=silent)
        assert figures["network_evaluations"] == (2 + 2 + 1) * 6 + 2 * 6  # policy, old, base; the drift's
        state = learner.state_dict()["optimizer"]
        moments.append(torch.cat([w.flatten() for n, w in state.items() if n.endswith("exp_avg")]))
    assert moments[0].abs().max() > 0
    torch.testing.assert_close(moments[0], moments[1], atol=1e-5, rtol=1e-2)


def test_negative_prompts_are_what_guidance_leads_away_from_in_learning_too(models):
    moments = []
    for text in ("bad", "worse"):
        learner, samples, lesson = walked(models["sd15"], steps=1)
        other = {key: replace(sample, prompt=replace(sample.prompt, negative=text)) for key, sample in samples.items()}
        learner.fit(lesson, other, seed=1, report=silent)
        state = learner.state_dict()["optimizer"]
        moments.append(torch.cat([w.flatten() for n, w in state.items() if n.endswith("exp_avg")]))
    assert not torch.allclose(*moments)


def test_a_sample_without_its_path_is_named(models):
    learner, samples, lesson = walked(models["sd15"], count=2)
    bare = {key: replace(sample, aux={"latent": sample.aux["latent"]}) for key, sample in samples.items()}
    with pytest.raises(UserError, match="is recorded without its path, which the fine-tuner learns from"):
        learner.fit(lesson, bare, seed=0, report=silent)


@pytest.mark.parametrize("name", ["caption_dropout", "offset_noise", "pure_noise_steps"])
def test_what_is_for_pictures_under_noise_is_refused_where_steps_are_learnt(name):
    with pytest.raises(UserError, match=f"{name} is for pictures under noise; ddpo learns from steps as they were dr"):
        check(DiffusionFineTunerConfig, {"learning": {"type": "ddpo"}, name: 1}, "recipe.yaml")


def test_figures_of_a_round(models):
    samples = pictures()
    learner = tuner(models["sd15"], steps=100, exposures=2.0, batch_size=2, gradient_accumulation=2)
    said = []
    figures = learner.fit(selection(samples), samples, seed=1, report=lambda done, total: said.append((done, total)))
    assert said == [(1, 3), (2, 3), (3, 3)]
    assert figures["steps"] == 3
    assert figures["exposures_mean"] == 2
    assert figures["network_evaluations"] == 12 + 2 * 6  # a row a picture, and the drift's two
    assert figures["prediction_drift"] > 0
    assert figures["latent_std"] == pytest.approx(
        torch.stack([s.aux["latent"] for s in samples.values()]).std().item(), rel=1e-5
    )
    assert all(math.isfinite(value) for value in figures.values())


def test_guidance_and_anchor_cost_a_row_each(models):
    samples = pictures()
    learner = tuner(models["sd15"], exposures=1.0, loss_on="guided", anchor=0.1)
    assert learner.fit(selection(samples), samples, seed=1, report=silent)["network_evaluations"] == 3 * 6 + 2 * 6


def test_accumulation_changes_nothing_but_the_last_bits(models):
    samples = pictures()
    states = []
    for batch, accumulation in ((6, 1), (2, 3)):
        learner = tuner(
            models["sd15"],
            batch_size=batch,
            gradient_accumulation=accumulation,
            steps=2,
            learning_rate=1e-4,
            caption_dropout=0.3,
        )
        learner.fit(selection(samples), samples, seed=1, report=silent)
        states.append(learner.state_dict()["optimizer"])
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, atol=1e-5, rtol=1e-2)


def test_weight_zero_teaches_nothing(models):
    samples = pictures()
    learner = tuner(models["sd15"], steps=2)
    before = learner.state_dict()["adapter"]
    learner.fit(selection(samples, weight=0.0), samples, seed=1, report=silent)
    after = learner.state_dict()["adapter"]
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_average_is_what_samples(models):
    samples = pictures()
    plain, averaged = tuner(models["sd15"], steps=3), tuner(models["sd15"], steps=3, ema=0.999)
    for learner in (plain, averaged):
        learner.fit(selection(samples), samples, seed=1, report=silent)
    live, same_live = plain.state_dict()["adapter"], averaged.state_dict()["adapter"]
    assert all(torch.equal(live[name], same_live[name]) for name in live)
    assert not torch.allclose(predictions(plain.parts), predictions(averaged.parts), atol=1e-5)


def test_an_anchor_holds_the_model_back(models):
    samples = pictures()
    moved = []
    for anchor in (0.0, 10.0):
        learner = tuner(models["sd15"], steps=12, exposures=None, anchor=anchor)
        moved.append(learner.fit(selection(samples), samples, seed=1, report=silent)["prediction_drift"])
    assert moved[1] < 0.7 * moved[0]


def test_the_learning_rate_spans_the_rounds(models):
    samples = pictures()
    learner = tuner(models["sd15"], rounds=2, lr_schedule="linear", exposures=1.0, learning_rate=1.0e-3)
    rates = [learner.fit(selection(samples), samples, seed=n, report=silent)["learning_rate"] for n in (0, 1)]
    # two steps a round; the last of each is at 1/4 and 3/4 of the whole
    assert rates == pytest.approx([0.75e-3, 0.25e-3])


@pytest.mark.parametrize("precision", [None, "float32", "bfloat16"])
@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_bfloat16_models_train_float32_weights(models, precision, adapter):
    samples = pictures(count=3)
    learner = tuner(
        models["sd21"], dtype="bfloat16", precision=precision, adapter=adapter, steps=1, anchor=0.1, loss_on="guided"
    )
    figures = learner.fit(selection(samples), samples, seed=1, report=silent)
    assert math.isfinite(figures["loss"])
    sampled = {p.dtype for name, p in learner.parts.denoiser.named_parameters() if "lora_" not in name}
    assert sampled == {torch.bfloat16}
    state = learner.state_dict()
    assert {w.dtype for w in state["adapter" if adapter == "lora" else "weights"].values()} == {torch.float32}
    assert figures["grad_norm"] > 0


def test_bfloat16_autocast_gradients_are_those_of_float32(models):
    samples = pictures()
    moments = []
    for precision in ("float32", "bfloat16"):
        learner = tuner(models["sd15"], precision=precision, steps=1, anchor=0.1, loss_on="guided", max_grad_norm=None)
        learner.fit(selection(samples), samples, seed=1, report=silent)
        state = learner.state_dict()["optimizer"]
        moments.append(torch.cat([state[name].flatten() for name in sorted(state) if name.endswith("/exp_avg")]))
    assert torch.nn.functional.cosine_similarity(moments[0], moments[1], dim=0) > 0.99


def test_scaled_gradients_teach_the_same(models):
    """float16's gradient scaler, tried on the CPU with the bfloat16 network that runs there."""
    samples, states = pictures(), []
    for scaled in (False, True):
        learner = tuner(models["sd15"], precision="bfloat16", steps=2, learning_rate=1e-4)
        if scaled:
            learner.descent.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        learner.fit(selection(samples), samples, seed=1, report=silent)
        states.append(learner.state_dict())
    moments = [torch.cat([w.flatten() for n, w in s["optimizer"].items() if n.endswith("exp_avg")]) for s in states]
    torch.testing.assert_close(moments[0], moments[1], atol=1e-4, rtol=0.05)
    assert states[1]["schedule"]["scale"] == 1024
    assert states[1]["schedule"]["_growth_tracker"] == 2
    learner.load_state_dict(states[1])
    assert learner.descent.scaler.state_dict()["_growth_tracker"] == 2


def test_gradient_checkpointing_changes_no_gradient(models):
    samples = pictures()
    states = []
    for checkpointing in (False, True):
        learner = tuner(models["sd15"], steps=1, gradient_checkpointing=checkpointing)
        learner.fit(selection(samples), samples, seed=1, report=silent)
        states.append(learner.state_dict()["optimizer"])
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value)


def test_drift_is_zero_before_and_deterministic_after(models):
    samples = pictures()
    learner = tuner(models["sd15"], steps=2)
    latents = torch.stack([s.aux["latent"] for s in samples.values()])
    captions = [s.prompt.learning for s in samples.values()]
    assert drift(learner.parts, learner.base_weights, latents, captions) == 0
    learner.fit(selection(samples), samples, seed=1, report=silent)
    one, other = (drift(learner.parts, learner.base_weights, latents, captions, batch_size=n) for n in (2, 6))
    assert one > 0
    assert one == pytest.approx(other, rel=1e-3)
    assert drift(learner.parts, learner.base_weights, latents[:0], []) == 0


def test_an_empty_selection_teaches_nothing(models):
    learner = tuner(models["sd15"])
    figures = learner.fit(Selection("weighted", ()), {}, seed=1, report=silent)
    assert figures["steps"] == 0
    assert learner.course.rounds == 1


@pytest.mark.parametrize(("dropout", "nothing"), [(0.0, set()), (0.5, {""})])
def test_the_learning_text_is_what_is_learned(models, monkeypatch, dropout, nothing):
    samples = pictures(count=3)
    learner = tuner(models["sd15"], exposures=1.0, caption_dropout=dropout)
    seen = []
    ask = type(learner.parts.prompts).__call__
    monkeypatch.setattr(type(learner.parts.prompts), "__call__", lambda self, t: seen.extend(t) or ask(self, t))
    learner.fit(selection(samples), samples, seed=1, report=silent)
    assert set(seen) == {"picture 0", "picture 1", "picture 2"} | nothing


def test_errors_are_sentences(models):
    samples = pictures(count=2)
    learner = tuner(models["sd15"])
    with pytest.raises(UserError, match="already carries a LoRA"):
        DiffusionFineTunerConfig().build(learner.parts, total_rounds=1, guidance=1.0, seed=0)
    with pytest.raises(UserError, match="no layer of the model ends in any of to_nowhere"):
        tuner(models["sd15"], target_modules=("to_nowhere",))
    with pytest.raises(UserError, match=r"pure_noise_steps: 2000 is more than the model's 1000 timesteps"):
        tuner(models["sd15"], pure_noise_steps=2000)
    with pytest.raises(UserError, match="float16 needs a GPU"):
        tuner(models["sd15"], precision="float16")
    bare = {key: Sample(0, s.prompt, s.index, 0, "policy", s.media) for key, s in samples.items()}
    with pytest.raises(UserError, match="is recorded without its latent"):
        learner.fit(selection(bare), bare, seed=0, report=silent)


def test_a_loss_that_is_no_number_stops_with_a_sentence(models):
    samples = pictures()
    for sample in samples.values():
        sample.aux["latent"].fill_(float("nan"))
    with pytest.raises(UserError, match=r"the loss is no longer a number at step 1. Lower finetuner.learning_rate"):
        tuner(models["sd15"]).fit(selection(samples), samples, seed=0, report=silent)


class Reads(TorchDispatchMode):
    """How often a number is read from a tensor, for which a GPU would be waited for."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        pytest.param("weighted", {"loss_on": "guided", "anchor": 0.1, "ema": 0.9, "caption_dropout": 0.2}, id="sft"),
        pytest.param("pairs", {"learning": {"type": "dpo"}}, id="dpo"),
        pytest.param("advantages", {"learning": {"type": "nft"}}, id="nft"),
    ],
)
def test_no_number_is_read_between_two_readings_of_the_figures(models, monkeypatch, kind, changes):
    monkeypatch.setattr(course, "READ_SECONDS", 1e9)
    samples, items = better_and_worse(3)
    learner = tuner(models["sd15"], steps=3, batch_size=2, gradient_accumulation=2, **changes)
    told = []
    with Reads() as reads:
        taught = selection(samples) if kind == "weighted" else Selection(kind, items[kind])
        learner.fit(taught, samples, seed=0, report=lambda *_: told.append(reads.count))
    assert told[0] == told[1] == told[2] < reads.count


def test_states_of_another_finetuner_are_refused(models):
    lora, full = tuner(models["sd15"]), tuner(models["sd15"], adapter="full")
    with pytest.raises(UserError, match=r"holds no 'weights' weights: finetuner.adapter was different"):
        full.load_state_dict(lora.state_dict())
    with pytest.raises(UserError, match="has another shape"):
        tuner(models["sd15"], rank=2).load_state_dict(lora.state_dict())
    with pytest.raises(UserError, match="is missing"):
        tuner(models["sd15"], target_modules="all").load_state_dict(lora.state_dict())


def test_misspelt_keys_get_a_hint():
    with pytest.raises(UserError, match="Did you mean 'learning_rate'"):
        check(DiffusionFineTunerConfig, {"learing_rate": 1e-4})


def seen(learner):
    """Shapes and frames of what the network is shown, batch by batch."""
    found, predict = [], learner.policies.tuned

    def watched(xt, timesteps, texts):
        found.append((tuple(xt.shape), texts.frame))
        return predict(xt, timesteps, texts)

    learner.policies.tuned = watched
    return found


def test_a_batch_is_of_one_size_and_sizes_come_as_often_as_they_have_pictures(models):
    """And what is known of how pictures were cut is told with the captions; the others are whole."""
    samples = of_sizes(frame=(640.0, 333.0))
    settings = {"batch_size": 2, "gradient_accumulation": 2, "exposures": 2.0, "ema": 0.9}
    straight = tuner(models["sd15"], **settings)
    batches = seen(straight)
    figures = straight.fit(selection(samples), samples, seed=1, report=silent)
    assert (figures["steps"], figures["exposures_mean"]) == (4, 2)  # 14 pictures, 4 a step, as of one size
    shown = dict.fromkeys((shape[1:] for shape, _ in batches), 0)
    for shape, _ in batches:
        assert shape[0] == 2
        shown[shape[1:]] += shape[0]
    assert shown == {(4, 8, 8): 8, (4, 4, 8): 4, (4, 8, 4): 2}
    frames = sorted(row for _, frame in batches if frame is not None for row in frame.tolist())
    cut = [[640.0, 333.0, 0.0, float(index)] for index in range(1, 7) for _ in range(2)]
    assert [row for row in frames if row[0] == 640] == cut
    assert {tuple(row) for row in frames} - set(map(tuple, cut)) <= {(16.0, 16.0, 0.0, 0.0)}

    saved = straight.state_dict()
    straight.fit(selection(samples), samples, seed=2, report=silent)
    resumed = tuner(models["sd15"], **settings)
    resumed.load_state_dict(saved)
    resumed.fit(selection(samples), samples, seed=2, report=silent)
    assert same(resumed.state_dict(), straight.state_dict())


def test_a_pair_of_two_sizes_is_refused(models):
    samples = of_sizes()
    keys = list(samples)
    torn = Selection("pairs", (Item((keys[0], keys[1])),))
    learner = tuner(models["sd15"], learning={"type": "dpo"})
    with pytest.raises(UserError, match=r"'p' are of several sizes \(16x16 and 16x8\), and a rule of pairs compares"):
        learner.fit(torn, samples, seed=0, report=silent)


def test_paths_are_learnt_by_the_steps_of_their_own_size(models):
    """A flow whose steps follow the number of tokens."""
    parts = load(ModelConfig(base=str(models["flux_dev"])))
    side = 2 * parts.multiple
    drawing = DiffusionSamplerConfig(
        steps=3, guidance=1.0, scheduler="euler_a", sizes=[(side, side), (side, 2 * side), (2 * side, side)]
    )
    config = DiffusionFineTunerConfig(learning={"type": "ddpo"}, rank=4, batch_size=2, exposures=2.0)
    sampler = drawing.build(parts, ("latent", "path"))
    chains = chains_of(sampler, drawing)
    assert len({tuple(chain.level.s.tolist()) for chain in chains.values()}) == 2
    learner = config.build(parts, total_rounds=1, guidance=1.0, seed=0, chains=chains)
    prompts = [Prompt(name, name, name, name) for name in "abcd"]
    samples = {it.key: it for it in sampler.sample(prompts, per_prompt=1, seed=0, round=0, done=set())}
    assert len({it.media.size for it in samples.values()}) > 1
    told, predict = {}, learner.policies.tuned

    def watched(xt, timesteps, texts):
        told.setdefault(tuple(xt.shape[-2:]), set()).update(timesteps.tolist())
        return predict(xt, timesteps, texts)

    learner.policies.tuned = watched
    learner.fit(Selection("advantages", tuple(Item((key,), 1.0) for key in samples)), samples, seed=0, report=silent)
    assert all(times <= set(chains[shape].timesteps.tolist()) for shape, times in told.items())
    assert len(told) > 1
