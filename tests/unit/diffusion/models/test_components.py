"""What other programs leave in folders and files: read where it can be, else told in a sentence, never guessed."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from raftdiff.diffusion.models import tiny
from raftdiff.diffusion.models.loading import ModelConfig, load
from raftdiff.diffusion.sampler import DiffusionSamplerConfig
from raftdiff.errors import UserError

WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}


@pytest.fixture
def folder(models, tmp_path):
    return shutil.copytree(models["sd15"], tmp_path / "it")


@pytest.fixture
def file(tmp_path):
    return tiny.write_single_file(tmp_path / "it.safetensors", "sd15")


def opened(path, **changes):
    return load(ModelConfig(base=str(path), **changes))


def rewritten(file, change, **metadata):
    save_file(change(load_file(file)), file, metadata=metadata or None)


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def without(path, *keys):
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key not in keys}))


def weight(parts):
    return parts.vae.decoder.conv_in.weight


def same(one, other):
    assert torch.equal(weight(one), weight(other))


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda w: {f"_orig_mod.{name}": it for name, it in w.items()},
            "the '_orig_mod.' is not the model's, torch.comp",
        ),
        (lambda w: {f"module.{name}": it for name, it in w.items()}, "the 'module.' is not the model's, DataParallel"),
        (
            lambda w: {name.replace(".weight", ".base_layer.weight"): it for name, it in w.items()},
            "the 'base_layer.' is not the model's, PEFT",
        ),
        (lambda w: dict(sorted(w.items())[1:]), "its files lack .*, which would be random"),
    ],
)
def test_weights_that_are_not_there_are_never_random(folder, component, change, sentence):
    rewritten(folder / component / WEIGHTS[component], change)
    with pytest.raises(
        UserError, match=rf"it: {component}: its files lack .*{sentence}" if "lack" not in sentence else sentence
    ):
        opened(folder)


@pytest.mark.parametrize(
    "start",
    [
        "model.diffusion_model.out.2",
        "first_stage_model.decoder.conv_in",
        "cond_stage_model.transformer.text_model.final",
    ],
)
def test_nor_are_those_that_a_single_file_lacks(models, file, start):
    rewritten(file, lambda w: {name: it for name, it in w.items() if not name.startswith(start)})
    with pytest.raises(UserError, match="its files lack .* and 1 more, which would be random"):
        opened(file, config=str(models["sd15"]))


def test_a_single_file_in_a_wrapper(file):
    rewritten(file, lambda w: {f"_orig_mod.{name}": it for name, it in w.items()})
    with pytest.raises(UserError, match=r"the '_orig_mod.' is no part of a model's names, torch.compile puts it there"):
        opened(file)


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder"])
def test_weights_that_are_no_numbers(folder, component):
    def spoil(weights):
        name = sorted(weights)[0]
        weights[name].view(-1)[0] = torch.nan
        return weights

    rewritten(folder / component / WEIGHTS[component], spoil)
    with pytest.raises(UserError, match=rf"{component}: 1 of the \d+ numbers of .* are NaN or infinite"):
        opened(folder)


@pytest.mark.parametrize("half", ["{stem}.fp16.safetensors", "sharded"])
@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder"])
def test_half_precision_files_alone(models, folder, component, half):
    path = folder / component / WEIGHTS[component]
    weights, stem = load_file(path), path.name.removesuffix(".safetensors")
    path.unlink()
    if half == "sharded":
        names = sorted(weights)
        shards = [f"{stem}.fp16-0000{n}-of-00002.safetensors" for n in (1, 2)]
        where = {name: shards[at % 2] for at, name in enumerate(names)}
        for shard in shards:
            part = {name: weights[name] for name in names if where[name] == shard}
            save_file(part, path.with_name(shard), metadata={"format": "pt"})
        index = {"metadata": {"total_size": 1}, "weight_map": where}
        path.with_name(f"{stem}.safetensors.index.fp16.json").write_text(json.dumps(index))
    else:
        save_file(weights, path.with_name(half.format(stem=stem)), metadata={"format": "pt"})
    same(opened(folder), opened(models["sd15"]))
    same(opened(models["sd15"], vae=str(folder)), opened(models["sd15"]))


def test_a_file_of_another_name_is_named(folder):
    path = folder / "unet" / WEIGHTS["unet"]
    path.rename(path.with_name("diffusion_pytorch_model.non_ema.safetensors"))
    with pytest.raises(UserError, match=r"unet/ holds diffusion_pytorch_model.non_ema.safetensors and no diffusion_py"):
        opened(folder)


def test_another_vae_by_folder_by_model_and_by_file(models, folder, file, tmp_path):
    other = shutil.copytree(models["sd15"], tmp_path / "other")
    rewritten(other / "vae" / WEIGHTS["vae"], lambda w: {name: it + 0.5 for name, it in w.items()})
    wanted = opened(other)
    same(opened(folder, vae=str(other / "vae")), wanted)
    same(opened(folder, vae=str(other)), wanted)
    same(opened(folder, vae=str(other / "vae" / WEIGHTS["vae"])), wanted)
    held = {name: it + 0.5 for name, it in load_file(file).items() if name.startswith("first_stage_model.")}
    alone = tmp_path / "vae.safetensors"
    save_file({name.removeprefix("first_stage_model."): it for name, it in held.items()}, alone)
    same(opened(folder, vae=str(alone)), wanted)
    for wrapped in ({"state_dict": held}, {"model": held, "step": 7}, {"model": {"module": held}, "optimizer": {}}):
        torch.save(wrapped, tmp_path / "vae.ckpt")
        same(opened(folder, vae=str(tmp_path / "vae.ckpt")), wanted)
    torch.save({**held, "model": {"width": 8}}, tmp_path / "vae.ckpt")  # settings beside the weights are no weights
    same(opened(folder, vae=str(tmp_path / "vae.ckpt")), wanted)
    torch.save({"state_dict": {"epoch": 1}, "model": held}, tmp_path / "vae.ckpt")
    same(opened(folder, vae=str(tmp_path / "vae.ckpt")), wanted)
    same(opened(file, config=str(folder), vae=str(alone)), wanted)
    shutil.rmtree(folder / "vae")
    same(opened(folder, vae=str(other)), wanted)


def test_a_vae_from_the_hub(models, tmp_path, monkeypatch):
    asked = []

    def fetch(name, allow_patterns):
        asked.extend(allow_patterns)
        return str(models["sd15"] / "vae")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    same(opened(models["sd15"], vae="someone/vae-of-theirs"), opened(models["sd15"]))
    assert {"config.json", "diffusion_pytorch_model.safetensors", "vae/config.json"} <= set(asked)


def test_what_is_no_vae(models, folder, tmp_path):
    with pytest.raises(UserError, match=r"model.vae: .* is not the folder of an AutoencoderKL: it has no config.json"):
        opened(folder, vae=str(tmp_path))
    with pytest.raises(UserError, match="model.vae: 'nonsense' is neither a folder nor a file here, nor a hub id"):
        opened(folder, vae="nonsense")
    edit(folder / "vae/config.json", _class_name="AutoencoderTiny")
    with pytest.raises(UserError, match=r"model.vae: .* holds a AutoencoderTiny; raftdiff takes an AutoencoderKL"):
        opened(models["sd15"], vae=str(folder / "vae"))
    save_file({"lora_up": torch.zeros(2)}, tmp_path / "lora.safetensors")
    with pytest.raises(UserError, match="holds no VAE: no weight of it belongs to a decoder"):
        opened(folder, vae=str(tmp_path / "lora.safetensors"))


def test_a_single_file_without_a_vae(models, file):
    whole = opened(file, config=str(models["sd15"]))
    rewritten(file, lambda w: {name: it for name, it in w.items() if not name.startswith("first_stage_model.")})
    with pytest.raises(UserError, match=r"it holds no VAE; name one as model.vae: a folder, a file or a hub id"):
        opened(file, config=str(models["sd15"]))
    same(opened(file, config=str(models["sd15"]), vae=str(models["sd15"] / "vae")), whole)


def test_what_a_single_file_holds_beyond_its_model_is_named(models, file):
    beyond = {"control_model.x.weight": torch.zeros(2), "model.diffusion_model.input_blocks.99.0.bias": torch.zeros(2)}
    rewritten(file, lambda held: {**held, **beyond})
    with pytest.warns(UserWarning, match=r"'control_model.x.weight' and 1 more have no place in this model"):
        opened(file, config=str(models["sd15"]))


def test_what_trainings_leave_in_single_files_is_not(models, file):
    harmless = {
        "betas": torch.zeros(3),
        "model_ema.decay": torch.zeros(()),
        "first_stage_model.loss.logvar": torch.zeros(()),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
    }
    rewritten(file, lambda held: {**held, **harmless})
    opened(file, config=str(models["sd15"]))


def test_weights_that_are_whole_numbers_are_refused(file):
    rewritten(file, lambda held: {name: it.to(torch.int8) if "to_q" in name else it for name, it in held.items()})
    with pytest.raises(
        UserError, match=r"to_q.weight' is int8\), which raftdiff does not read. Fetch the file in bf16"
    ):
        opened(file)


def test_a_text_encoder_named_without_its_middle_level(models, file):
    whole = opened(file, config=str(models["sd15"]))
    rewritten(file, lambda w: {name.replace("transformer.text_model.", "transformer."): it for name, it in w.items()})
    found = opened(file, config=str(models["sd15"]))
    assert torch.equal(found.prompts(["a cat"]).tokens, whole.prompts(["a cat"]).tokens)


@pytest.mark.parametrize("how", ["key", "metadata"])
def test_what_a_file_says_that_its_network_predicts(models, file, how):
    if how == "key":
        rewritten(file, lambda w: {**w, "v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)})
    else:
        rewritten(file, dict, **{"modelspec.prediction_type": "v"})
    parts = opened(file, config=str(models["sd15"]))
    assert parts.process.predicts == "v_prediction"
    assert bool(parts.scheduler.config.get("rescale_betas_zero_snr")) == (how == "key")
    assert opened(file, config=str(models["sd15"]), prediction_type="v_prediction").process.predicts == "v_prediction"
    with pytest.raises(UserError, match=r"model.prediction_type: .* says of itself that it is v_prediction .* epsilon"):
        opened(file, config=str(models["sd15"]), prediction_type="epsilon")


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_of_epsilon_a_files_word_is_not_believed_against_others(models, tmp_path, kind):
    """kohya's script that merges SDXL writes it whatever the model predicts, and leaves the key v_pred out."""
    path = tiny.write_single_file(tmp_path / "it.safetensors", kind)
    rewritten(path, dict, **{"modelspec.prediction_type": "epsilon"})
    assert opened(path, config=str(models[kind])).process.predicts == "epsilon"
    assert opened(path, config=str(models[kind]), prediction_type="v_prediction").process.predicts == "v_prediction"
    configs = tmp_path / "configs"
    shutil.copytree(models[kind], configs)
    edit(configs / "scheduler" / "scheduler_config.json", prediction_type="v_prediction")
    assert opened(path, config=str(configs)).process.predicts == "v_prediction"


def test_an_end_in_pure_noise_is_nothing_without_v(models, tmp_path):
    path, folder = tiny.write_single_file(tmp_path / "it.safetensors", "sdxl"), str(models["sdxl"])
    rewritten(path, lambda w: {**w, "ztsnr": torch.zeros(0)})
    with pytest.raises(UserError, match=r"Set model.zero_terminal_snr: false, or, .* model.prediction_type: v_pred"):
        opened(path, config=folder)
    assert not opened(path, config=folder, zero_terminal_snr=False).scheduler.config.rescale_betas_zero_snr
    parts = opened(path, config=folder, prediction_type="v_prediction")
    assert parts.scheduler.config.rescale_betas_zero_snr
    assert parts.scheduler.config.timestep_spacing == "trailing"


def test_an_sd2_file_that_says_it_is_not_asked(models, tmp_path, monkeypatch):
    path = tiny.write_single_file(tmp_path / "it.safetensors", "sd21")
    rewritten(path, lambda w: {**w, "v_pred": torch.zeros(0)})
    with pytest.raises(UserError, match="these weights do not fit the model configs in sd2"):  # no tiny model does
        opened(path)


@pytest.mark.parametrize("kind", ["DDIMScheduler", "DDPMScheduler"])
def test_latents_are_clipped_only_where_the_file_says_so(folder, kind):
    file = folder / "scheduler" / "scheduler_config.json"
    edit(folder / "model_index.json", scheduler=["diffusers", kind])
    edit(file, _class_name=kind)
    without(file, "clip_sample")
    for scheduler in ("ddim", "ddpm"):
        sampler = DiffusionSamplerConfig(scheduler=scheduler).build(opened(folder))
        assert sampler.scheduler.config.clip_sample is False
    edit(file, clip_sample=True)
    assert DiffusionSamplerConfig(scheduler="ddim").build(opened(folder)).scheduler.config.clip_sample is True


def test_nor_by_what_the_recipe_changes(folder):
    """PNDM knows no clipping, so that DDIM, which takes its place, must be told."""
    changed = opened(folder, prediction_type="v_prediction")
    assert DiffusionSamplerConfig(scheduler="ddim").build(changed).scheduler.config.clip_sample is False


def test_schedulers_that_are_none(folder):
    edit(folder / "scheduler/scheduler_config.json", _class_name="os.system")
    with pytest.raises(UserError, match="'os.system' is no scheduler of diffusers"):
        opened(folder)
    edit(folder / "scheduler/scheduler_config.json", _class_name="PNDMScheduler")
    edit(folder / "model_index.json", scheduler=["diffusers", "UNet2DConditionModel"])
    with pytest.raises(UserError, match="'UNet2DConditionModel' is no scheduler of diffusers"):
        opened(folder)
    edit(folder / "model_index.json", scheduler=["diffusers", "FlowMatchEulerDiscreteScheduler"])
    with pytest.raises(
        UserError, match="a FlowMatchEulerDiscreteScheduler has no noise schedule of Stable Diffusion's"
    ):
        opened(folder)


@pytest.mark.parametrize(("kind", "other"), [("sd15", "sd3"), ("sd3", "sd15"), ("sana", "sd3")])
def test_a_scheduler_of_another_family_behind_an_index_of_this_one(models, tmp_path, kind, other):
    """diffusers reads the file as of the class that the index names, and takes its defaults for what it lacks."""
    shutil.copytree(models[kind], tmp_path / "it")
    file = "scheduler/scheduler_config.json"
    shutil.copy(models[other] / file, tmp_path / "it" / file)
    with pytest.raises(
        UserError, match=r"scheduler: a .*Scheduler (has no noise schedule|is not for a model of rectif)"
    ):
        opened(tmp_path / "it")


def test_a_part_that_says_of_itself_that_it_is_another(folder):
    edit(folder / "vae/config.json", _class_name="AutoencoderDC")
    with pytest.raises(UserError, match="model_index.json says AutoencoderKL, and vae/config.json AutoencoderDC"):
        opened(folder)


def test_a_model_that_does_not_say_its_size(folder):
    edit(folder / "unet/config.json", sample_size=None)
    parts = opened(folder)
    with pytest.raises(
        UserError, match=r"does not say at what size it was trained .* Set sampler.height and sampler.width"
    ):
        DiffusionSamplerConfig(height=16).build(parts)
    assert DiffusionSamplerConfig(height=16, width=32).build(parts).width == 32


def test_a_model_of_wide_pictures(folder):
    edit(folder / "unet/config.json", sample_size=[8, 16])
    sampler = DiffusionSamplerConfig().build(opened(folder))
    assert (sampler.height, sampler.width) == (16, 32)


def test_a_distilled_unet_is_named(folder):
    config = json.loads((folder / "unet/config.json").read_text())
    edit(folder / "unet/config.json", time_cond_proj_dim=16)
    import diffusers

    unet = diffusers.UNet2DConditionModel.from_config({**config, "time_cond_proj_dim": 16})
    unet.save_pretrained(folder / "unet")
    with pytest.raises(UserError, match=r"must be told more than the text \(time_cond_proj_dim: 16\).* \(LCM\)"):
        opened(folder)


@pytest.mark.parametrize("file", ["unet/config.json", "model_index.json", "scheduler/scheduler_config.json"])
def test_configs_that_are_no_objects(folder, file):
    (folder / file).write_text("[]")
    with pytest.raises(UserError, match=r"holds a list where a JSON object with keys is expected"):
        opened(folder)


@pytest.mark.parametrize(
    "file", ["text_encoder/config.json", "tokenizer/tokenizer_config.json", "tokenizer/tokenizer.json"]
)
@pytest.mark.parametrize("content", ["[]", '{"hidden_size": "wide"}', "{"])
def test_no_malformed_file_is_a_traceback(folder, file, content):
    (folder / file).write_text(content)
    try:
        opened(folder)
    except UserError:
        return
    assert file == "tokenizer/tokenizer_config.json"  # of which nothing may be needed


def test_folders_one_level_off(folder, tmp_path):
    cache = tmp_path / "models--someone--model"
    (cache / "snapshots").mkdir(parents=True)
    folder.rename(cache / "snapshots" / "abc")
    with pytest.raises(
        UserError, match=r"this is the hub cache's folder of a model; name .*snapshots/abc, or its hub id"
    ):
        opened(cache)
    run = tmp_path / "run"
    (run / "rounds").mkdir(parents=True)
    (run / "recipe.yaml").touch()
    with pytest.raises(UserError, match=r"this is a run. Write its model with: raftdiff export .* --format merged"):
        opened(run)


def test_tokenizers(folder, models):
    """No limit, one beyond the text encoder's positions, the older files, and no vocabulary at all."""
    whole = opened(models["sd15"]).prompts(["a cat on a red background"]).tokens
    config = folder / "tokenizer/tokenizer_config.json"
    without(config, "model_max_length")
    assert torch.equal(opened(folder).prompts(["a cat on a red background"]).tokens, whole)
    edit(config, model_max_length=512)
    assert torch.equal(opened(folder).prompts(["a cat on a red background"]).tokens, whole)
    (folder / "tokenizer/tokenizer.json").unlink()
    with pytest.raises(UserError, match="tokenizer/: the tokenizer has no vocabulary"):
        opened(folder)


def test_another_models_tokenizer(folder, tmp_path):
    from raftdiff.embedded.tokens import word_tokenizer

    letters = "abcdefghijklmnopqrst"
    word_tokenizer([one + other for one in letters for other in letters], 24).save_pretrained(folder / "tokenizer")
    with pytest.raises(UserError, match="the tokenizer knows 588 tokens, the network only 514; it is another model's"):
        opened(folder)
