"""Sana: texts of Gemma 2 with a mask, latents of a deep autoencoder, and a flow whose shift a multistep solver says."""

from pathlib import Path

import diffusers
import diffusers.loaders.single_file_utils as theirs
import numpy
import pytest
import torch
import transformers
from safetensors.torch import save_file

from raftdiff.diffusion.families.originals import sana as originals
from raftdiff.diffusion.families.sana import TOKENS, Sana
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
    # diffusers' scripts/convert_sana_to_diffusers.py at 065628f5; 1.6B is what the transformer's defaults are
    "0.6B": (
        {
            "num_attention_heads": 36,
            "num_cross_attention_heads": 16,
            "cross_attention_head_dim": 72,
            "cross_attention_dim": 1152,
            "num_layers": 28,
        },
        591_747_872,
    ),
    "1.6B": ({}, 1_604_462_752),
    "1.5 1.6B": ({"qk_norm": "rms_norm_across_heads"}, 1_604_641_952),
}
VAE = {
    # https://huggingface.co/mit-han-lab/dc-ae-f32c32-sana-1.1-diffusers, config.json
    "encoder_block_types": ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3,
    "decoder_block_types": ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3,
    "upsample_block_type": "interpolate",
    "downsample_block_type": "Conv",
    "scaling_factor": 0.41407,
}


@pytest.fixture
def parts(models):
    return load(ModelConfig(base=str(models["sana"])))


def plain(parts):
    found = diffusers.SanaPipeline(**parts.modules, scheduler=parts.scheduler)
    found.set_progress_bar_config(disable=True)
    return found


def test_texts_are_those_of_the_pipeline_without_its_instruction(parts):
    captions = ["  A Cat, two dogs", "", "long " * 80]
    theirs = plain(parts).encode_prompt(captions, do_classifier_free_guidance=False, complex_human_instruction=None)
    ours = parts.prompts(captions)
    assert torch.equal(ours.tokens, theirs[0])
    assert torch.equal(ours.mask, theirs[1].bool())
    assert ours.mask.sum(1).tolist() == [1 + len("a cat, two dogs"), 1, TOKENS]  # a letter a token, and a begin
    family = parts.family
    assert family.tokens(parts.modules, captions[0]) == 1 + len("a cat, two dogs")
    assert family.tokens(parts.modules, captions[2]) > TOKENS == family.token_limit(parts.modules)


def test_texts_are_filled_up_behind_whatever_side_the_tokenizer_was_saved_with(parts):
    assert parts.modules["tokenizer"].padding_side == "left"
    mask = parts.prompts(["ab"]).mask[0]
    assert mask[:3].all()
    assert not mask[3:].any()


def test_filling_is_not_looked_at(parts):
    xt, times = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([500.0])
    texts = parts.prompts(["cat"])
    louder = texts.tokens + 9.0 * ~texts.mask[..., None]
    with torch.no_grad():
        said, again, other = (
            parts.predict(xt, times, type(texts)(tokens, mask=mask))
            for tokens, mask in ((texts.tokens, texts.mask), (louder, texts.mask), (louder, ~texts.mask))
        )
    torch.testing.assert_close(said, again)
    assert not torch.allclose(said, other, atol=1e-3)


def test_the_decoded_picture_is_the_pipelines_and_latents_are_scaled(parts):
    drawing = DiffusionSamplerConfig(steps=2, guidance=2.0, scheduler="dpm++", batch_size=1).build(parts)
    (ours,) = drawing.sample([Prompt("a", "a cat", "a cat", "a cat")], per_prompt=1, seed=0, round=0, done=set())
    told = {"complex_human_instruction": None, "use_resolution_binning": False, "num_inference_steps": 2}
    generator = torch.Generator().manual_seed(ours.seed)
    theirs = plain(parts)("a cat", guidance_scale=2.0, height=32, width=32, generator=generator, **told).images[0]
    off = numpy.abs(numpy.asarray(ours.media, dtype=int) - numpy.asarray(theirs, dtype=int))
    assert ours.media.size == (32, 32)
    assert off.max() <= 1  # a value may round the other way
    pixels = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = parts.encode(pixels)
    assert found.shape == (2, 4, 4, 6)
    torch.testing.assert_close(found, parts.vae.encode(pixels).latent * 0.41407)


def test_one_step_of_the_loss_is_the_published_training_loss(parts):
    """diffusers' train_dreambooth_lora_sana.py at 071190da, weighting none, at the levels of the model's own shift."""
    x0, noise = (torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(it)) for it in (0, 1))
    places = torch.tensor([100, 700])
    learner = DiffusionFineTunerConfig(rank=2).build(parts, total_rounds=1, guidance=1.0, seed=0)
    texts = parts.prompts(["a cat", "a dog"])
    draws = losses.Draws(noise, places, torch.tensor([False, False]))
    batch = losses.Batch(x0, texts, parts.prompts(["", ""]), torch.ones(2), draws)
    networks = losses.Networks(parts.predict, parts.predict, parts.predict)
    ours = losses.step_loss(batch, parts.process, learner.lesson.objective, networks).loss / 2

    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    timesteps = scheduler.timesteps[999 - places]
    sigmas = scheduler.sigmas[999 - places].view(-1, 1, 1, 1)
    noisy = (1.0 - sigmas) * x0 + sigmas * noise
    tokens, mask, _, _ = plain(parts).encode_prompt(["a cat", "a dog"], do_classifier_free_guidance=False)
    said = parts.denoiser(
        hidden_states=noisy,
        encoder_hidden_states=tokens,
        encoder_attention_mask=mask,
        timestep=timesteps,
        return_dict=False,
    )[0]
    torch.testing.assert_close(ours, ((said - (noise - x0)) ** 2).mean())


def test_the_shift_is_read_from_either_scheduler():
    family, multistep = Sana(), tiny.components("sana")["scheduler"]
    euler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    first, second = (family.process(scheduler, "it").level.s for scheduler in (multistep, euler))
    assert torch.equal(first, second)
    torch.testing.assert_close(first[499], torch.tensor(3 * 0.5 / 2))
    for scheduler in (multistep, euler):
        solvers = family.solvers(scheduler)
        assert [solvers[name].settings["shift"] for name in family.paths] == [3.0, 3.0]
        assert solvers["dpm++"].settings["flow_shift"] == 3.0
    with pytest.raises(UserError, match="it: a DPMSolverMultistepScheduler is not for .* with use_flow_sigmas"):
        family.process(diffusers.DPMSolverMultistepScheduler(), "it")


def test_timesteps_are_told_on_the_transformers_own_scale(parts):
    xt, texts = torch.ones(1, 4, 8, 8), parts.prompts(["cat"])
    other = tiny.components("sana")["transformer"]
    other.register_to_config(timestep_scale=0.001)
    with torch.no_grad():
        said = Sana().ask(other, xt, torch.tensor(500.0), texts, pixels=(32, 32), guidance=None)
        torch.testing.assert_close(said, parts.predict(xt, torch.tensor([0.5]), texts))


@pytest.mark.parametrize("model", SIZES)
def test_a_lora_is_named_after_the_published_models(model):
    changes, count = SIZES[model]
    with torch.device("meta"):
        network = diffusers.SanaTransformer2DModel(**changes)
    assert sum(it.numel() for it in network.parameters()) == count
    family, blocks = Sana(), network.config.num_layers
    layers = [name for name, _ in network.named_modules() if name.endswith(family.layers.everything)]
    assert len(layers) == blocks * (2 * 4 + 2)
    assert family.kohya("transformer", layers[0], {}) == "transformer.transformer_blocks.0.attn1.to_q"
    assert family.described({"transformer": network}, "flow")["modelspec.architecture"] == "sana"


def test_the_published_parts_go_together():
    with torch.device("meta"):
        parts = {
            "transformer": diffusers.SanaTransformer2DModel(),
            "vae": diffusers.AutoencoderDC(**VAE),
            "text_encoder": transformers.Gemma2Model(transformers.Gemma2Config()),
        }
    family = Sana()
    family.check(parts, "it")
    counts = {name: sum(it.numel() for it in part.parameters()) for name, part in parts.items()}
    assert (counts["vae"], counts["text_encoder"]) == (312_250_275, 2_614_341_888)
    assert family.size(parts) == (1024, 1024)
    assert (family.autoencoder.factor(parts["vae"]), family.autoencoder.channels(parts["vae"])) == (32, 32)
    assert family.multiple(parts) == 1


def broken(**parts):
    made = tiny.components("sana") | parts
    return lambda: assemble(tiny.of("sana"), made, ModelConfig(base="it"), torch.device("cpu"), torch.float32)


def test_what_is_not_of_one_model_is_told():
    with pytest.raises(UserError, match="it: its transformer takes 4 channels and makes 4, where the VAE has 16"):
        broken(vae=tiny.components("sd3")["vae"])()
    encoder = tiny.components("sana")["text_encoder"]
    encoder.config.hidden_size = 8
    with pytest.raises(UserError, match="expects text embeddings of width 16, the text encoder makes 8"):
        broken(text_encoder=encoder)()
    distilled = tiny.components("sana")["transformer"]
    distilled.register_to_config(guidance_embeds=True)
    with pytest.raises(UserError, match="must be told a guidance .* Sana-Sprint"):
        broken(transformer=distilled)()


UNREAD = {"pos_embed": torch.ones(1, 4, 16), "y_embedder.y_embedding": torch.ones(300, 16)}
"""What published files hold beside what a network has."""


def converted(made):
    """By diffusers' own converter, which wants these two."""
    return theirs.convert_sana_transformer_to_diffusers({**made, **UNREAD})


def test_names_of_a_single_file_are_those_that_diffusers_converter_knows_and_lead_back(parts):
    own = parts.denoiser.state_dict()
    made = originals.NAMES.original(own)
    found = converted(made)
    assert found.keys() == own.keys()
    assert all(torch.equal(found[name], weight) for name, weight in own.items())
    back = originals.NAMES.diffusers({**made, **UNREAD}, own)
    assert back.keys() == own.keys()
    assert all(torch.equal(back[name], weight) for name, weight in own.items())


def test_norms_of_sana_1_5_have_the_names_that_diffusers_script_gives_them(parts):
    config = {**parts.denoiser.config, "qk_norm": "rms_norm_across_heads"}
    own = diffusers.SanaTransformer2DModel.from_config(config).state_dict()
    made = originals.NAMES.original(own)
    for theirs_, ours in (("attn.q_norm", "attn1.norm_q"), ("cross_attn.k_norm", "attn2.norm_k")):
        assert torch.equal(made[f"blocks.0.{theirs_}.weight"], own[f"transformer_blocks.0.{ours}.weight"])
    assert originals.NAMES.diffusers(made, own).keys() == own.keys()


@pytest.mark.parametrize("end", [".pth", ".safetensors"])
def test_a_single_file_is_the_model_with_what_a_folder_has_beside_it(models, parts, tmp_path, end):
    path = tmp_path / f"sana{end}"
    made = {name: it.contiguous() for name, it in Sana().single_file(parts.modules).items()} | UNREAD
    torch.save({"state_dict": made, "epoch": 3}, path) if end == ".pth" else save_file(made, path)
    found = load(ModelConfig(base=str(path), config=str(models["sana"])))
    for name in found.family.components:
        wanted = parts.modules[name].state_dict()
        assert all(torch.equal(it, wanted[key]) for key, it in found.modules[name].state_dict().items()), name
    with pytest.raises(UserError, match=r"of Sana it holds transformer. .* such as Efficient-Large-Model/Sana"):
        load(ModelConfig(base=str(path)))
    with pytest.raises(UserError, match=r"holds the configs of Z-Image, and .* is Sana"):
        load(ModelConfig(base=str(path), config=str(models["zimage"])))


def test_the_transformer_of_a_folder_is_a_single_file_too_and_another_size_does_not_fit(models, parts, tmp_path):
    file = models["sana"] / "transformer/diffusion_pytorch_model.safetensors"
    found = load(ModelConfig(base=str(file), config=str(models["sana"])))
    assert torch.equal(found.denoiser.proj_out.weight, parts.denoiser.proj_out.weight)
    made = {name: it.contiguous() for name, it in Sana().single_file(parts.modules).items()}
    made["x_embedder.proj.weight"] = torch.ones(2, 3, 1, 1)
    save_file(made, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="these weights do not fit the model configs"):
        load(ModelConfig(base=str(tmp_path / "other.safetensors"), config=str(models["sana"])))


@pytest.mark.parametrize(
    ("blocks", "norms", "known"),
    [
        (28, False, "Sana_600M_1024px"),
        (20, False, "Sana_1600M_1024px"),
        (20, True, "SANA1.5_1.6B_1024px"),
        (60, True, "SANA1.5_4.8B_1024px"),
    ],
)
@pytest.mark.parametrize("start", ["", "model.diffusion_model."])
def test_a_single_file_says_which_published_model_has_the_rest(blocks, norms, known, start):
    names = ["attention_y_norm.weight", "y_embedder.y_proj.fc1.weight"]
    names += [f"blocks.{place}.attn.qkv.weight" for place in range(blocks)]
    names += ["blocks.0.attn.q_norm.weight"] if norms else []
    shapes = {f"{start}{name}": (1,) for name in names}
    assert Sana().recognise(shapes, Path("it.pth")) == f"Efficient-Large-Model/{known}_diffusers"
    assert Sana().recognise({"blocks.0.attn.qkv.weight": (1,)}, Path("it.pth")) is None
    with pytest.raises(UserError, match=r"it.pth: this is Sana-Sprint, a distilled model"):
        Sana().recognise({**shapes, f"{start}cfg_embedder.mlp.0.weight": (1,)}, Path("it.pth"))


def test_a_vae_of_its_kind_is_read_from_a_folder(models):
    weights = models["sana"] / "vae/diffusion_pytorch_model.safetensors"
    with pytest.raises(UserError, match=r"model.vae: .*: an AutoencoderDC is read from its folder"):
        load(ModelConfig(base=str(models["sana"]), vae=str(weights)))
    other = load(ModelConfig(base=str(models["sana"]), vae=str(models["sana"] / "vae")))
    assert type(other.vae).__name__ == "AutoencoderDC"
