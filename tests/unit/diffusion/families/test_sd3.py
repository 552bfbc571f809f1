"""Stable Diffusion 3 and 3.5: what it is told, its published loss, its names, and what is refused."""

import diffusers
import pytest
import torch

from raftdiff.diffusion.families.sd3 import T5_TOKENS, StableDiffusion3
from raftdiff.diffusion.families.tiny.clip import text_encoder
from raftdiff.diffusion.learning import losses
from raftdiff.diffusion.learning.finetuner import DiffusionFineTunerConfig
from raftdiff.diffusion.models import tiny
from raftdiff.diffusion.models.loading import ModelConfig, assemble, load
from raftdiff.errors import UserError

SIZES = {
    # https://huggingface.co/stabilityai/stable-diffusion-3-medium-diffusers and -3.5-medium, transformer/config.json
    "3-medium": ({"num_layers": 24, "num_attention_heads": 24}, 2_028_328_000),
    "3.5-medium": (
        {
            "num_layers": 24,
            "num_attention_heads": 24,
            "pos_embed_max_size": 384,
            "qk_norm": "rms_norm",
            "dual_attention_layers": tuple(range(13)),
        },
        2_243_171_520,
    ),
}


def opened(folder, **changes):
    return load(ModelConfig(base=str(folder), **changes))


def test_texts_are_those_of_the_pipeline(models):
    """CLIP's tokens filled to T5's width, then T5's; the two pooled vectors side by side."""
    for kind in ("sd3", "sd3_no_t5"):
        parts = opened(models[kind])
        pipeline = diffusers.StableDiffusion3Pipeline(
            **parts.modules, scheduler=parts.scheduler, **parts.family.pipeline_arguments()
        )
        tokens, _, pooled, _ = pipeline.encode_prompt(["a cat"], None, None, do_classifier_free_guidance=False)
        ours = parts.prompts(["a cat"])
        assert torch.equal(ours.tokens, tokens)
        assert torch.equal(ours.pooled, pooled)
        assert tokens.shape[1] == 16 + T5_TOKENS
        assert bool(ours.tokens[:, 16:].any()) == (kind == "sd3")


def test_one_step_of_the_loss_is_the_published_training_loss(models):
    """diffusers' train_dreambooth_lora_sd3.py, weighting none: the squared error to noise - x0, at shifted levels."""
    parts = opened(models["sd3"])
    x0, noise = (torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(it)) for it in (0, 1))
    places = torch.tensor([100, 700])
    learner = DiffusionFineTunerConfig(rank=2).build(parts, total_rounds=1, guidance=1.0, seed=0)
    texts = parts.prompts(["a cat", "a dog"])
    draws = losses.Draws(noise, places, torch.tensor([False, False]))
    batch = losses.Batch(x0, texts, parts.prompts(["", ""]), torch.ones(2), draws)
    networks = losses.Networks(parts.predict, parts.predict, parts.predict)
    ours = losses.step_loss(batch, parts.process, learner.lesson.objective, networks).loss / 2

    scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_config(parts.scheduler.config)
    timesteps = scheduler.timesteps[999 - places]
    sigmas = scheduler.sigmas[999 - places].view(-1, 1, 1, 1)
    noisy = (1.0 - sigmas) * x0 + sigmas * noise
    said = parts.denoiser(
        hidden_states=noisy,
        timestep=timesteps,
        encoder_hidden_states=texts.tokens,
        pooled_projections=texts.pooled,
        return_dict=False,
    )[0]
    theirs = ((said - (noise - x0)) ** 2).mean()
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("model", SIZES)
def test_a_lora_and_a_file_are_named_after_the_published_models(model):
    changes, count = SIZES[model]
    with torch.device("meta"):
        network = diffusers.SD3Transformer2DModel(
            **{"caption_projection_dim": 1536, "pos_embed_max_size": 192, **changes}
        )
    assert sum(it.numel() for it in network.parameters()) == count
    family = StableDiffusion3()
    told = family.described({"transformer": network}, "flow")
    assert told["modelspec.architecture"] == f"stable-diffusion-{model}"
    layers = [name for name, _ in network.named_modules() if name.endswith(family.layers.attention)]
    twice = 4 * len(network.config.dual_attention_layers)
    assert len(layers) == 24 * 8 - 1 + twice  # the last block drops what it would say of the text
    named = {family.kohya("transformer", layer, {}) for layer in layers}
    assert "lora_transformer_transformer_blocks_0_attn_add_q_proj" in named
    assert len(named) == len(layers)
    assert family.kohya("text_encoder_2", "text_model.x.y", {}) == "lora_te2_text_model_x_y"


def broken(**parts):
    made = tiny.components("sd3") | parts
    return lambda: assemble(tiny.of("sd3"), made, ModelConfig(base="it"), torch.device("cpu"), torch.float32)


def test_what_is_not_of_one_model_is_told(models):
    other = tiny.components("sdxl")
    with pytest.raises(UserError, match="it: its transformer takes 16 channels where the VAE makes 4"):
        broken(vae=other["vae"])()
    with pytest.raises(UserError, match="expects 48 numbers of a caption .* the two CLIPs give 48 and 112"):
        broken(text_encoder=text_encoder("CLIPTextModelWithProjection", 64, open_clip=False))()
    t5 = tiny.components("sd3")["text_encoder_3"]
    t5.config.d_model = 8
    with pytest.raises(UserError, match="expects 96 numbers of a token, T5 gives 8"):
        broken(text_encoder_3=t5)()
    with pytest.raises(UserError, match="a DDIMScheduler is not for a model of rectified flow"):
        broken(scheduler=diffusers.DDIMScheduler())()


def test_a_single_file_is_recognised_and_what_has_the_rest_asked_for(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "sd3.safetensors"
    save_file({"model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight": torch.ones(1)}, path)
    with pytest.raises(
        UserError, match=r"sd3.safetensors: of Stable Diffusion 3 and 3.5 it holds .*3-medium-diffusers"
    ):
        opened(path)
