"""Z-Image: what it is told, its published loss, its names, and what is refused."""

import diffusers
import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file

from raftdiff.diffusion.export import export
from raftdiff.diffusion.families.zimage import TOKENS, ZImage
from raftdiff.diffusion.learning import losses
from raftdiff.diffusion.learning.finetuner import DiffusionFineTunerConfig
from raftdiff.diffusion.models import tiny
from raftdiff.diffusion.models.loading import ModelConfig, assemble, load
from raftdiff.errors import UserError

CAPTIONS = ["a cat", "a red dog beside a blue house", ""]


def opened(folder, **changes):
    return load(ModelConfig(base=str(folder), **changes))


def own(texts):
    """Of each caption its own tokens."""
    return [tokens[mask] for tokens, mask in zip(texts.tokens, texts.mask, strict=True)]


def test_texts_are_those_of_the_pipeline_each_as_long_as_it_is(models):
    parts = opened(models["zimage"])
    pipeline = diffusers.ZImagePipeline(**parts.modules, scheduler=parts.scheduler)
    theirs, _ = pipeline.encode_prompt(list(CAPTIONS), do_classifier_free_guidance=False)
    assert [len(it) for it in theirs] == [24, 48, 19]
    for texts in (parts.prompts(CAPTIONS), parts.prompts.encode(CAPTIONS)):  # one by one, and at once
        torch.testing.assert_close(own(texts), theirs)


def test_a_caption_is_read_to_its_512th_token_as_by_the_pipeline(models):
    parts, caption = opened(models["zimage"]), "n" * TOKENS
    assert parts.prompts.token_limit == TOKENS
    assert parts.prompts.reads_whole(caption[19:])
    assert not parts.prompts.reads_whole(caption[18:])
    pipeline = diffusers.ZImagePipeline(**parts.modules, scheduler=parts.scheduler)
    theirs, _ = pipeline.encode_prompt([caption], do_classifier_free_guidance=False)
    torch.testing.assert_close(own(parts.prompts([caption])), theirs)


def test_one_step_of_the_loss_is_the_published_training_loss(models):
    """diffusers' train_dreambooth_lora_z_image.py, weighting none: the squared error to noise - x0, at shifted levels,
    of what the network says negated."""
    parts = opened(models["zimage"])
    x0, noise = (torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(it)) for it in (0, 1))
    places = torch.tensor([100, 700])
    learner = DiffusionFineTunerConfig(rank=2).build(parts, total_rounds=1, guidance=1.0, seed=0)
    texts = parts.prompts(CAPTIONS[:2])
    draws = losses.Draws(noise, places, torch.tensor([False, True]))
    batch = losses.Batch(x0, texts, parts.prompts(["", ""]), torch.ones(2), draws)
    networks = losses.Networks(parts.predict, parts.predict, parts.predict)
    ours = losses.step_loss(batch, parts.process, learner.lesson.objective, networks).loss / 2

    scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_config(parts.scheduler.config)
    timesteps = scheduler.timesteps[999 - places]
    sigmas = scheduler.sigmas[999 - places].view(-1, 1, 1, 1)
    noisy = (1.0 - sigmas) * x0 + sigmas * noise
    pipeline = diffusers.ZImagePipeline(**parts.modules, scheduler=parts.scheduler)
    embedded, _ = pipeline.encode_prompt([CAPTIONS[0], ""], do_classifier_free_guidance=False)  # the second is dropped
    said = parts.denoiser(list(noisy.unsqueeze(2).unbind(0)), (1000 - timesteps) / 1000, embedded, return_dict=False)[0]
    theirs = ((-torch.stack(said).squeeze(2) - (noise - x0)) ** 2).mean()
    torch.testing.assert_close(ours, theirs)


def test_the_published_sizes_and_the_names_of_its_layers():
    """https://huggingface.co/Tongyi-MAI/Z-Image and -Turbo, transformer/config.json: diffusers' defaults but one."""
    with torch.device("meta"):
        network = diffusers.ZImageTransformer2DModel(axes_lens=[1536, 512, 512])
    assert sum(it.numel() for it in network.parameters()) == 6_154_908_736
    family = ZImage()
    layers = {name for name, _ in network.named_modules() if name.endswith(family.layers.attention)}
    assert len(layers) == (30 + 2 + 2) * 4
    everything = {name for name, _ in network.named_modules() if name.endswith(family.layers.everything)}
    assert len(everything - layers) == (30 + 2 + 2) * 3
    assert "layers.29.attention.to_out.0" in layers
    named = family.kohya("transformer", "layers.29.attention.to_out.0", {})
    assert named == "diffusion_model.layers.29.attention.to_out.0"


def test_diffusers_reads_the_file_for_comfyui_as_the_folder(models, tmp_path):
    learner = DiffusionFineTunerConfig(rank=2, alpha=3.0, target_modules="all").build(
        opened(models["zimage"]), total_rounds=1, guidance=1.0, seed=0
    )
    for name, weight in learner.trainable.modules["transformer"].named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    file, folder = (export(learner, form, tmp_path / form) for form in ("kohya", "diffusers"))
    with safe_open(file, "pt") as held:
        told = held.metadata()
    assert (told["modelspec.architecture"], told["ss_base_model_version"]) == ("Z-Image/lora", "z_image")
    assert "modelspec.prediction_type" not in told  # a flow's; see sai_model_spec.py of kohya's musubi-tuner
    changes = []
    for path in (file, folder):
        found = diffusers.ZImagePipeline.lora_state_dict(path)
        ups = {name: weight for name, weight in found.items() if name.endswith("lora_B.weight")}
        changes.append({name: up @ found[name.replace("lora_B", "lora_A")] for name, up in ups.items()})
    assert len(changes[0]) == (1 + 1 + 1) * 7
    torch.testing.assert_close(changes[0], changes[1])


def test_the_text_encoder_may_be_the_whole_language_model_as_published(models, tmp_path):
    """text_encoder/config.json says Qwen3ForCausalLM, and model_index.json Qwen3Model."""
    parts = opened(models["zimage"])
    whole = transformers.Qwen3ForCausalLM(parts.modules["text_encoder"].config)
    whole.model.load_state_dict(parts.modules["text_encoder"].state_dict())
    for part in models["zimage"].iterdir():
        if part.name != "text_encoder":
            (tmp_path / part.name).symlink_to(part)
    whole.save_pretrained(tmp_path / "text_encoder")
    torch.testing.assert_close(own(opened(tmp_path).prompts(CAPTIONS)), own(parts.prompts(CAPTIONS)))


def broken(**parts):
    made = tiny.components("zimage") | parts
    return lambda: assemble(tiny.of("zimage"), made, ModelConfig(base="it"), torch.device("cpu"), torch.float32)


def test_what_is_not_of_one_model_is_told():
    with pytest.raises(UserError, match="it: its transformer takes 16 channels where the VAE makes 4"):
        broken(vae=tiny.components("sdxl")["vae"])()
    made = tiny.components("zimage")
    made["text_encoder"].config.hidden_size = 8
    with pytest.raises(UserError, match="it: its transformer expects 32 numbers of a token, the text encoder gives 8"):
        broken(text_encoder=made["text_encoder"])()
    made["tokenizer"].chat_template = None
    with pytest.raises(UserError, match="it: tokenizer/ has no chat template, in which Z-Image reads a caption"):
        broken(tokenizer=made["tokenizer"])()


def test_a_single_file_is_recognised_and_what_has_the_rest_asked_for(tmp_path):
    path = tmp_path / "zimage.safetensors"
    save_file({"model.diffusion_model.cap_pad_token": torch.ones(1)}, path)
    with pytest.raises(UserError, match=r"zimage.safetensors: of Z-Image it holds transformer. .*/Z-Image-Turbo"):
        opened(path)


def test_its_text_encoder_is_not_tuned(models):
    with pytest.raises(UserError, match="train_text_encoder: Z-Image reads captions by a language model"):
        DiffusionFineTunerConfig(train_text_encoder=True).build(
            opened(models["zimage"]), total_rounds=1, guidance=1.0, seed=0
        )
