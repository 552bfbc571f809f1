"""Models in the exact formats of SD 1.5, SD 2.1 and SDXL, and in single files: sample, tune, export, and back."""

import json
import shutil

import diffusers
import pytest
import torch
from safetensors import safe_open
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
    return {kind: tiny.write_folder(root / kind, kind) for kind in ("sd15", "sd21", "sd21_zero_snr", "sdxl")}


FILES = ["sd15.safetensors", "sd21.safetensors", "sdxl.safetensors"]


@pytest.fixture(params=["sd15", "sd21", "sd21_zero_snr", "sdxl", *FILES])
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
                negative_prompt=sample.prompt.negative or None,
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
        return diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True)


def check_same(pipeline, after):
    """One picture of each prompt: a pipeline draws them one by one."""
    two = after[1:3]
    assert [sample.prompt.id for sample in two] == ["a", "b"]
    torch.testing.assert_close(drawn_by_diffusers(pipeline, two), latents(two), atol=2e-3, rtol=2e-3)


def test_sample_tune_and_export_merged(model, tmp_path):
    """The merged pipeline draws the tuned pictures, in plain diffusers and when raftdiff loads it again."""
    tuner, after = tuned(model)
    out = export(tuner, "merged", tmp_path / "merged")
    check_same(plain_pipeline(out), after)
    again = draw(load(ModelConfig(base=str(out))))
    torch.testing.assert_close(latents(again), latents(after), atol=2e-3, rtol=2e-3)


def test_single_file_and_folder_are_the_same_model(folders, tmp_path):
    for kind in ("sd15", "sd21", "sdxl"):
        path = tiny.write_single_file(tmp_path / f"{kind}.safetensors", kind)
        one = draw(load(ModelConfig(base=str(path), config=str(folders[kind]))))
        other = draw(load(ModelConfig(base=str(folders[kind]))))
        torch.testing.assert_close(latents(one), latents(other), atol=1e-5, rtol=1e-5)


CHANGES = [
    pytest.param("sd21", {}, id="attention"),
    pytest.param("sd15", {"target_modules": "all"}, id="all"),
    pytest.param("sd15", {"train_text_encoder": True}, id="text-encoder"),
    pytest.param("sd21", {"ema": 0.5}, id="ema"),
    pytest.param("sdxl", {"target_modules": "all", "train_text_encoder": True}, id="sdxl"),
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


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("sd15", ("False", "sd_v1", "stable-diffusion-v1/lora", "epsilon")),
        ("sd21", ("True", "sd_v2_v", "stable-diffusion-v2-768-v/lora", "v")),
        ("sdxl", ("False", "sdxl_base_v1-0", "stable-diffusion-xl-v1-base/lora", "epsilon")),
    ],
)
def test_a_kohya_file_says_which_model_it_is_for(folders, tmp_path, kind, expected):
    tuner, _ = tuned(ModelConfig(base=str(folders[kind])))
    with safe_open(export(tuner, "kohya", tmp_path / "mine.safetensors"), "pt") as file:
        told = file.metadata()
    keys = ("ss_v2", "ss_base_model_version", "modelspec.architecture", "modelspec.prediction_type")
    assert tuple(told[key] for key in keys) == expected
    assert (told["ss_network_dim"], told["ss_network_alpha"]) == ("3", "6.0")
    assert told["ss_output_name"] == told["modelspec.title"] == "mine"


@pytest.mark.parametrize("format", ["diffusers", "merged"])
def test_a_folder_is_not_given_the_name_of_a_file(folders, tmp_path, format):
    parts = load(ModelConfig(base=str(folders["sd15"])))
    tuner = DiffusionFineTunerConfig(rank=2, steps=1).build(parts, total_rounds=1, guidance=1.0, seed=0)
    with pytest.raises(UserError, match="this names a file. One file for A1111 and ComfyUI is --format kohya"):
        export(tuner, format, tmp_path / "mine.safetensors")
    assert not (tmp_path / "mine.safetensors").exists()


@pytest.mark.parametrize("kind", ["sd15", "sd21", "sdxl"])
def test_a_merged_pipeline_has_the_names_and_files_that_older_readers_know(folders, tmp_path, kind):
    """diffusers with transformers 4.57, and ComfyUI by diffusers' script, know no others."""
    from transformers import CLIPTokenizer

    path = tiny.write_single_file(tmp_path / f"{kind}.safetensors", kind)
    parts = load(ModelConfig(base=str(path), config=str(folders[kind])))
    tuner = DiffusionFineTunerConfig(rank=2, steps=1).build(parts, total_rounds=1, guidance=1.0, seed=0)
    out = export(tuner, "merged", tmp_path / "merged")
    assert all(name.startswith("text_model.") for name in load_file(out / "text_encoder" / "model.safetensors"))
    slow = tmp_path / "slow"
    slow.mkdir()
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        shutil.copy(out / "tokenizer" / name, slow / name)
    texts = ["a cat", "Two dogs, 3 trees!"]
    rows = [CLIPTokenizer.from_pretrained(folder)(texts)["input_ids"] for folder in (slow, out / "tokenizer")]
    assert rows[0] == rows[1] == parts.modules["tokenizer"](texts)["input_ids"]
    assert len(json.loads((slow / "vocab.json").read_text())) == len(parts.modules["tokenizer"])


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
