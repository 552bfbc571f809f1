"""FLUX.2 klein: what it is told, its latents, its published loss, its steps, its names, and what is refused."""

import json

import diffusers
import pytest
import torch
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

from raftdiff.diffusion.export import export
from raftdiff.diffusion.families.flux2 import TOKENS, Flux2Klein, shift_of
from raftdiff.diffusion.families.tiny.qwen3 import qwen3
from raftdiff.diffusion.learning import losses
from raftdiff.diffusion.learning.finetuner import DiffusionFineTunerConfig
from raftdiff.diffusion.models import tiny
from raftdiff.diffusion.models.loading import ModelConfig, assemble, load
from raftdiff.diffusion.sampler import DiffusionSamplerConfig
from raftdiff.errors import UserError
from raftdiff.types import Prompt

# diffusers asks numpy for an array in a way that numpy 2 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SIZES = {
    # https://huggingface.co/black-forest-labs/FLUX.2-klein-4B and -9B, transformer/config.json; base has the same
    "4b": ({"num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24}, 3_875_544_576),
    "9b": ({"num_layers": 8, "num_single_layers": 24, "num_attention_heads": 32}, 9_078_581_248),
}


def opened(folder, **changes):
    return load(ModelConfig(base=str(folder), **changes))


def pipeline_of(parts):
    return diffusers.Flux2KleinPipeline(**parts.modules, scheduler=parts.scheduler, **parts.family.pipeline_arguments())


def test_texts_are_those_of_the_pipeline(models):
    """Three layers of Qwen3 side by side, of a caption in its dialogue, filled up or cut."""
    parts = opened(models["flux2"])
    captions = ["a cat", "", "many cats " * 60]
    tokens, _ = pipeline_of(parts).encode_prompt(captions)
    assert torch.equal(parts.prompts.encode(captions).tokens, tokens)
    assert tokens.shape[1:] == (TOKENS, 3 * parts.modules["text_encoder"].config.hidden_size)
    assert [parts.prompts.reads_whole(caption) for caption in captions] == [True, True, False]


def test_latents_are_those_that_the_network_sees_and_back(models):
    parts = opened(models["flux2"])
    pipeline, pixels = pipeline_of(parts), torch.rand(2, 3, 16, 24) * 2 - 1
    ours = parts.encode(pixels)
    assert ours.shape == (2, *parts.latent_shape(16, 24)) == (2, 32, 4, 6)
    torch.testing.assert_close(ours, pipeline._encode_vae_image(pixels, None))
    mean, variance = (it.view(1, -1, 1, 1) for it in (parts.vae.bn.running_mean, parts.vae.bn.running_var))
    whole = pipeline._unpatchify_latents(ours * (variance + parts.vae.config.batch_norm_eps).sqrt() + mean)
    torch.testing.assert_close(parts.decode(ours), parts.vae.decode(whole).sample)
    tiled = opened(models["flux2"], vae_tiling=True).vae
    assert (tiled.use_tiling, tiled.tile_sample_min_size, tiled.tile_latent_min_size) == (True, 512, 256)


def test_one_step_of_the_loss_is_the_published_training_loss(models):
    """diffusers' train_dreambooth_lora_flux2_klein.py, weighting none: the squared error to noise - x0, at levels that
    are not shifted."""
    parts = opened(models["flux2"])
    x0, noise = (torch.randn(2, 32, 4, 6, generator=torch.Generator().manual_seed(it)) for it in (0, 1))
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
    pipeline = pipeline_of(parts)
    ids = pipeline._prepare_latent_ids(x0)
    said = parts.denoiser(
        hidden_states=pipeline._pack_latents((1.0 - sigmas) * x0 + sigmas * noise),
        timestep=timesteps / 1000,
        guidance=None,
        encoder_hidden_states=texts.tokens,
        txt_ids=pipeline._prepare_text_ids(texts.tokens),
        img_ids=ids,
        return_dict=False,
    )[0]
    theirs = ((pipeline._unpack_latents_with_ids(said, ids) - (noise - x0)) ** 2).mean()
    torch.testing.assert_close(ours, theirs)


def test_steps_lie_where_the_authors_found_them_best():
    for tokens in (256, 2304, 4096, 4301, 16384):
        for steps in (4, 20, 50):
            assert shift_of(tokens, steps) == pytest.approx(compute_empirical_mu(tokens, steps))


def test_a_distilled_model_draws_without_guidance_and_says_so(models, tmp_path):
    parts = opened(models["flux2_distilled"])
    config = DiffusionSamplerConfig(steps=3, guidance=1.0, scheduler="euler")
    (ours,) = config.build(parts).sample([Prompt("a", "cat", "cat", "cat")], per_prompt=1, seed=0, round=0, done=set())
    pipeline = pipeline_of(parts)
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline(
        prompt="cat",
        num_inference_steps=3,
        guidance_scale=4.0,  # which it ignores, and says so in its log
        height=16,
        width=16,
        generator=torch.Generator().manual_seed(ours.seed),
        output_type="pt",
    ).images
    torch.testing.assert_close(
        parts.decode(ours.aux["latent"][None]).clamp(-1, 1) / 2 + 0.5, drawn, atol=1e-5, rtol=1e-5
    )
    with pytest.raises(UserError, match=r"sampler.guidance: .* was distilled to draw without guidance .* It is 4 here"):
        config.model_copy(update={"guidance": 4.0}).build(parts)
    guided = DiffusionFineTunerConfig(rank=2, loss_on="guided", guidance=2.0)
    with pytest.raises(UserError, match=r"finetuner.guidance: .* It is 2 here; set it to 1"):
        guided.build(parts, total_rounds=1, guidance=1.0, seed=0)
    tuner = DiffusionFineTunerConfig(rank=2).build(parts, total_rounds=1, guidance=1.0, seed=0)
    assert opened(export(tuner, "merged", tmp_path / "merged")).family == Flux2Klein(distilled=True)


@pytest.mark.parametrize("model", SIZES)
def test_a_lora_is_named_after_the_published_models(model):
    changes, count = SIZES[model]
    width = {"4b": 2560, "9b": 4096}[model]
    with torch.device("meta"):
        network = diffusers.Flux2Transformer2DModel(**changes, joint_attention_dim=3 * width, guidance_embeds=False)
    assert sum(it.numel() for it in network.parameters()) == count
    family = Flux2Klein()
    told = family.described({"transformer": network}, "flow")
    assert told == {
        "ss_base_model_version": f"flux_2_klein_{model}",
        "modelspec.architecture": f"Flux.2-klein-{model}",
        "modelspec.implementation": "https://github.com/black-forest-labs/flux2",
    }
    layers = [name for name, _ in network.named_modules() if name.endswith(family.layers.everything)]
    assert all(isinstance(network.get_submodule(name), torch.nn.Linear) for name in layers)
    assert len(layers) == changes["num_layers"] * 12 + changes["num_single_layers"] * 2
    named = {family.kohya("transformer", layer, {}) for layer in layers}
    assert "lora_transformer_transformer_blocks_0_attn_to_out_0" in named
    assert "lora_transformer_single_transformer_blocks_19_attn_to_out" in named
    assert len(named) == len(layers)


def broken(**parts):
    made = tiny.components("flux2") | parts
    return lambda: assemble(tiny.of("flux2"), made, ModelConfig(base="it"), torch.device("cpu"), torch.float32)


def test_what_is_not_of_one_model_is_told():
    narrow = diffusers.AutoencoderKLFlux2(
        block_out_channels=(32,),
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        latent_channels=4,
    )
    with pytest.raises(UserError, match="it: its transformer takes 32 channels where the VAE makes 16"):
        broken(vae=narrow)()
    with pytest.raises(UserError, match="expects 48 numbers of a token, .* has 28 layers of 24: these parts are not"):
        broken(text_encoder=qwen3(24, layers=28))()
    with pytest.raises(UserError, match="from 3 of at least 27 layers; the text encoder has 2 layers of 16"):
        broken(text_encoder=qwen3(16, layers=2))()
    mute = tiny.components("flux2")["tokenizer"]
    mute.chat_template = None
    with pytest.raises(UserError, match="it: its tokenizer has no chat template, .*chat_template.jinja again"):
        broken(tokenizer=mute)()
    with pytest.raises(UserError, match="a DDIMScheduler is not for a model of rectified flow"):
        broken(scheduler=diffusers.DDIMScheduler())()


def test_a_single_file_is_recognised_and_dev_is_not_taken_for_it(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "flux2.safetensors"
    klein = dict.fromkeys(("double_stream_modulation_img.lin.weight", "double_blocks.0.img_attn.qkv.weight"))
    save_file({name: torch.ones(1, 4096) for name in klein}, path)
    with pytest.raises(UserError, match=r"flux2.safetensors: of FLUX.2 klein it holds transformer. .*/FLUX.2-klein-9B"):
        opened(path)
    save_file({name: torch.ones(1) for name in [*klein, "guidance_in.in_layer.weight"]}, path)
    with pytest.raises(UserError, match=r"flux2.safetensors: this is a FLUX checkpoint; raftdiff tunes .*FLUX.2 klein"):
        opened(path)
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "Flux2Pipeline"}))
    with pytest.raises(UserError, match=r"this is a Flux2Pipeline; raftdiff tunes .*FLUX.2 klein"):
        opened(tmp_path)
