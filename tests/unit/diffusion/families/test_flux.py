"""FLUX.1 dev and schnell: what they are told, their published loss and sizes, their names, and what is refused."""

import diffusers
import pytest
import torch
from safetensors.torch import save_file

from raftdiff.diffusion.export import export
from raftdiff.diffusion.families.flux import DEV_TOKENS, SCHNELL_TOKENS, VAE, Flux
from raftdiff.diffusion.families.originals.flux import NAMES
from raftdiff.diffusion.learning import losses
from raftdiff.diffusion.learning.finetuner import DiffusionFineTunerConfig
from raftdiff.diffusion.models import tiny
from raftdiff.diffusion.models.loading import ModelConfig, assemble, load
from raftdiff.diffusion.sampler import DiffusionSamplerConfig
from raftdiff.errors import UserError
from raftdiff.types import Item, Prompt, Selection, silent

# diffusers asks numpy for an array in a way that numpy 2 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SIZES = {"dev": (True, 11_901_408_320), "schnell": (False, 11_891_178_560)}
"""The transformers of https://huggingface.co/black-forest-labs/FLUX.1-dev and -schnell: whether they are told a
guidance, and how many numbers the hub counts in them. All else is as diffusers' class has it."""


def opened(folder, **changes):
    return load(ModelConfig(base=str(folder), **changes))


def plain(parts):
    pipeline = diffusers.FluxPipeline(**parts.modules, scheduler=parts.scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(parts, **changes):
    config = DiffusionSamplerConfig(**{"steps": 3, "guidance": 1.0, "scheduler": "euler", **changes})
    (sample,) = config.build(parts).sample(
        [Prompt("a", "a cat", "a cat", "a cat")], per_prompt=1, seed=0, round=0, done=set()
    )
    return sample


def drawn_by_diffusers(pipeline, sample, **told):
    height, width = sample.media.height, sample.media.width
    packed = pipeline(
        "a cat",
        num_inference_steps=3,
        height=height,
        width=width,
        generator=torch.Generator().manual_seed(sample.seed),
        output_type="latent",
        max_sequence_length=16,
        **told,
    ).images
    return pipeline._unpack_latents(packed, height, width, pipeline.vae_scale_factor)[0]


@pytest.mark.parametrize(("kind", "limit"), [("flux_dev", DEV_TOKENS), ("flux_schnell", SCHNELL_TOKENS)])
def test_texts_are_those_of_the_pipeline(models, kind, limit):
    """T5's tokens with those that fill it up, 512 by the pipeline's default; schnell's documented limit is 256."""
    parts = opened(models[kind])
    parts.modules["tokenizer_2"].model_max_length = 512  # as the published one's
    tokens, pooled, _ = plain(parts).encode_prompt(
        ["a cat"], None, **({"max_sequence_length": 256} if kind == "flux_schnell" else {})
    )
    ours = parts.prompts(["a cat"])
    assert torch.equal(ours.tokens, tokens)
    assert torch.equal(ours.pooled, pooled)
    assert (tokens.shape[1], parts.prompts.token_limit) == (limit, limit)
    assert parts.prompts.reads_whole("x" * (limit - 2))  # a space goes before it, an end behind
    assert not parts.prompts.reads_whole("x" * limit)


def test_dev_is_told_the_guidance_of_the_recipe(models):
    """At another size and shape too, after which steps shift."""
    told = opened(models["flux_dev"], embedded_guidance=1.5)
    sample = draw(told, height=16, width=24)
    theirs = drawn_by_diffusers(plain(told), sample, guidance_scale=1.5)
    torch.testing.assert_close(sample.aux["latent"], theirs, atol=1e-5, rtol=1e-5)
    usual = draw(opened(models["flux_dev"]), height=16, width=24).aux["latent"]
    assert not torch.allclose(usual, sample.aux["latent"], atol=1e-3)
    assert opened(models["flux_dev"]).embedded_guidance == 3.5
    with pytest.raises(UserError, match="model.embedded_guidance: the network of .*flux_schnell is told no guidance"):
        opened(models["flux_schnell"], embedded_guidance=3.5)


@pytest.mark.parametrize(("kind", "guidance"), [("flux_dev", None), ("flux_dev", 1.0), ("flux_schnell", None)])
def test_one_step_of_the_loss_is_the_published_training_loss(models, kind, guidance):
    """diffusers' train_dreambooth_lora_flux.py, weighting none: the squared error to noise - x0, levels not shifted.
    Its ``--guidance_scale`` is 3.5 by default, and 1 in the commands of its README."""
    parts = opened(models[kind], embedded_guidance=guidance)
    x0, noise = (torch.randn(2, 16, 8, 12, generator=torch.Generator().manual_seed(it)) for it in (0, 1))
    places = torch.tensor([100, 700])
    learner = DiffusionFineTunerConfig(rank=2).build(parts, total_rounds=1, guidance=1.0, seed=0)
    texts = parts.prompts(["a cat", "a dog"])
    draws = losses.Draws(noise, places, torch.tensor([False, False]))
    batch = losses.Batch(x0, texts, parts.prompts(["", ""]), torch.ones(2), draws)
    networks = losses.Networks(parts.predict, parts.predict, parts.predict)
    ours = losses.step_loss(batch, parts.process, learner.lesson.objective, networks).loss / 2

    scheduler, pipeline = diffusers.FlowMatchEulerDiscreteScheduler.from_config(parts.scheduler.config), plain(parts)
    timesteps = scheduler.timesteps[999 - places]
    sigmas = scheduler.sigmas[999 - places].view(-1, 1, 1, 1)
    said = parts.denoiser(
        hidden_states=pipeline._pack_latents((1.0 - sigmas) * x0 + sigmas * noise, *x0.shape),
        timestep=timesteps / 1000,
        guidance=torch.tensor([guidance or 3.5]).expand(2) if kind == "flux_dev" else None,
        pooled_projections=texts.pooled,
        encoder_hidden_states=texts.tokens,
        txt_ids=torch.zeros(16, 3),
        img_ids=pipeline._prepare_latent_image_ids(2, 4, 6, "cpu", torch.float32),
        return_dict=False,
    )[0]
    theirs = ((pipeline._unpack_latents(said, 16, 24, 2) - (noise - x0)) ** 2).mean()
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("model", SIZES)
def test_a_lora_and_a_file_are_named_after_the_published_models(model):
    guided, count = SIZES[model]
    with torch.device("meta"):
        network, vae = diffusers.FluxTransformer2DModel(guidance_embeds=guided), diffusers.AutoencoderKL(**VAE)
    assert sum(it.numel() for it in network.parameters()) == count
    assert sum(it.numel() for it in vae.parameters()) == 83_819_683
    family, modules = Flux(), {"transformer": network, "vae": vae}
    assert family.described(modules, "flow") == {
        "ss_base_model_version": "flux1",
        "modelspec.architecture": f"flux-1-{model}",
        "modelspec.implementation": "https://github.com/black-forest-labs/flux",
    }
    assert len(NAMES.original(network.state_dict())) == (780 if guided else 776)
    assert (family.size(modules), family.embedded_guidance(modules)) == ((1024, 1024), 3.5 if guided else None)
    layers = [name for name, _ in network.named_modules() if name.endswith(family.layers.attention)]
    assert len(layers) == 19 * 8 + 38 * 3
    everything = [name for name, _ in network.named_modules() if name.endswith(family.layers.everything)]
    assert len(everything) - len(layers) == 19 * 4 + 38 * 2 + 1  # and the output layer
    named = {family.kohya("transformer", layer, {}) for layer in layers}
    assert "lora_transformer_single_transformer_blocks_37_attn_to_q" in named
    assert len(named) == len(layers)
    assert family.kohya("text_encoder", "text_model.x.y", {}) == "lora_te1_text_model_x_y"


def test_diffusers_reads_the_file_that_comfyui_reads(models, tmp_path):
    """Of attention and CLIP, whatever alpha is; T5 is not trained."""
    parts = opened(models["flux_dev"])
    config = DiffusionFineTunerConfig(learning_rate=3e-3, rank=3, alpha=6.0, steps=3, train_text_encoder=True)
    tuner = config.build(parts, total_rounds=1, guidance=1.0, seed=0)
    assert sorted(tuner.trainable.modules) == ["text_encoder", "transformer"]
    before = draw(parts)
    tuner.fit(Selection("weighted", (Item((before.key,)),)), {before.key: before}, seed=0, report=silent)
    after = draw(parts)
    assert not torch.allclose(before.aux["latent"], after.aux["latent"], atol=1e-2)
    pipeline = plain(opened(models["flux_dev"]))
    pipeline.load_lora_weights(export(tuner, "kohya", tmp_path))
    theirs = drawn_by_diffusers(pipeline, after)
    torch.testing.assert_close(theirs, after.aux["latent"], atol=2e-3, rtol=2e-3)


def broken(**parts):
    made = tiny.components("flux_dev") | parts
    return lambda: assemble(tiny.of("flux_dev"), made, ModelConfig(base="it"), torch.device("cpu"), torch.float32)


def test_what_is_not_of_one_model_is_told():
    with pytest.raises(
        UserError, match=r"it: its transformer takes 64 channels where 2x2 positions of the VAE's make 16"
    ):
        broken(vae=tiny.components("sdxl")["vae"])()
    with pytest.raises(UserError, match="expects 32 numbers of a caption and 32 of a token; CLIP gives 48, T5 32"):
        broken(text_encoder=tiny.components("sdxl")["text_encoder_2"])()
    with pytest.raises(UserError, match="CLIP gives 32, T5 96"):
        broken(text_encoder_2=tiny.components("sd3")["text_encoder_3"])()
    with pytest.raises(UserError, match="a DDIMScheduler is not for a model of rectified flow"):
        broken(scheduler=diffusers.DDIMScheduler())()


def test_a_single_file_is_recognised_and_what_has_the_rest_asked_for(tmp_path):
    path, name = tmp_path / "flux.safetensors", "double_blocks.0.img_mod.lin.weight"
    for names in (
        [name],
        [f"model.diffusion_model.{name}"],
        tiny.components("flux_schnell")["transformer"].state_dict(),
    ):
        save_file({name: torch.ones(1) for name in names}, path)
        with pytest.raises(UserError, match=r"flux.safetensors: of FLUX.1 it holds transformer. .*/FLUX.1-schnell"):
            opened(path)
    save_file({"double_blocks.0.img_attn.qkv.weight": torch.ones(1)}, path)  # FLUX.2's and Chroma's too
    with pytest.raises(
        UserError, match=r"flux.safetensors: this is a FLUX checkpoint; raftdiff tunes Stable Diffusion"
    ):
        opened(path)
