"""SDXL in the format that others publish, read and write; what every family does is tested where the parts are."""

import json

import diffusers
import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from raftdiff.diffusion.export import export
from raftdiff.diffusion.families.sdxl import StableDiffusionXL
from raftdiff.diffusion.families.shared import ldm
from raftdiff.diffusion.families.texts import Texts
from raftdiff.diffusion.families.tiny.clip import TOKENS
from raftdiff.diffusion.learning import losses
from raftdiff.diffusion.learning.finetuner import DiffusionFineTunerConfig
from raftdiff.diffusion.models import tiny
from raftdiff.diffusion.models.loading import ModelConfig, assemble, load
from raftdiff.errors import UserError
from raftdiff.recipes.config import check

PUBLISHED = {"unet": 2_567_463_684, "vae": 83_653_863, "text_encoder": 123_060_480, "text_encoder_2": 694_659_840}
"""Numbers in the parts of stable-diffusion-xl-base-1.0."""
LORA_KEYS = {
    "down_blocks.0.resnets.1.conv1": "lora_unet_input_blocks_2_0_in_layers_2",
    "down_blocks.0.downsamplers.0.conv": "lora_unet_input_blocks_3_0_op",
    "down_blocks.1.attentions.0.transformer_blocks.1.attn1.to_q": (
        "lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q"
    ),
    "down_blocks.2.attentions.1.transformer_blocks.9.attn2.to_out.0": (
        "lora_unet_input_blocks_8_1_transformer_blocks_9_attn2_to_out_0"
    ),
    "mid_block.attentions.0.proj_in": "lora_unet_middle_block_1_proj_in",
    "mid_block.resnets.1.time_emb_proj": "lora_unet_middle_block_2_emb_layers_1",
    "up_blocks.0.attentions.2.transformer_blocks.0.ff.net.0.proj": (
        "lora_unet_output_blocks_2_1_transformer_blocks_0_ff_net_0_proj"
    ),
    "up_blocks.0.upsamplers.0.conv": "lora_unet_output_blocks_2_2_conv",
    "up_blocks.2.resnets.2.conv_shortcut": "lora_unet_output_blocks_8_0_skip_connection",
}
"""As kohya's scripts and ComfyUI name them: the blocks of the original code, counted in one row."""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tiny.write_single_file(tmp_path_factory.mktemp("sdxl") / "sdxl.safetensors", "sdxl")


def opened(path, **changes):
    return load(check(ModelConfig, {"base": str(path), "device": "cpu", **changes}, "model"))


def tuner(parts, **changes):
    config = DiffusionFineTunerConfig(**{"rank": 2, "steps": 1, **changes})
    return config.build(parts, total_rounds=1, guidance=1.0, seed=0)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The published model's parts without their numbers."""
    folder = tmp_path_factory.mktemp("configs")
    StableDiffusionXL().configs("sdxl", None, folder, folder)
    with torch.device("meta"):
        kinds = {"unet": diffusers.UNet2DConditionModel, "vae": diffusers.AutoencoderKL}
        found = {
            name: kind.from_config(json.loads((folder / name / "config.json").read_text()))
            for name, kind in kinds.items()
        }
        for name, kind in (
            ("text_encoder", transformers.CLIPTextModel),
            ("text_encoder_2", transformers.CLIPTextModelWithProjection),
        ):
            found[name] = kind(transformers.CLIPTextConfig.from_pretrained(folder / name))
    return folder, found


def test_the_configs_in_code_are_those_of_the_published_model(published):
    folder, found = published
    assert {name: sum(p.numel() for p in part.parameters()) for name, part in found.items()} == PUBLISHED
    for name, filling in (("tokenizer", 49407), ("tokenizer_2", 0)):
        ids = transformers.CLIPTokenizer.from_pretrained(folder / name)("a cat", padding="max_length", max_length=5)
        assert ids.input_ids == [49406, 320, 2368, 49407, filling]
    StableDiffusionXL().check(found, "it")


def test_the_names_of_the_single_file_are_those_of_the_original_code(published):
    names = StableDiffusionXL().single_file(published[1])
    expected = {
        "model.diffusion_model.label_emb.0.0.weight": (1280, 2816),
        "model.diffusion_model.input_blocks.8.1.transformer_blocks.9.attn2.to_k.weight": (1280, 2048),
        "model.diffusion_model.output_blocks.2.2.conv.weight": (1280, 1280, 3, 3),
        "conditioner.embedders.0.transformer.text_model.encoder.layers.11.mlp.fc1.weight": (3072, 768),
        "conditioner.embedders.1.model.transformer.resblocks.31.attn.in_proj_weight": (3840, 1280),
        "conditioner.embedders.1.model.text_projection": (1280, 1280),
        "first_stage_model.decoder.mid.attn_1.q.weight": (512, 512, 1, 1),
    }
    assert {name: tuple(names[name].shape) for name in expected} == expected


def test_a_lora_has_the_names_of_kohyas_scripts(published):
    family, modules = StableDiffusionXL(), published[1]
    layers = dict(modules["unet"].named_modules())
    for layer, key in LORA_KEYS.items():
        assert layer in layers
        assert family.kohya("unet", layer, modules) == key
    assert family.kohya("text_encoder_2", "text_model.encoder.x", modules) == "lora_te2_text_model_encoder_x"
    # every layer that can get a LoRA has a name of its own
    named = [ldm.unet_layer(name, modules["unet"]) for name in layers if name.endswith(family.layers.everything)]
    assert len(set(named)) == len(named) == 788


def test_sizes_are_told_and_the_empty_text_is_zero_by_the_models_choice(models, tmp_path):
    parts = opened(models["sdxl"])
    told = {}
    parts.denoiser.register_forward_pre_hook(lambda _, args, words: told.update(words), with_kwargs=True)
    texts = parts.prompts(["", "a cat"])
    parts.predict(torch.zeros(2, 4, 8, 12), torch.tensor([1, 2]), texts)
    assert told["added_cond_kwargs"]["time_ids"].tolist() == [[16, 24, 0, 0, 16, 24]] * 2
    assert torch.equal(told["added_cond_kwargs"]["text_embeds"], texts.pooled)
    assert not texts.tokens[0].any()
    assert not texts.pooled[0].any()
    assert texts.tokens[1].any()
    index = json.loads((models["sdxl"] / "model_index.json").read_text())
    assert index["force_zeros_for_empty_prompt"] is True
    other = StableDiffusionXL().stated({**index, "force_zeros_for_empty_prompt": False})
    empty = other.encode(parts.modules, [""])
    assert empty.tokens.any()


def test_a_picture_that_was_cut_is_told_so():
    told = {}

    def network(xt, timesteps, **beside):
        told.update(beside["added_cond_kwargs"])
        return (xt,)

    xt, frame = torch.zeros(2, 4, 8, 12, dtype=torch.bfloat16), [[3467.0, 2001.0, 0.0, 13.0], [16.0, 24.0, 0.0, 0.0]]
    texts = Texts(torch.zeros(2, 3, 4, dtype=torch.bfloat16), torch.zeros(2, 5), frame=torch.tensor(frame))
    StableDiffusionXL().ask(network, xt, torch.tensor(5), texts, pixels=(16, 24), guidance=None)
    assert told["time_ids"].tolist() == [[*row, 16.0, 24.0] for row in frame]  # 3467 is none of bfloat16's numbers


def test_one_step_of_the_loss_is_the_published_training_loss(models):
    """diffusers' train_text_to_image_lora_sdxl.py: the mean squared error to the noise, sizes and pooled text told."""
    parts = opened(models["sdxl"])
    generator = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(2, 4, 8, 8, generator=generator) for _ in range(2))
    timesteps = torch.tensor([100, 700])
    learner = tuner(parts)
    texts = parts.prompts(["a cat", "a dog"])
    objective = learner.lesson.objective
    draws = losses.Draws(noise, timesteps, torch.tensor([False, False]))
    batch = losses.Batch(x0, texts, parts.prompts(["", ""]), torch.ones(2), draws)
    networks = losses.Networks(parts.predict, parts.predict, parts.predict)
    ours = losses.step_loss(batch, parts.process, objective, networks).loss / 2

    noisy = diffusers.DDPMScheduler.from_config(parts.scheduler.config).add_noise(x0, noise, timesteps)
    read = [
        parts.modules[encoder](
            parts.modules[name](
                ["a cat", "a dog"], padding="max_length", max_length=TOKENS, return_tensors="pt"
            ).input_ids,
            output_hidden_states=True,
        )
        for name, encoder in (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2"))
    ]
    sizes = torch.tensor([[16.0, 16, 0, 0, 16, 16]] * 2)
    with torch.no_grad():
        said = parts.denoiser(
            noisy,
            timesteps,
            torch.cat([one.hidden_states[-2] for one in read], dim=-1),
            added_cond_kwargs={"text_embeds": read[1][0], "time_ids": sizes},
        ).sample
    torch.testing.assert_close(ours, torch.nn.functional.mse_loss(said, noise), rtol=1e-5, atol=1e-6)


def test_a_checkpoint_is_read_by_diffusers_and_by_raftdiff_and_says_what_it_is(models, tmp_path):
    parts = opened(models["sdxl"])
    learner = tuner(parts)
    path = export(learner, "checkpoint", tmp_path / "mine.safetensors", {"raftdiff.digest": "0123"})
    theirs = diffusers.StableDiffusionXLPipeline.from_single_file(
        str(path), config=str(models["sdxl"]), local_files_only=True
    )
    ours, base = opened(path, config=str(models["sdxl"])), opened(models["sdxl"]).modules
    for name in parts.family.components:
        for found in (getattr(theirs, name), ours.modules[name]):
            for key, weight in found.state_dict().items():
                torch.testing.assert_close(weight, base[name].state_dict()[key])
    with safe_open(path, "pt") as file:
        told = file.metadata()
    assert told["modelspec.architecture"] == "stable-diffusion-xl-v1-base"
    assert (told["modelspec.resolution"], told["modelspec.title"], told["raftdiff.digest"]) == ("16x16", "mine", "0123")


def test_a_checkpoint_of_a_v_model_has_the_marks_that_comfyui_looks_for(models, tmp_path):
    parts = opened(models["sdxl"], prediction_type="v_prediction", zero_terminal_snr=True)
    path = export(tuner(parts), "checkpoint", tmp_path)
    assert path == tmp_path / "raftdiff_model.safetensors"
    assert {"v_pred", "ztsnr"} <= load_file(path).keys()
    again = opened(path, config=str(models["sdxl"]))  # whose scheduler says epsilon
    assert again.process.predicts == "v_prediction"
    assert again.scheduler.config.rescale_betas_zero_snr


@pytest.mark.parametrize("lost", ["embedders.1.model.text_projection", "label_emb.0.2.bias", "middle_block.1"])
def test_a_file_that_lost_weights_is_refused(models, file, tmp_path, lost):
    kept = {name: weight for name, weight in load_file(file).items() if lost not in name}
    save_file(kept, tmp_path / "cut.safetensors")
    with pytest.raises(UserError, match=r"cut\.safetensors"):
        opened(tmp_path / "cut.safetensors", config=str(models["sdxl"]))


def moving_average(weights):
    """As ldm's trainings leave one in a file: names without dots, and other numbers."""
    start = "model.diffusion_model."
    return {
        "model_ema." + "".join(name.split(".")[1:]): weight + 1
        for name, weight in weights.items()
        if name.startswith(start)
    } | {"model_ema.decay": torch.tensor(0.9), "model_ema.num_updates": torch.tensor(3)}


BESIDE = {
    "open_clip": lambda _: {"conditioner.embedders.1.model.logit_scale": torch.tensor(4.6)},
    "older transformers": lambda _: {
        "conditioner.embedders.0.transformer.text_model.embeddings.position_ids": torch.arange(TOKENS)[None]
    },
    "half of them": lambda _: {
        "conditioner.embedders.0.transformer.text_model.embeddings.position_ids": torch.arange(TOKENS)[None].half()
    },
    "comfyui": lambda _: {
        "conditioner.embedders.0.logit_scale": torch.tensor(4.6),
        "conditioner.embedders.0.transformer.text_projection.weight": torch.eye(32),
        "conditioner.embedders.1.model.transformer.text_model.embeddings.position_ids": torch.arange(TOKENS)[None],
    },
    "stability": lambda _: {"denoiser.sigmas": torch.ones(1000)},
    "training": moving_average,
}
"""What files on model sites hold beside the model, by who left it there."""


@pytest.mark.parametrize("who", BESIDE)
def test_what_others_leave_in_a_file_changes_nothing(models, file, tmp_path, who):
    weights = load_file(file)
    save_file({**weights, **BESIDE[who](weights)}, tmp_path / "it.safetensors")
    found, written = opened(tmp_path / "it.safetensors", config=str(models["sdxl"])), tiny.components("sdxl")
    for name in found.family.components:
        theirs = found.modules[name].state_dict()
        for key, weight in written[name].state_dict().items():
            assert torch.equal(theirs[key], weight)


def test_another_familys_configs_are_refused(models, file):
    with pytest.raises(UserError, match=r"the configs of Stable Diffusion 1.x and 2.x, and .* is Stable Diffusion XL"):
        opened(file, config=str(models["sd15"]))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"addition_embed_type": None, "projection_class_embeddings_input_dim": None}, "'None' beside the text"),
        ({"projection_class_embeddings_input_dim": 24 + 5 * 8}, "told 5 numbers beside a caption of 24"),
        ({"cross_attention_dim": 48}, "expects text embeddings of width 48, the text encoder makes 80"),
    ],
)
def test_parts_that_are_no_sdxl(changes, sentence):
    made = tiny.components("sdxl")
    unet = diffusers.UNet2DConditionModel.from_config({**made["unet"].config, **changes})
    with pytest.raises(UserError, match=sentence):
        StableDiffusionXL().check({**made, "unet": unet}, "it")


def test_latents_that_are_shifted_by_channel_are_refused():
    made = tiny.components("sdxl")
    made["vae"].register_to_config(latents_mean=[0.0] * 4)
    with pytest.raises(UserError, match=r"shifted by channel .* as Playground v2\.5's are"):
        StableDiffusionXL().check(made, "it")


@pytest.mark.parametrize(("kind", "held"), [("sdxl", torch.float32), ("sd15", torch.float16)])
def test_in_half_precision_the_vae_stays_in_float32_where_it_asks_for_it(kind, held):
    """SDXL's own overflows in float16."""
    made = tiny.components(kind)
    parts = assemble(tiny.of(kind), made, ModelConfig(base="it"), torch.device("cpu"), torch.float16)
    assert (parts.denoiser.dtype, parts.vae.dtype) == (torch.float16, held)
    if held == torch.float32:
        assert parts.decode(torch.zeros(1, 4, 8, 8)).isfinite().all()
