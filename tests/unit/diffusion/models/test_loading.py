"""Models by folder, hub id and single file; the wrong kind of thing gets a sentence that says what it is."""

import json
import shutil
from fnmatch import fnmatch

import pytest
import torch
from safetensors.torch import save_file

from raftdiff.diffusion.families.sd import StableDiffusion
from raftdiff.diffusion.families.shared import ldm
from raftdiff.diffusion.learning.finetuner import DiffusionFineTunerConfig
from raftdiff.diffusion.models import loading, tiny
from raftdiff.diffusion.models.loading import ModelConfig, assemble, load
from raftdiff.errors import UserError
from raftdiff.recipes.config import check
from raftdiff.training import devices
from raftdiff.training.devices import find_device


def copied(models, folder, kind="sd15"):
    shutil.copytree(models[kind], folder)
    return folder


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def base(path, **changes):
    return ModelConfig(base=str(path), **changes)


def test_a_folder_loads_frozen_and_in_its_dtype(models):
    parts = load(base(models["sd21"], dtype="bfloat16", channels_last=True))
    assert parts.process.predicts == "v_prediction"
    assert parts.size == (16, 16)
    assert parts.vae_factor == 2
    assert {p.dtype for p in parts.denoiser.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in parts.denoiser.parameters())
    assert parts.denoiser.conv_in.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("has_instructions", [False, True])
def test_where_a_cpu_lacks_bfloat16_its_convolutions_are_channels_last(models, monkeypatch, has_instructions):
    monkeypatch.setattr(devices, "onednn_takes_bfloat16", lambda: has_instructions)

    def last(module):
        weight = next(it for it in module.parameters() if it.dim() == 4 and it.shape[1] > 1 and it.shape[2] > 1)
        return not weight.is_contiguous() and weight.is_contiguous(memory_format=torch.channels_last)

    parts = load(base(models["sd15"], dtype="bfloat16", device="cpu"))
    assert last(parts.denoiser) == last(parts.vae) == parts.channels_last == (not has_instructions)
    tuner = DiffusionFineTunerConfig(steps=1).build(parts, total_rounds=1, guidance=1.0, seed=0)
    assert tuner.trainable.channels_last == (not has_instructions)
    assert not last(load(base(models["sd15"], device="cpu")).denoiser)
    monkeypatch.setattr(loading.sharded, "wanted", lambda asked: True)  # what is split must lie as PyTorch has it
    monkeypatch.setattr(loading.sharded, "split", lambda denoiser, blocks, device: None)
    assert not last(load(base(models["sd15"], dtype="bfloat16", device="cpu")).denoiser)


def test_a_shipped_name_is_resolved_first(models):
    parts = load(ModelConfig(base="scene-sd"), resolve=lambda name: str(models["sd15"]) if name == "scene-sd" else name)
    assert parts.name == "scene-sd"


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_a_half_precision_variant_is_found(models, tmp_path, kind):
    folder = copied(models, tmp_path / "half", kind)
    for name, component in tiny.of(kind).components.items():
        weights = folder / name / f"{component.stem}.safetensors"
        weights.rename(weights.with_suffix(".fp16.safetensors"))
    whole, half = load(base(models[kind])), load(base(folder))
    for name in half.family.components:
        theirs, ours = (next(iter(parts.modules[name].parameters())) for parts in (whole, half))
        assert torch.equal(theirs, ours)


def test_overrides_of_the_schedule(models):
    parts = load(base(models["sd15"], prediction_type="v_prediction", zero_terminal_snr=True))
    assert parts.process.predicts == "v_prediction"
    assert parts.scheduler.config.rescale_betas_zero_snr
    assert parts.scheduler.config.timestep_spacing == "trailing"


XL = {"model.diffusion_model.input_blocks.0.0.weight": 4, "model.diffusion_model.label_emb.0.0.weight": 2}
"""By which SDXL is known, and the columns of each weight."""


def write(path, **described):
    path.mkdir()
    (path / "model_index.json").write_text(json.dumps(described))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda p: p.mkdir(), "this folder is empty"),
        (lambda p: write(p, unet=[None, None]), "model_index.json: it does not say whose pipeline it is"),
        (lambda p: write(p, _class_name="FluxPipeline"), "names no transformer, and a FluxPipeline has one"),
        (lambda p: write(p, _class_name="StableDiffusionXLInpaintPipeline"), "this is a StableDiffusionXLInpaintPipel"),
        (
            lambda p: write(p, _class_name="PixArtSigmaPipeline"),
            "this is a PixArtSigmaPipeline; raftdiff tunes Stable Diffusion 1.x",
        ),
        (
            lambda p: (p.mkdir(), (p / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')),
            "this folder holds a LlamaForCausalLM; raftdiff tunes",
        ),
        (
            lambda p: (p.mkdir(), (p / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')),
            "this folder holds a UNet2DConditionModel",
        ),
        (
            lambda p: (p.mkdir(), (p / "pytorch_lora_weights.safetensors").touch()),
            "this folder holds a LoRA, which changes a model and is not one",
        ),
        (
            lambda p: (p.mkdir(), (p / "anime.safetensors").touch()),
            "it holds anime.safetensors: name that file itself",
        ),
        (lambda p: (p.mkdir(), (p / "notes.txt").touch()), "it has no model_index.json"),
        (lambda p: (p.mkdir(), (p / "model_index.json").write_text("{")), "cannot be read as JSON"),
    ],
)
def test_folders_of_the_wrong_kind(tmp_path, make, sentence):
    make(tmp_path / "it")
    with pytest.raises(UserError, match=sentence):
        load(base(tmp_path / "it"))


def test_incomplete_folders(models, tmp_path):
    folder = copied(models, tmp_path / "it")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UserError, match="unet cannot be read"):
        load(base(folder))
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(UserError, match=r"holds only pickled .bin weights, which raftdiff does not open"):
        load(base(folder))
    weights.with_suffix(".bin").unlink()
    with pytest.raises(UserError, match=r"unet/ holds no weights \(.safetensors\)"):
        load(base(folder))
    shutil.rmtree(folder / "vae")
    shutil.copy(models["sd15"] / "unet" / "diffusion_pytorch_model.safetensors", weights)
    with pytest.raises(UserError, match=r"vae/config.json is missing"):
        load(base(folder))


def test_parts_that_do_not_belong_together(models, tmp_path):
    folder = copied(models, tmp_path / "it")
    edit(folder / "model_index.json", text_encoder=["transformers", "T5EncoderModel"])
    with pytest.raises(UserError, match="its text_encoder is a T5EncoderModel, not a CLIPTextModel"):
        load(base(folder))


def test_missing_paths_and_names(monkeypatch):
    for name in ("/nowhere/at/all", "scene_sd", "./model", "models/anime.safetensors/x"):
        with pytest.raises(UserError, match="is neither a folder nor a file here, nor a hub id"):
            load(base(name))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="there is no folder 'someone/model' here, and the hub cannot be reached"):
        load(base("someone/model"))


@pytest.mark.parametrize(("kind", "half"), [("sd15", False), ("sd15", True), ("sdxl", True)])
def test_a_hub_model_is_fetched_without_what_is_not_needed(models, tmp_path, monkeypatch, kind, half):
    """A stand-in for the hub: copies from a folder what the patterns ask for."""
    remote, local = copied(models, tmp_path / "remote", kind), tmp_path / "snapshot"
    weights = remote / "unet" / "diffusion_pytorch_model.safetensors"
    shutil.copy(weights, weights.with_name("diffusion_pytorch_model.fp16.safetensors"))
    shutil.copy(weights, weights.with_name("diffusion_pytorch_model.non_ema.safetensors"))
    (remote / "safety_checker").mkdir()
    (remote / "safety_checker" / "model.safetensors").touch()
    if half:
        weights.unlink()

    def fetch(name, allow_patterns):
        assert name == "someone/model"
        for path in remote.rglob("*"):
            inside = path.relative_to(remote)
            if path.is_file() and any(fnmatch(str(inside), pattern) for pattern in allow_patterns):
                (local / inside).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, local / inside)
        return str(local)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    load(base("someone/model"))
    found = {path.name for path in local.rglob("*.safetensors")}
    unet = "diffusion_pytorch_model.fp16.safetensors" if half else "diffusion_pytorch_model.safetensors"
    assert found == {unet, "diffusion_pytorch_model.safetensors", "model.safetensors"}


def test_no_network_for_local_models(models, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the network was asked for")

    monkeypatch.setattr("socket.socket.connect", refuse)
    load(base(models["sd15"]))
    for name in ("it.safetensors", "it.ckpt", "it.pth"):
        load(base(tiny.write_single_file(tmp_path / name, "sd15"), config=str(models["sd15"])))


@pytest.mark.parametrize(
    ("name", "weights", "sentence"),
    [
        ("a.safetensors", {"lora_unet_down_blocks_0.lora_down.weight": 2}, "this is a LoRA"),
        ("b.safetensors", {"model.layers.0.self_attn.q_proj.weight": 2}, "this is a language model"),
        ("c.safetensors", {"double_blocks.0.img_attn.qkv.weight": 2}, "this is a FLUX checkpoint"),
        ("d.safetensors", {"model.diffusion_model.joint_blocks.0.x": 2}, "this is an SD 3 checkpoint"),
        ("e.safetensors", {"conv_in.weight": 4}, "this is a U-Net alone, in diffusers' form"),
        ("e.safetensors", {}, "this file holds no weights; raftdiff tunes"),
        ("f.safetensors", {"something": 2}, "does not hold a Stable Diffusion checkpoint"),
        ("g.safetensors", {**XL, "conditioner.embedders.0.transformer.x": 2}, r"not both text encoders \(conditioner"),
        ("k.safetensors", {**XL, "conditioner.embedders.0.model.x": 2}, "this is SDXL's refiner"),
        (
            "l.safetensors",
            {**XL, "model.diffusion_model.input_blocks.0.0.weight": 9},
            "this is an inpainting checkpoint",
        ),
        ("m.safetensors", {**XL, "cond_stage_model.model.x": 2}, "as SD 2.1 unCLIP's is told a picture"),
        ("n.safetensors", {**XL, "edm_mean": 4}, "by its key edm_mean it follows EDM's noise process"),
        ("o.safetensors", {**XL, "edm_vpred.sigma_max": 1, "v_pred": 0}, r"by its key edm_vpred\.sigma_max it follows"),
        (
            "p.safetensors",
            {"model_ema.diffusion_modelinput_blocks00weight": 4, "cond.self_attn.q_proj.weight": 2},
            "it holds only the moving average of a training",
        ),
        ("h.safetensors", {"model.diffusion_model.input_blocks.0.0.weight": 9}, "this is an inpainting checkpoint"),
        ("i.safetensors", {"model.diffusion_model.input_blocks.0.0.weight": 4}, "a U-Net but no text encoder"),
        ("j.ckpt", {"something": 2}, "does not hold a Stable Diffusion checkpoint"),
    ],
)
def test_files_of_the_wrong_kind(tmp_path, name, weights, sentence):
    made = {key: torch.zeros(2, channels) for key, channels in weights.items()}
    (torch.save if name.endswith(".ckpt") else save_file)(made, tmp_path / name)
    with pytest.raises(UserError, match=sentence):
        load(base(tmp_path / name))


def test_unreadable_files(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"not one")
    (tmp_path / "b.ckpt").write_bytes(b"not one")
    (tmp_path / "c.bin").touch()
    with pytest.raises(UserError, match=r"readable safetensors file \(.*\)\. It is cut short or damaged: fetch it"):
        load(base(tmp_path / "a.safetensors"))
    (tmp_path / "text.ckpt").write_text("a fox on a white background")
    with pytest.raises(UserError, match=r"text.ckpt: this file cannot be read as plain weights"):
        load(base(tmp_path / "text.ckpt"))
    with pytest.raises(UserError, match=r"this file cannot be read as plain weights"):
        load(base(tmp_path / "b.ckpt"))
    with pytest.raises(UserError, match=r"a single-file model ends in .safetensors, .ckpt or .pth"):
        load(base(tmp_path / "c.bin"))


class Malicious:
    def __reduce__(self):
        return (print, ("run",))


def test_a_file_that_refers_to_itself_or_names_weights_by_numbers_holds_none(tmp_path):
    inside = {}
    inside["state_dict"] = inside
    torch.save(inside, tmp_path / "round.pth")
    torch.save({"state_dict": {1: torch.zeros(1)}}, tmp_path / "numbers.pth")
    for name in ("round.pth", "numbers.pth"):
        with pytest.raises(UserError, match=f"{name}: this file holds no weights"):
            load(base(tmp_path / name))


def test_a_safetensors_file_under_another_name_is_told_so(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "it.pth")
    with pytest.raises(UserError, match=r"it.pth: this is a safetensors file; name it so"):
        load(base(tmp_path / "it.pth"))


def test_a_ckpt_never_runs_code(tmp_path, capsys):
    torch.save({"state_dict": {}, "callbacks": Malicious()}, tmp_path / "it.ckpt")
    with pytest.raises(UserError, match="or holds Python code, which raftdiff never runs"):
        load(base(tmp_path / "it.ckpt"))
    assert capsys.readouterr().out == ""


def test_a_vae_never_runs_code_and_is_told_without_pytorchs_advice_to_do_so(models, tmp_path, capsys):
    torch.save({"state_dict": {}, "callbacks": Malicious()}, tmp_path / "it.ckpt")
    with pytest.raises(UserError, match=r"It is cut short or damaged, or holds Python code.*never runs") as told:
        load(base(models["sd15"], vae=str(tmp_path / "it.ckpt")))
    assert "weights_only" not in str(told.value)
    assert str(told.value).isprintable()
    assert capsys.readouterr().out == ""


def test_single_files_that_need_a_word(tmp_path):
    path = tiny.write_single_file(tmp_path / "it.safetensors", "sd21")
    with pytest.raises(UserError, match=r"an SD 2.x file does not say what its network predicts"):
        load(base(path))
    with pytest.raises(UserError, match="these weights do not fit the model configs in sd1"):
        load(base(tiny.write_single_file(tmp_path / "other.safetensors", "sd15")))


@pytest.mark.parametrize(
    ("kind", "unet", "text"), [("sd1", 859_520_964, 123_060_480), ("sd2", 865_910_724, 340_387_840)]
)
def test_the_configs_in_code_are_those_of_the_published_models(tmp_path, kind, unet, text):
    import diffusers
    import transformers

    folder = tmp_path
    StableDiffusion().configs(kind, "v_prediction" if kind == "sd2" else None, folder, tmp_path)
    with torch.device("meta"):
        made = {
            "unet": diffusers.UNet2DConditionModel.from_config(json.loads((folder / "unet/config.json").read_text())),
            "vae": diffusers.AutoencoderKL.from_config(json.loads((folder / "vae/config.json").read_text())),
            "text": transformers.CLIPTextModel(transformers.CLIPTextConfig.from_pretrained(folder / "text_encoder")),
        }
    counts = {name: sum(p.numel() for p in module.parameters()) for name, module in made.items()}
    assert counts == {"unet": unet, "vae": 83_653_863, "text": text}
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer")
    ids = tokenizer("A photo of a cat", padding="max_length", max_length=9).input_ids
    assert ids == [49406, 320, 1125, 539, 320, 2368, 49407, *[0 if kind == "sd2" else 49407] * 2]
    # and the names are those of the original checkpoints
    names = ldm.unet_weights(made["unet"].state_dict(), 2)
    assert "model.diffusion_model.output_blocks.11.1.proj_out.weight" in names
    assert "model.diffusion_model.output_blocks.8.2.conv.weight" in names
    assert "model.diffusion_model.output_blocks.2.1.conv.weight" in names
    assert "first_stage_model.decoder.up.3.upsample.conv.weight" in ldm.vae_weights(made["vae"].state_dict(), 4)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("gpu", "'gpu' is not a device"), ("cpu:1", "'cpu:1' is not a device"), ("cuda:x", "'cuda:x' is not a device")],
)
def test_devices_that_do_not_exist(name, sentence):
    with pytest.raises(UserError, match=sentence):
        find_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu(models):
    assert find_device("auto") == torch.device("cpu")
    with pytest.raises(UserError, match="'cuda' asks for a GPU, and PyTorch sees none here"):
        load(base(models["sd15"], device="cuda"))
    with pytest.raises(UserError, match="float16 needs a GPU"):
        load(base(models["sd15"], dtype="float16"))
    with pytest.raises(UserError, match="model.compile: graphs are CUDA graphs, which need a GPU; use compile: true"):
        load(base(models["sd15"], compile="graphs"))


def test_captions_are_read_where_the_recipe_says(models, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="model.text_device: 'cuda' asks for a GPU, and PyTorch sees none here"):
        load(base(models["sd15"], text_device="cuda"))
    # a device without memory stands for another
    monkeypatch.setattr("raftdiff.diffusion.models.loading.find_device", lambda _: torch.device("meta"))
    config = ModelConfig(base="it", text_device="cuda:1")
    parts = assemble(tiny.of("sdxl"), tiny.components("sdxl"), config, torch.device("cpu"), torch.float32)
    placed = {name: parts.modules[name].device.type for name in parts.family.components}
    assert placed == {"unet": "cpu", "vae": "cpu", "text_encoder": "meta", "text_encoder_2": "meta"}
    with pytest.raises(UserError, match="train_text_encoder: what is trained lies on one device, and model.text_dev"):
        DiffusionFineTunerConfig(train_text_encoder=True).build(parts, total_rounds=1, guidance=1.0, seed=0)


def test_xformers_missing_says_how_to_install_it(models, monkeypatch):
    monkeypatch.setattr("raftdiff.diffusion.models.loading.find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"pip install 'raftdiff\[xformers\]'"):
        load(base(models["sd15"], attention="xformers"))


def test_zero_snr_with_epsilon_is_refused(models):
    with pytest.raises(UserError, match="does not go with epsilon-prediction"):
        load(base(models["sd15"], zero_terminal_snr=True))


@pytest.mark.parametrize("kind", ["sd15", "sdxl", "sd3"])
def test_a_network_that_is_told_no_guidance_says_so(models, kind):
    assert load(base(models[kind])).embedded_guidance is None
    with pytest.raises(UserError, match="model.embedded_guidance: the network of .* is told no guidance; sampler.gui"):
        load(base(models[kind], embedded_guidance=3.5))


def test_misspelt_keys_get_a_hint():
    with pytest.raises(UserError, match="Did you mean 'dtype'"):
        check(ModelConfig, {"base": "x", "dtyp": "float32"})
