"""Models in the exact format of SD 1.5, SD 2.1 and a single-file checkpoint: sample, tune, export, and back."""

import diffusers
import pytest
import torch
from safetensors.torch import load_file

from raftdiff.diffusion.export import export
from raftdiff.diffusion.learning.finetuner import DiffusionFineTunerConfig
from raftdiff.diffusion.models import tiny
from raftdiff.diffusion.models.loading import ModelConfig, load
from raftdiff.diffusion.models.quiet import quietly
from raftdiff.diffusion.sampler import DiffusionSamplerConfig
from raftdiff.errors import UserError
from raftdiff.types import Item, Prompt, Selection, silent

# diffusers asks numpy for an array in a way that numpy 2 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PROMPTS = [Prompt("a", "a cat", "a cat, best quality", "a cat", negative="blurry"), Prompt("b", "dog", "dog", "dog")]
SAMPLER = DiffusionSamplerConfig(steps=3, guidance=3.0, batch_size=3)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {kind: tiny.write_folder(root / kind, kind) for kind in ("sd15", "sd21", "sd21_zero_snr")}


@pytest.fixture(params=["sd15", "sd21", "sd21_zero_snr", "sd15.safetensors", "sd21.safetensors"])
def model(request, folders, tmp_path):
    """What a user would write under ``model:``."""
    kind, _, ending = request.param.partition(".")
    if not ending:
        return ModelConfig(base=str(folders[kind]))
    path = tiny.write_single_file(tmp_path / f"model.{ending}", kind)
    return ModelConfig(base=str(path), config=str(folders[kind]))


def draw(parts):
    return list(SAMPLER.build(parts).sample(PROMPTS, per_prompt=2, seed=0, round=0, done=set()))


def latents(samples):
    return torch.stack([sample.aux["latent"] for sample in samples])


def tuned(model, **changes):
    """A model after one round of tuning on its own samples, and pictures of it before and after."""
    parts = load(model)
    before = draw(parts)
    config = DiffusionFineTunerConfig(**{"learning_rate": 3e-3, "rank": 3, "alpha": 6.0, "steps": 4, **changes})
    tuner = config.build(parts, total_rounds=1, guidance=SAMPLER.guidance, seed=0)
    selection = Selection("weighted", tuple(Item((sample.key,)) for sample in before))
    tuner.fit(selection, {sample.key: sample for sample in before}, seed=0, report=silent)
    after = draw(parts)
    assert not torch.allclose(latents(before), latents(after), atol=1e-2)
    return tuner, after


def drawn_by_diffusers(pipeline, samples):
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    return torch.stack(
        [
            pipeline(
                sample.prompt.sampling,
                negative_prompt=sample.prompt.negative,
                num_inference_steps=SAMPLER.steps,
                guidance_scale=SAMPLER.guidance,
                generator=torch.Generator().manual_seed(sample.seed),
                output_type="latent",
            ).images[0]
            for sample in samples
        ]
    )


def plain_pipeline(folder):
    with quietly():
        return diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, local_files_only=True)


def check_same(pipeline, after):
    torch.testing.assert_close(drawn_by_diffusers(pipeline, after), latents(after), atol=2e-3, rtol=2e-3)


def test_sample_tune_and_export_merged(model, tmp_path):
    """The merged pipeline draws the tuned pictures, in plain diffusers and when raftdiff loads it again."""
    tuner, after = tuned(model)
    out = export(tuner, "merged", tmp_path / "merged")
    check_same(plain_pipeline(out), after)
    again = draw(load(ModelConfig(base=str(out))))
    torch.testing.assert_close(latents(again), latents(after), atol=2e-3, rtol=2e-3)


def test_single_file_and_folder_are_the_same_model(folders, tmp_path):
    for kind in ("sd15", "sd21"):
        path = tiny.write_single_file(tmp_path / f"{kind}.safetensors", kind)
        one = draw(load(ModelConfig(base=str(path), config=str(folders[kind]))))
        other = draw(load(ModelConfig(base=str(folders[kind]))))
        torch.testing.assert_close(latents(one), latents(other), atol=1e-5, rtol=1e-5)


CHANGES = [
    pytest.param("sd21", {}, id="attention"),
    pytest.param("sd15", {"target_modules": "all"}, id="all"),
    pytest.param("sd15", {"train_text_encoder": True}, id="text-encoder"),
    pytest.param("sd21", {"ema": 0.5}, id="ema"),
]


@pytest.mark.parametrize(("kind", "changes"), CHANGES)
@pytest.mark.parametrize("format", ["diffusers", "kohya"])
def test_an_exported_lora_draws_the_same_pictures_in_plain_diffusers(folders, tmp_path, kind, changes, format):
    tuner, after = tuned(ModelConfig(base=str(folders[kind])), **changes)
    out = export(tuner, format, tmp_path / "lora")
    pipeline = plain_pipeline(folders[kind])
    pipeline.load_lora_weights(out)
    check_same(pipeline, after)


def test_the_files_are_what_other_programs_expect(folders, tmp_path):
    tuner, _ = tuned(ModelConfig(base=str(folders["sd15"])), train_text_encoder=True)
    export(tuner, "diffusers", tmp_path / "diffusers")
    names = load_file(tmp_path / "diffusers" / "pytorch_lora_weights.safetensors")
    assert all(name.startswith(("unet.", "text_encoder.text_model.")) for name in names)
    kohya = load_file(export(tuner, "kohya", tmp_path / "some" / "name.safetensors"))
    assert (tmp_path / "some" / "name.safetensors").is_file()
    layer = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    assert kohya[f"{layer}.lora_down.weight"].shape == (3, 32)
    assert kohya[f"{layer}.lora_up.weight"].shape == (32, 3)
    assert kohya[f"{layer}.alpha"] == 6.0
    assert "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight" in kohya


@pytest.mark.parametrize("changes", [{"adapter": "full"}, {"adapter": "full", "train_text_encoder": True}])
def test_a_full_fine_tune_leaves_merged_and_only_so(folders, tmp_path, changes):
    tuner, after = tuned(ModelConfig(base=str(folders["sd21"])), **changes)
    check_same(plain_pipeline(export(tuner, "merged", tmp_path / "merged")), after)
    for name in ("diffusers", "kohya"):
        with pytest.raises(UserError, match=f"A full fine-tune has no LoRA to export as {name}"):
            export(tuner, name, tmp_path / name)


def test_merging_leaves_the_tuner_as_it_was(folders, tmp_path):
    tuner, after = tuned(ModelConfig(base=str(folders["sd15"])), train_text_encoder=True)
    export(tuner, "merged", tmp_path / "merged")
    assert torch.equal(latents(draw(tuner.parts)), latents(after))


def test_unknown_formats_and_unwritable_folders(folders, tmp_path):
    tuner, _ = tuned(ModelConfig(base=str(folders["sd15"])))
    with pytest.raises(UserError, match="'kohia' is not an export format. Did you mean 'kohya'"):
        export(tuner, "kohia", tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="the export cannot be written"):
        export(tuner, "kohya", tmp_path / "file" / "below")
