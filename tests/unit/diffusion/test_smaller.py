"""Settings that make a model fit on a smaller card: what they keep, and what they change."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from raftdiff.diffusion.assembly import build_ranker
from raftdiff.diffusion.export import export
from raftdiff.diffusion.learning.finetuner import DiffusionFineTunerConfig
from raftdiff.diffusion.models.loading import ModelConfig, load
from raftdiff.diffusion.recipe_files import load_recipe
from raftdiff.diffusion.sampler import DiffusionSamplerConfig
from raftdiff.errors import UserError
from raftdiff.testing.conformance import check_finetuner
from raftdiff.training import quantised
from raftdiff.training.devices import Idle, networks
from raftdiff.training.trainable import lora_layers
from raftdiff.types import Item, Prompt, Sample, Selection, silent

# diffusers asks numpy for an array in a way that numpy 2 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PROMPTS = [Prompt(name, name, name, name) for name in ("a cat", "a dog")]
SAMPLER = DiffusionSamplerConfig(steps=2, guidance=2.0, batch_size=4)


def opened(folder, **changes):
    return load(ModelConfig(base=str(folder), **changes))


def drawn(parts):
    samples = SAMPLER.build(parts).sample(PROMPTS, per_prompt=2, seed=0, round=0, done=set())
    return {sample.key: sample for sample in samples}


def latents(samples):
    return torch.stack([sample.aux["latent"] for sample in samples.values()])


def tuner(parts, **changes):
    settings = {"rank": 4, "steps": 4, "batch_size": 4, "learning_rate": 3e-3, **changes}
    return DiffusionFineTunerConfig(**settings).build(parts, total_rounds=1, guidance=1.0, seed=0)


def chosen(samples):
    return Selection("weighted", tuple(Item((key,)) for key in samples))


@pytest.mark.parametrize(("bits", "kind", "close"), [("int8", "zimage", 0.02), ("nf4", "sd15", 0.2)])
def test_a_quantised_model_predicts_nearly_the_same_and_is_tuned_above_weights_that_stay(models, bits, kind, close):
    whole, parts = opened(models[kind]), opened(models[kind], quantise=bits)
    layers = [it for it in parts.denoiser.modules() if type(it).__name__ in ("Linear4bit", "Linear8bitLt")]
    assert len(layers) == len(quantised.layers(whole.denoiser)) > 10
    xt = torch.randn(4, *whole.latent_shape(16, 16), generator=torch.Generator().manual_seed(0))
    texts, timesteps = whole.prompts(["a cat"] * 4), whole.process.timesteps[[10, 300, 600, 990]]
    with torch.no_grad():
        there, here = (it.predict(xt, timesteps, texts) for it in (whole, parts))
    assert 0 < float((there - here).std() / there.std()) < close
    held = [layer.weight.data.clone() for layer in layers]
    before, learner = drawn(parts), tuner(parts)
    learner.fit(chosen(before), before, seed=0, report=silent)
    after = drawn(parts)
    assert not torch.allclose(latents(before), latents(after), atol=1e-2)
    assert all(torch.equal(layer.weight.data, weight) for layer, weight in zip(layers, held, strict=True))
    with learner.base_weights():
        torch.testing.assert_close(latents(drawn(parts)), latents(before), atol=1e-5, rtol=1e-5)


def test_what_was_learnt_above_quantised_weights_leaves_and_goes_with_the_whole_ones(models, tmp_path):
    parts = opened(models["sd15"], quantise="int8")
    before, learner = drawn(parts), tuner(parts)
    learner.fit(chosen(before), before, seed=0, report=silent)
    whole = tuner(opened(models["sd15"]))
    whole.load_state_dict(learner.state_dict())
    one, other = (
        load_file(export(it, "kohya", tmp_path / f"{n}.safetensors")) for n, it in enumerate((learner, whole))
    )
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    with pytest.raises(UserError, match="merged: .* are rounded; load it without model.quantise"):
        export(learner, "merged", tmp_path / "merged")


def test_resumes_to_the_bit(models):
    samples = drawn(opened(models["sd15"]))

    def build():
        settings = {"steps": 2, "batch_size": 2, "optimizer": "adamw_8bit", "rank": 128, "target_modules": ("to_q",)}
        return DiffusionFineTunerConfig(**settings).build(
            opened(models["sd15"], quantise="nf4"), total_rounds=3, guidance=2.0, seed=0
        )

    check_finetuner(build, chosen(samples), samples).demand()


def test_moments_in_8_bits_learn_like_those_in_32(models):
    """Of tensors with 4,096 weights or more, which are kept in 8 bits; the smaller ones are as they were."""
    found = {}
    for name in ("adamw", "adamw_8bit"):
        parts = opened(models["sd15"])
        samples, learner = drawn(parts), tuner(parts, adapter="full", optimizer=name, learning_rate=1e-3, steps=8)
        figures = learner.fit(chosen(samples), samples, seed=0, report=silent)
        found[name] = (figures["loss"], latents(drawn(parts)), learner)
    assert found["adamw_8bit"][0] == pytest.approx(found["adamw"][0], rel=0.05)
    assert not torch.equal(found["adamw_8bit"][1], found["adamw"][1])
    kept = found["adamw_8bit"][2].state_dict()["optimizer"]
    small = {name for name, it in kept.items() if name.endswith("/state1") and it.dtype == torch.uint8}
    assert small
    assert all(kept[name].numel() >= 4096 for name in small)


def test_a_lora_makes_no_float32_copies_of_what_its_layers_see(models):
    parts = opened(models["sd15"], dtype="bfloat16")
    learner = tuner(parts, precision="bfloat16")
    layers, kept = lora_layers([parts.denoiser]), {}
    xt, texts = torch.randn(4, 4, 8, 8), parts.prompts(["a cat"] * 4)
    learner.trainable.wake(torch.bfloat16)
    for cast in (True, False):
        for layer in layers:
            assert cast or not layer.cast_input_dtype_enabled or kept
            layer.cast_input_dtype_enabled = cast
        saved = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda it, saved=saved: (
                saved.update({it.untyped_storage().data_ptr(): it.untyped_storage().nbytes()}),
                it,
            )[1],
            lambda it: it,
        ):
            said = parts.predict(xt, torch.tensor([1, 2, 3, 4]), texts, torch.bfloat16)
        kept[cast] = (sum(saved.values()), said.detach())
    assert torch.equal(kept[True][1], kept[False][1])
    assert kept[False][0] < kept[True][0]


class Seen(nn.Module):
    def __init__(self):
        super().__init__()
        self.places = []

    def to(self, place):
        self.places.append(str(place))
        return self


def test_networks_wait_in_main_memory_and_are_fetched_while_they_are_asked():
    text, vae, denoiser = Seen(), Seen(), Seen()
    idle = Idle([text, vae], torch.device("cuda"))
    with idle.fetched(text, denoiser):
        assert (text.places, vae.places, denoiser.places) == (["cuda"], [], [])
    assert text.places == ["cuda", "cpu"]
    with pytest.raises(RuntimeError), idle.fetched(vae):
        raise RuntimeError
    assert vae.places == ["cuda", "cpu"]


def test_rewards_take_turns(monkeypatch):
    """Only the one that scores lies on the device, its tower for the diversity too, and scores stay as they are."""
    places, move = [], torch.nn.Module.to
    base = ["ranker.rewards=[{type: clip, model: scene-clip}, {type: jpeg, weight: 0.1}]"]
    samples = [
        Sample(
            0, Prompt("p", "a cat", "a cat", "a cat"), index, index, "policy", Image.effect_noise((32, 32), 50 + index)
        )
        for index in range(3)
    ]
    plain = build_ranker(load_recipe("demo", base), device="cpu")
    ranker = build_ranker(load_recipe("demo", [*base, "ranker.in_turn=true"]), device="cpu")
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, place: (places.append(place), move(self, place))[1])
    scores, wanted = ranker.raw(samples), plain.raw(samples)
    assert all(np.array_equal(scores[name], wanted[name]) for name in wanted)
    assert len(places) == 2
    assert ranker.describe is not None
    ranker.describe([samples], set())
    assert len(places) > 2
    assert networks(ranker.rewards[0][0]) == networks(plain.rewards[0][0])  # one tower for both
    assert networks(ranker.rewards[1][0]) == []
    climbing = ["ranker.rewards=[{type: clip, model: scene-clip}]", "finetuner.learning={type: draft}"]
    with pytest.raises(UserError, match="ranker.in_turn: learning: draft follows the rewards' gradient"):
        load_recipe("demo", [*climbing, "sampler={type: diffusion}", "ranker.in_turn=true"])


def test_text_encoders_are_fetched_once_for_all_prompts_of_a_stage(models, monkeypatch):
    parts = opened(models["sd15"], offload=True)
    moved, fetched = [], parts.idle.fetched
    names = {id(module): name for name, module in parts.modules.items()}

    def watch(*modules):
        moved.extend(names[id(module)] for module in modules)
        return fetched(*modules)

    monkeypatch.setattr(parts.idle, "fetched", watch)
    samples = SAMPLER.model_copy(update={"batch_size": 1}).build(parts)
    plain = drawn(opened(models["sd15"]))
    again = {it.key: it for it in samples.sample(PROMPTS, per_prompt=2, seed=0, round=0, done=set())}
    torch.testing.assert_close(latents(again), latents(plain), atol=1e-5, rtol=1e-5)
    assert moved == ["text_encoder", "vae", "vae", "vae", "vae"]


def test_what_does_not_go_together_is_told(models, monkeypatch):
    with pytest.raises(UserError, match=r"finetuner.adapter: full trains every weight, which model.quantise rounds"):
        tuner(opened(models["sd15"], quantise="int8"), adapter="full")
    with pytest.raises(UserError, match="train_text_encoder: what is trained stays on the device, and model.offload"):
        tuner(opened(models["sd15"], offload=True), train_text_encoder=True)
    monkeypatch.setattr(quantised, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"model.quantise: bitsandbytes is not installed. .* 'raftdiff\[quantised\]'"):
        opened(models["sd15"], quantise="nf4")
    (need,) = DiffusionFineTunerConfig(optimizer="adamw_8bit").needs(str)
    assert need.key == "optimizer"
