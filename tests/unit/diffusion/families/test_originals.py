"""Single files of the flow families: their names against diffusers' converters, and what is read and written."""

from types import SimpleNamespace

import diffusers.loaders.single_file_utils as theirs
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from raftdiff.diffusion.export import export
from raftdiff.diffusion.families.originals import flux, flux2, sd3, zimage
from raftdiff.diffusion.learning.finetuner import DiffusionFineTunerConfig
from raftdiff.diffusion.memory.outline import outline
from raftdiff.diffusion.models.checkpoints import one_file, recognise_file
from raftdiff.diffusion.models.loading import ModelConfig, load
from raftdiff.errors import UserError

KINDS = {"sd3": sd3, "flux_dev": flux, "flux2": flux2, "zimage": zimage}
CONVERTERS = {
    "sd3": theirs.convert_sd3_transformer_checkpoint_to_diffusers,
    "flux_dev": theirs.convert_flux_transformer_checkpoint_to_diffusers,
    "flux_schnell": theirs.convert_flux_transformer_checkpoint_to_diffusers,
    "flux2": theirs.convert_flux2_transformer_checkpoint_to_diffusers,
    "zimage": theirs.convert_z_image_transformer_checkpoint_to_diffusers,
}
WIDTH = 3072
"""Of FLUX.1, which diffusers' converter takes for granted."""


def opened(base, folder=None, **settings):
    return load(ModelConfig(base=str(base), config=None if folder is None else str(folder), **settings))


def widened(own):
    """With as many rows as FLUX.1's where queries, keys, values and the feed-forward layer are one."""
    rows = {"attn.to_q": WIDTH, "attn.to_k": WIDTH, "attn.to_v": WIDTH, "proj_mlp": 4 * WIDTH}
    found = dict(own)
    for name in own:
        layer, _, end = name.rpartition(".")
        wide = next((count for part, count in rows.items() if layer.endswith(part)), None)
        if name.startswith("single") and wide:
            found[name] = torch.randn(wide, *(() if end == "bias" else (1,)))
    return found


class Wholes:
    """Models by kind, each opened from its folder once, and its single file; not to be changed."""

    def __init__(self, models):
        self._models, self._found = models, {}

    def __getitem__(self, kind):
        if kind not in self._found:
            self._found[kind] = opened(self._models[kind])
        return self._found[kind]

    def weights(self, kind):
        parts = self[kind]
        found = one_file(parts.family).single_file(parts.modules)
        return {name: weight.contiguous() for name, weight in found.items()}

    def transformer(self, kind):
        start = "model.diffusion_model."
        return {name.removeprefix(start): it for name, it in self.weights(kind).items() if name.startswith(start)}


@pytest.fixture(scope="module")
def wholes(models):
    return Wholes(models)


def written(weights, path):
    save_file(weights, path)
    return path


def same(one, other):
    for name in other.family.components:
        found, wanted = one.modules[name].state_dict(), other.modules[name].state_dict()
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[key], wanted[key]) for key in wanted), name


@pytest.mark.parametrize("kind", CONVERTERS)
def test_names_are_those_that_diffusers_converter_knows_and_lead_back(wholes, kind):
    own = wholes[kind].denoiser.state_dict()
    own = widened(own) if kind.startswith("flux_") else own
    names = KINDS[kind.replace("schnell", "dev")].NAMES
    made = names.original(own)
    converted = CONVERTERS[kind](dict(made))
    assert converted.keys() == own.keys()
    assert all(torch.equal(converted[name], weight) for name, weight in own.items())
    back = names.diffusers(made, own)
    assert back.keys() == own.keys()
    assert all(torch.equal(back[name], weight) for name, weight in own.items())


CALLED = {
    "sd3": ("clip_l", "clip_g", "t5xxl"),
    "flux_dev": ("clip_l", "t5xxl"),
    "flux2": ("qwen3_4b",),
    "zimage": ("qwen3_4b",),
}
WITHIN = {
    "clip_l": "text_model.encoder.layers.0.self_attn.q_proj.weight",
    "clip_g": "text_model.encoder.layers.0.self_attn.q_proj.weight",
    "t5xxl": "encoder.block.0.layer.0.SelfAttention.q.weight",
    "qwen3_4b": "model.layers.0.self_attn.q_proj.weight",
}
"""By which ComfyUI knows the text encoders of a checkpoint (``comfy/supported_models.py``)."""


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_the_model_that_it_was_written_from(models, wholes, tmp_path, kind):
    weights = wholes.weights(kind)
    vae = "first_stage_model" if kind == "sd3" else "vae"
    assert {name.split(".")[0] for name in weights} == {"model", "text_encoders", vae}
    assert f"{vae}.decoder.mid.attn_1.q.weight" in weights
    assert {f"text_encoders.{name}.transformer.{WITHIN[name]}" for name in CALLED[kind]} <= weights.keys()
    path = written(weights, tmp_path / "whole.safetensors")
    assert recognise_file(path).held == wholes[kind].family.components.keys()
    same(opened(path, models[kind]), wholes[kind])


def test_what_a_file_lacks_is_the_folders_and_norms_may_be_called_as_comfyui_writes_them(models, wholes, tmp_path):
    folder, held = models["flux_dev"], wholes.transformer("flux_dev")
    assert "double_blocks.0.img_attn.norm.query_norm.scale" in held
    renamed = {name.replace("_norm.scale", "_norm.weight"): it for name, it in held.items()}
    path = written(renamed, tmp_path / "alone.safetensors")
    assert recognise_file(path).held == {"transformer"}
    same(opened(path, folder), wholes["flux_dev"])
    parts = outline(ModelConfig(base=str(path), config=str(folder)))
    assert parts.family.name == "flux"
    assert all(parts.modules[name].device.type == "meta" for name in parts.family.components)
    same(opened(folder / "transformer/diffusion_pytorch_model.safetensors", folder), wholes["flux_dev"])


def test_of_stable_diffusion_3_the_first_clip_may_be_without_a_projection(models, wholes, tmp_path):
    first, second = (f"text_encoders.clip_{one}.transformer.text_projection.weight" for one in "lg")
    held = wholes.weights("sd3")
    path = written({name: it for name, it in held.items() if name != first}, tmp_path / "it.safetensors")
    found = opened(path, models["sd3"]).modules["text_encoder"].text_projection.weight
    assert torch.equal(found, torch.eye(*found.shape))
    for lost, told in (({}, "it lacks 'text_proj"), ({second: torch.ones(2, 2)}, "'text_projection.weight' is of ano")):
        written({name: it for name, it in held.items() if name != second} | lost, path)
        with pytest.raises(UserError, match=f"of its text_encoder_2 {told}"):
            opened(path, models["sd3"])


def test_of_text_encoders_a_scale_of_another_form_and_a_layer_too_many_are_told(models, wholes, tmp_path):
    """Left out, as what stands outside of the layers is, they would make other pictures of the same words."""
    held, start = wholes.weights("zimage"), "text_encoders.qwen3_4b.transformer."
    path, more = tmp_path / "it.safetensors", {f"{start}lm_head.weight": torch.ones(2, 2)}
    same(opened(written(held | more, path), models["zimage"]), wholes["zimage"])
    for name in ("layers.0.self_attn.q_proj.scale", "layers.99.self_attn.q_proj.weight"):
        written(held | more | {f"{start}model.{name}": torch.ones(2, 2)}, path)
        with pytest.raises(UserError, match=f"of its text_encoder it holds '.*{name}', which has no place"):
            opened(path, models["zimage"])


def test_a_config_folder_says_what_the_family_is(models, wholes, tmp_path):
    """Whether T5 is there, no single file of a transformer knows."""
    path = written(wholes.transformer("sd3"), tmp_path / "it.safetensors")
    assert opened(path, models["sd3_no_t5"]).text_encoders.keys() == {"text_encoder", "text_encoder_2"}


def test_plain_fp8_is_read_and_scaled_fp8_is_not(models, wholes, tmp_path):
    folder, held = models["zimage"], wholes.transformer("zimage")
    path = written({name: it.to(torch.float8_e4m3fn) for name, it in held.items()}, tmp_path / "it.safetensors")
    found = opened(path, folder, dtype="bfloat16").denoiser
    assert all(weight.dtype == torch.bfloat16 for weight in found.parameters())
    torch.testing.assert_close(found.cap_embedder[1].weight.float(), held["cap_embedder.1.weight"], atol=0.02, rtol=0.1)
    written({**held, "layers.0.feed_forward.w1.scale_weight": torch.ones(1)}, path)
    with pytest.raises(UserError, match=r"scales beside them \('layers.0.*scale_weight'\), .* Fetch the file in bf16"):
        opened(path, folder)


def test_what_must_be_named_and_what_does_not_fit_is_told(models, wholes, tmp_path):
    path = written(wholes.transformer("flux_dev"), tmp_path / "dev.safetensors")
    rest = (
        r"of FLUX.1 it holds transformer. The rest \(vae, text_encoder, text_encoder_2, tokenizer, tokenizer_2, sched"
    )
    with pytest.raises(UserError, match=rest + r".*model.config names: .* such as black-forest-labs/FLUX.1-dev"):
        opened(path)
    with pytest.raises(UserError, match="model.config: it is for a single file, and '.*' is none. Leave model.config"):
        opened(models["flux_dev"], models["flux_schnell"])
    (need,) = ModelConfig(base=str(path), config=str(tmp_path / "none")).needs(str)
    assert (need.key, need.fetched) == ("config", False)
    with pytest.raises(UserError, match=r"model.config: .* holds the configs of Z-Image, and .* is FLUX.1"):
        opened(path, models["zimage"])
    with pytest.raises(UserError, match=r"model.config: .*dev.safetensors is a file; name the folder of a model"):
        opened(path, path)
    with pytest.raises(UserError, match=r"do not fit the model configs in .*'guidance_in.in_layer.bias', which has no"):
        opened(path, models["flux_schnell"])
    named = models["flux_dev"] / "transformer/diffusion_pytorch_model.safetensors"
    with pytest.raises(UserError, match=r"'time_text_embed.guidance_embedder.linear_1.bias', which has no place"):
        opened(named, models["flux_schnell"])
    own = wholes["flux_dev"].denoiser.state_dict()
    torn = written({name: it for name, it in own.items() if name != "x_embedder.bias"}, tmp_path / "torn.safetensors")
    with pytest.raises(UserError, match=r"transformer: its files lack x_embedder.bias"):
        opened(torn, models["flux_dev"])
    held = {name: it for name, it in wholes.transformer("flux_dev").items() if not name.startswith("guidance_in")}
    schnell = written(held, tmp_path / "schnell.safetensors")
    with pytest.raises(UserError, match=r"transformer: its files lack .*guidance_embedder"):
        opened(schnell, models["flux_dev"])
    assert recognise_file(schnell).kind == "black-forest-labs/FLUX.1-schnell"


def test_of_a_hub_model_only_what_a_file_lacks_is_fetched(models, wholes, tmp_path, monkeypatch):
    asked = []

    def fetch(name, allow_patterns):
        asked.extend(allow_patterns)
        return str(models["zimage"])

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    path = written(wholes.transformer("zimage"), tmp_path / "it.safetensors")
    same(opened(path, "someone/z-image"), wholes["zimage"])
    assert {"text_encoder/model.safetensors", "vae/diffusion_pytorch_model.safetensors"} <= set(asked)
    assert not any(pattern.startswith("transformer/") for pattern in asked)

    def cut_off(name, allow_patterns):
        if "text_encoder/model.safetensors" in allow_patterns:
            raise OSError
        return fetch(name, allow_patterns)

    monkeypatch.setattr("huggingface_hub.snapshot_download", cut_off)
    with pytest.raises(UserError, match="^model.config: there is no folder 'someone/z-image' here, and the hub cannot"):
        opened(path, "someone/z-image")


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("sd3", ("stable-diffusion-3.5-medium", "https://github.com/Stability-AI/sd3.5")),
        ("sana", ("sana", "https://github.com/NVlabs/Sana")),
    ],
)
def test_a_tuned_model_leaves_as_one_file(models, wholes, tmp_path, kind, said):
    parts = opened(models[kind])
    tuner = DiffusionFineTunerConfig(rank=2, target_modules="all").build(parts, total_rounds=1, guidance=1.0, seed=0)
    for weight in tuner.trainable.live.values():
        weight.add_(0.1)
    tuner.trainable.rest(None)
    path = export(tuner, "checkpoint", tmp_path / "mine.safetensors", {"raftdiff.recipe_digest": "abc"})
    with safe_open(path, "pt") as file:
        told = file.metadata()
    assert told["raftdiff.recipe_digest"] == "abc"
    assert told["modelspec.title"] == "mine"
    assert (told["modelspec.architecture"], told["modelspec.implementation"]) == said
    again = opened(path, models[kind])
    xt, texts = torch.randn(1, *parts.latent_shape(16, 16)), parts.prompts(["a cat"])
    with torch.no_grad():
        mine, theirs, base = (it.predict(xt, torch.tensor(500), texts) for it in (parts, again, wholes[kind]))
    torch.testing.assert_close(theirs, mine, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(mine, base, atol=1e-2)


def test_a_family_without_single_files_is_told_so(tmp_path):
    other = SimpleNamespace(told="Another", name="another")
    with pytest.raises(UserError, match="Another has no single-file form that raftdiff writes; use --format merged"):
        one_file(other)
    with pytest.raises(UserError, match="it.pth: this is Another; raftdiff reads it from a folder"):
        one_file(other, tmp_path / "it.pth")
