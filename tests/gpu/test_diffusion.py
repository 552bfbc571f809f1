"""What only a GPU can show: float16, and pictures that do not depend on the device."""

import math

import pytest
import torch

from raftdiff.diffusion.learning.finetuner import DiffusionFineTunerConfig
from raftdiff.diffusion.models import tiny
from raftdiff.diffusion.models.loading import ModelConfig, load
from raftdiff.diffusion.probe import measure
from raftdiff.diffusion.sampler import DiffusionSamplerConfig
from raftdiff.types import Item, Prompt, Selection, silent

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    # diffusers asks numpy for an array in a way that numpy 2 deprecates
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

PROMPTS = [Prompt(name, name, name, name) for name in ("a cat", "a dog")]


@pytest.fixture(scope="module", params=["sd15", "sd21"])
def folder(request, tmp_path_factory):
    return tiny.write_folder(tmp_path_factory.mktemp("models") / request.param, request.param)


def draw(parts, **changes):
    sampler = DiffusionSamplerConfig(**{"steps": 4, "guidance": 3.0, "batch_size": 3, **changes}).build(parts)
    return list(sampler.sample(PROMPTS, per_prompt=2, seed=0, round=0, done=set()))


def latents(samples):
    return torch.stack([sample.aux["latent"] for sample in samples])


def fit(parts, samples, **changes):
    tuner = DiffusionFineTunerConfig(steps=3, batch_size=2, **changes).build(
        parts, total_rounds=2, guidance=3.0, seed=0
    )
    selection = Selection("weighted", tuple(Item((sample.key,)) for sample in samples))
    return tuner, tuner.fit(selection, {sample.key: sample for sample in samples}, seed=0, report=silent)


def test_the_device_does_not_change_the_picture(folder):
    one = draw(load(ModelConfig(base=str(folder), device="cpu")))
    other = draw(load(ModelConfig(base=str(folder), device="cuda")))
    # TF32 keeps ten bits of the mantissa
    torch.testing.assert_close(latents(one), latents(other), atol=0.05, rtol=0.05)
    assert latents(other).device.type == "cpu"
    apart = draw(load(ModelConfig(base=str(folder), device="cuda", text_device="cpu")))
    torch.testing.assert_close(latents(one), latents(apart), atol=0.05, rtol=0.05)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("changes", [{}, {"adapter": "full"}, {"loss_on": "guided", "anchor": 0.1, "ema": 0.9}])
def test_half_precision_samples_and_tunes(folder, dtype, changes):
    parts = load(ModelConfig(base=str(folder), device="cuda", dtype=dtype, channels_last=True))
    samples = draw(parts)
    assert latents(samples).isfinite().all()
    tuner, figures = fit(parts, samples, **changes)
    assert all(math.isfinite(value) for value in figures.values())
    assert latents(draw(parts)).isfinite().all()

    resumed = DiffusionFineTunerConfig(steps=3, batch_size=2, **changes).build(
        load(ModelConfig(base=str(folder), device="cuda", dtype=dtype)), total_rounds=2, guidance=3.0, seed=0
    )
    resumed.load_state_dict(tuner.state_dict())
    torch.testing.assert_close(latents(draw(resumed.parts)), latents(draw(parts)), atol=0.1, rtol=0.1)


@pytest.mark.slow
def test_a_compiled_network_follows_the_tuning(folder):
    parts = load(ModelConfig(base=str(folder), device="cuda", compile=True))
    before = draw(parts)
    fit(parts, before, learning_rate=1e-2)
    after = draw(parts)
    assert not torch.allclose(latents(before), latents(after), atol=1e-2)


@pytest.mark.slow
def test_with_cuda_graphs_the_pictures_are_those_without_and_follow_the_tuning(tmp_path):
    model = str(tiny.write_folder(tmp_path / "sd15", "sd15"))
    plain, parts = (load(ModelConfig(base=model, device="cuda", compile=how)) for how in (False, "graphs"))
    before = draw(parts)  # in batches of 3, of which the last is filled up
    torch.testing.assert_close(latents(before), latents(draw(plain)), atol=0.05, rtol=0.05)
    for each in (plain, parts):
        fit(each, before, learning_rate=1e-2)
    after = draw(parts)
    assert not torch.allclose(latents(before), latents(after), atol=1e-2)
    torch.testing.assert_close(latents(after), latents(draw(plain)), atol=0.1, rtol=0.1)


def test_the_probe_counts_the_gpus_memory(folder):
    parts = load(ModelConfig(base=str(folder), device="cuda"))
    sampler = DiffusionSamplerConfig(steps=2, batch_size=2).build(parts)
    tuner = DiffusionFineTunerConfig(batch_size=2).build(parts, total_rounds=1, guidance=3.0, seed=0)
    assert 0 < measure(sampler, tuner).memory_bytes < torch.cuda.get_device_properties(0).total_memory


def test_blocks_that_wait_in_main_memory_change_nothing_and_take_turns_on_the_gpu(tmp_path):
    model = tiny.write_folder(tmp_path / "sd3", "sd3_no_t5")
    found = []
    for offload in (True, "blocks"):
        parts = load(ModelConfig(base=str(model), device="cuda", dtype="bfloat16", offload=offload))
        samples = draw(parts, scheduler="euler")
        tuner, figures = fit(parts, samples, gradient_checkpointing=True, learning_rate=1e-2)
        found.append((figures["loss"], latents(samples), latents(draw(parts, scheduler="euler"))))
        assert all(weight.device.type == "cuda" for weight in tuner.trainable.live.values())
    blocks = parts.denoiser.transformer_blocks
    lies = [{weight.device.type for name, weight in it.named_parameters() if "lora_" not in name} for it in blocks]
    assert sorted(map(sorted, lies)) == [["cpu"], ["cuda"]]
    torch.testing.assert_close(found[0], found[1], atol=0, rtol=0)
    assert not torch.equal(found[1][1], found[1][2])
