"""What a model starts from: LoRAs of others', and words of somebody's own. Pictures are those of plain diffusers."""

import json
import warnings

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from raftdiff.diffusion.export import export
from raftdiff.diffusion.learning.finetuner import DiffusionFineTunerConfig
from raftdiff.diffusion.models import checkpoints, tiny
from raftdiff.diffusion.models.adapters.loras import LoRAConfig, merge, names, published
from raftdiff.diffusion.models.loading import ModelConfig, load
from raftdiff.diffusion.models.quiet import quietly
from raftdiff.diffusion.sampler import DiffusionSamplerConfig, make_scheduler
from raftdiff.errors import UserError
from raftdiff.recipes.config import check
from raftdiff.recipes.needs import needs
from raftdiff.types import Item, Prompt, Selection, silent

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PROMPTS = [Prompt("a", "a cat", "a cat", "a cat", negative="blurry")]
CHANGED = (
    "attn1.to_q",
    "attn2.to_k",
    "attn.to_out.0",
    "attn.add_q_proj",
    "ff.net.2",
    "conv1",
    "q_proj",
    "out_proj",
    "fc1",
)
"""Without ``out_proj`` diffusers would not know CLIP's layers in kohya's files."""
WEIGHTS = {"one": 0.7, "two": -0.3}


def opened(folder, loras=None, **changes):
    given = [{"path": str(path), "weight": weight} for path, weight in (loras or {}).items()]
    return load(check(ModelConfig, {"base": str(folder), "loras": given, **changes}, "it"))


def draw(parts, prompts=PROMPTS):
    config = drawing(parts)
    return list(config.build(parts).sample(prompts, per_prompt=1, seed=0, round=0, done=set()))


def drawing(parts):
    flow = parts.process.predicts == "flow"
    return DiffusionSamplerConfig(steps=2, guidance=3.0, batch_size=1, scheduler="euler" if flow else "ddim")


def latents(samples):
    return torch.stack([sample.aux["latent"] for sample in samples])


def plain(folder, parts):
    with quietly():
        pipeline = diffusers.DiffusionPipeline.from_pretrained(
            folder, local_files_only=True, **parts.family.pipeline_arguments()
        )
    pipeline.scheduler = make_scheduler(drawing(parts), parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def drawn_by_diffusers(pipeline, samples):
    found = [
        pipeline(
            sample.prompt.sampling,
            negative_prompt=sample.prompt.negative or None,
            num_inference_steps=2,
            guidance_scale=3.0,
            height=sample.media.height,
            width=sample.media.width,
            generator=torch.Generator().manual_seed(sample.seed),
            output_type="latent",
        ).images[0]
        for sample in samples
    ]
    return torch.stack(found)


def wearing(folder, parts, loras):
    """A pipeline of plain diffusers with LoRAs at their weights."""
    pipeline = plain(folder, parts)
    with quietly(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for place, path in enumerate(loras):
            where = {"weight_name": path.name} if path.is_file() else {}
            pipeline.load_lora_weights(path.parent if path.is_file() else path, adapter_name=f"it{place}", **where)
        pipeline.set_adapters([f"it{place}" for place in range(len(loras))], list(loras.values()))
    return pipeline


def changes(kind, form, seed, alpha=None, rank=2):
    """A random LoRA of a tiny model, of denoiser and text encoders, under kohya's or diffusers' names."""
    generator, family, modules = torch.Generator().manual_seed(seed), tiny.of(kind), tiny.components(kind)
    found = {}
    for layer in dict.fromkeys(names(family, modules).values()):
        if not layer.name.endswith(CHANGED) or layer.component == "text_encoder_3":
            continue
        rows, columns, *size = layer.module.weight.shape
        down = torch.randn(rank, columns, *size, generator=generator) / 4
        up = torch.randn(rows, rank, *(1 for _ in size), generator=generator) / 4
        called = published(layer.component, layer.name)
        if form == "kohya":
            name = family.kohya(layer.component, called, modules)
            found |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
            found |= {f"{name}.alpha": torch.tensor(float(alpha))} if alpha else {}
        else:
            name = f"{layer.component}.{called}"
            found |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    return found


def written(path, weights, **metadata):
    save_file(weights, path, metadata=metadata or None)
    return path


@pytest.fixture
def lora(tmp_path):
    """For SD 1.x, of kohya's kind."""
    return written(tmp_path / "lora.safetensors", changes("sd15", "kohya", 1, alpha=1.0))


@pytest.mark.parametrize(("kind", "form"), [("sd15", "kohya"), ("sdxl", "kohya"), ("sd3", "diffusers")])
def test_two_loras_draw_what_they_draw_in_plain_diffusers(kind, form, models, tmp_path):
    loras = {
        written(tmp_path / f"{name}.safetensors", changes(kind, form, seed, alpha=1.0 if form == "kohya" else None)): it
        for seed, (name, it) in enumerate(WEIGHTS.items())
    }
    parts, bare = opened(models[kind], loras), opened(models[kind])
    ours = draw(parts)
    assert not torch.allclose(latents(ours), latents(draw(bare)), atol=1e-2)
    theirs = drawn_by_diffusers(wearing(models[kind], bare, loras), ours)
    torch.testing.assert_close(latents(ours), theirs, atol=1e-4, rtol=1e-4)


def test_a_run_from_loras_leaves_as_the_new_training_alone(models, tmp_path, lora):
    parts = opened(models["sd15"], {lora: 0.7})
    before = draw(parts)
    config = DiffusionFineTunerConfig(learning_rate=3e-3, steps=3, train_text_encoder=True)
    tuner = config.build(parts, total_rounds=1, guidance=3.0, seed=0)
    with tuner.base_weights():
        assert torch.equal(latents(draw(parts)), latents(before))
    selection = Selection("weighted", tuple(Item((sample.key,)) for sample in before))
    tuner.fit(selection, {sample.key: sample for sample in before}, seed=0, report=silent)
    after = draw(parts)
    assert not torch.allclose(latents(before), latents(after), atol=1e-2)
    new, merged = (export(tuner, name, tmp_path / name) for name in ("diffusers", "merged"))
    theirs = drawn_by_diffusers(wearing(models["sd15"], parts, {lora: 0.7, new: 1.0}), after)
    torch.testing.assert_close(theirs, latents(after), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(latents(draw(opened(merged))), latents(after), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        latents(draw(opened(models["sd15"], {lora: 0.7, new: 1.0}))), latents(after), atol=1e-4, rtol=1e-4
    )


def test_every_export_of_ours_is_a_start(models, tmp_path):
    parts = opened(models["sdxl"])
    tuner = DiffusionFineTunerConfig(rank=2, alpha=3.0, target_modules="all", train_text_encoder=True).build(
        parts, total_rounds=1, guidance=3.0, seed=0
    )
    generator, policy = torch.Generator().manual_seed(0), tuner.trainable.parameters
    tuner.trainable.rest({name: torch.randn(weight.shape, generator=generator) / 8 for name, weight in policy.items()})
    folder, file = (export(tuner, name, tmp_path / name) for name in ("diffusers", "kohya"))
    wanted = latents(draw(parts))
    for path in (folder, file):
        torch.testing.assert_close(latents(draw(opened(models["sdxl"], {path: 1.0}))), wanted, atol=1e-4, rtol=1e-4)


def peft(module, targets, settings):
    """A copy of a network with a random LoRA of PEFT's."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, init_lora_weights=False, target_modules=targets, **settings)
    return get_peft_model(module, config)


TARGETS = {"unet": ["attn2.to_q", "to_out.0"], "text_encoder": ["q_proj"]}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::RuntimeWarning")
@pytest.mark.parametrize(
    "settings",
    [{"lora_alpha": 2}, {"lora_alpha": 2, "use_rslora": True, "alpha_pattern": {"attn2.to_q": 7}}],
    ids=["alpha", "patterns"],
)
def test_peft(settings, tmp_path):
    """A folder for each network; one can be named alone."""
    parts = tiny.components("sd15")
    worn = {name: peft(parts[name], targets, settings) for name, targets in TARGETS.items()}
    for name, module in worn.items():
        module.save_pretrained(tmp_path / name)
    wanted = {name: module.merge_and_unload().state_dict() for name, module in worn.items()}
    for path, changed in ((tmp_path, ("unet", "text_encoder")), (tmp_path / "text_encoder", ("text_encoder",))):
        found = tiny.components("sd15")
        merge(tiny.of("sd15"), found, [LoRAConfig(path=str(path))])
        for name in changed:
            for key, weight in found[name].state_dict().items():
                torch.testing.assert_close(weight, wanted[name][key], atol=1e-5, rtol=1e-5)


def test_diffusers_settings_in_a_files_metadata(tmp_path):
    bare, found = tiny.components("sd15")["unet"].state_dict(), tiny.components("sd15")
    settings = {"unet.r": 2, "unet.lora_alpha": 6, "unet.use_rslora": False, "unet.alpha_pattern": {"conv1": 4}}
    weights = {key: it for key, it in changes("sd15", "diffusers", 0).items() if key.startswith("unet.")}
    file = written(tmp_path / "it.safetensors", weights, lora_adapter_metadata=json.dumps(settings))
    merge(tiny.of("sd15"), found, [LoRAConfig(path=str(file))])
    for layer, scale in (
        ("mid_block.resnets.0.conv1", 2.0),
        ("mid_block.attentions.0.transformer_blocks.0.ff.net.2", 3),
    ):
        down, up = (weights[f"unet.{layer}.lora_{half}.weight"].flatten(1) for half in "AB")
        change = (found["unet"].state_dict()[f"{layer}.weight"] - bare[f"{layer}.weight"]).flatten(1)
        torch.testing.assert_close(change, scale * up @ down, atol=1e-5, rtol=1e-5)


def test_diffusers_earlier_names(tmp_path):
    """As its scripts wrote them in 2023, with and without the network's name."""
    weights = changes("sd15", "diffusers", 0)
    kept = {key: it for key, it in weights.items() if "attn" in key and "fc1" not in key}
    old = {
        key.replace(".to_q.lora_A", ".processor.to_q_lora.down")
        .replace(".to_q.lora_B", ".processor.to_q_lora.up")
        .replace(".to_k.lora_A", ".processor.to_k_lora.down")
        .replace(".to_k.lora_B", ".processor.to_k_lora.up")
        .replace("q_proj.lora_A", "to_q_lora.down")
        .replace("q_proj.lora_B", "to_q_lora.up"): it
        for key, it in kept.items()
    }
    older = {key.removeprefix("unet."): it for key, it in old.items()}

    def worn(name, weights):
        modules = tiny.components("sd15")
        merge(tiny.of("sd15"), modules, [LoRAConfig(path=str(written(tmp_path / name, weights)))])
        return modules

    wanted = worn("new.safetensors", kept)
    for name, form in (("old", old), ("older", older)):
        found = worn(f"{name}.safetensors", form)
        for part in ("unet", "text_encoder"):
            for key, weight in found[part].state_dict().items():
                assert torch.equal(weight, wanted[part].state_dict()[key])


def in_one(name, rows, columns, generator):
    """A LoRA of kohya's with an alpha of half its rank."""
    down, up = torch.randn(4, columns, generator=generator), torch.randn(rows, 4, generator=generator)
    return {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(2.0)}


def test_kohyas_layers_of_sd3_are_taken_apart_as_diffusers_takes_apart_its_checkpoints(tmp_path):
    from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers as by_diffusers

    generator, width, lora, whole = torch.Generator().manual_seed(0), 32, {}, {}
    inner = {
        "attn.qkv": (3, 1),
        "attn.proj": (1, 1),
        "mlp.fc1": (4, 1),
        "mlp.fc2": (1, 4),
        "adaLN_modulation.1": (6, 1),
    }
    streams = {(0, "x_block"): {**inner, "attn2.qkv": (3, 1), "attn2.proj": (1, 1), "adaLN_modulation.1": (9, 1)}}
    streams |= {(1, "x_block"): inner, (0, "context_block"): inner}
    streams[1, "context_block"] = {"attn.qkv": (3, 1), "adaLN_modulation.1": (2, 1)}
    for (block, stream), layers in streams.items():
        for layer, (rows, columns) in layers.items():
            name = f"joint_blocks.{block}.{stream}.{layer}"
            made = in_one(f"lora_unet_{name.replace('.', '_')}", rows * width, columns * width, generator)
            down, up, _ = made.values()
            lora, whole[f"{name}.weight"] = lora | made, 0.5 * up @ down
            whole[f"{name}.bias"] = torch.zeros(rows * width)
    two = ("t_embedder.mlp.0", "t_embedder.mlp.2", "y_embedder.mlp.0", "y_embedder.mlp.2", "final_layer.linear")
    two += ("x_embedder.proj", "context_embedder", "final_layer.adaLN_modulation.1")
    whole |= {f"{name}.{kind}": torch.zeros(width) for name in two for kind in ("weight", "bias")}
    wanted = by_diffusers({**whole, "pos_embed": torch.zeros(1)})
    modules, bare = tiny.components("sd3"), tiny.components("sd3")["transformer"].state_dict()
    merge(tiny.of("sd3"), modules, [LoRAConfig(path=str(written(tmp_path / "it.safetensors", lora)))])
    for name, weight in modules["transformer"].state_dict().items():
        change = wanted[name] if name.startswith("transformer_blocks") and weight.ndim == 2 else torch.zeros(())
        torch.testing.assert_close(weight - bare[name], change.expand(weight.shape), atol=1e-5, rtol=1e-5)


def test_names_of_another_code_are_turned_by_diffusers(tmp_path):
    """FLUX's queries, keys and values are one layer in kohya's files; what the family's loader there makes of them is
    what is merged, and what it would pass over is refused."""
    generator = torch.Generator().manual_seed(0)
    lora = in_one("lora_unet_double_blocks_0_img_attn_qkv", 96, 32, generator)
    lora |= in_one("lora_te1_text_model_encoder_layers_0_self_attn_q_proj", 32, 32, generator)
    path, modules, bare = tmp_path / "it.safetensors", tiny.components("flux_dev"), tiny.components("flux_dev")
    merge(tiny.of("flux_dev"), modules, [LoRAConfig(path=str(written(path, lora)))])
    down, up = (lora[f"lora_unet_double_blocks_0_img_attn_qkv.lora_{half}.weight"] for half in ("down", "up"))
    for part, letter in enumerate("qkv"):
        name = f"transformer_blocks.0.attn.to_{letter}.weight"
        change = modules["transformer"].state_dict()[name] - bare["transformer"].state_dict()[name]
        torch.testing.assert_close(change, 0.5 * up[32 * part :][:32] @ down, atol=1e-5, rtol=1e-5)
    queries = [one["text_encoder"].state_dict()["encoder.layers.0.self_attn.q_proj.weight"] for one in (modules, bare)]
    assert not torch.equal(*queries)
    written(path, lora | in_one("lora_unet_double_blocks_7_img_mod_lin", 192, 32, generator))
    with pytest.raises(
        UserError, match="2 layers of the 3 .*'lora_unet_double_blocks_0_img_attn_qkv', this model does"
    ):
        merge(tiny.of("flux_dev"), modules, [LoRAConfig(path=str(path))])


def test_half_precision_rounds_once(models, lora):
    loras = {lora: 0.7}
    whole, half = (
        opened(models["sd15"], loras, dtype=dtype).denoiser.state_dict() for dtype in ("float32", "bfloat16")
    )
    torch.testing.assert_close(half["conv_in.weight"].float(), whole["conv_in.weight"], atol=1e-2, rtol=1e-2)
    changed = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    torch.testing.assert_close(half[changed].float(), whole[changed], atol=1e-2, rtol=1e-2)


FIRST = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
STRANGER = {
    "lora_unet_nothing.lora_down.weight": torch.ones(2, 4),
    "lora_unet_nothing.lora_up.weight": torch.ones(4, 2),
}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (STRANGER, r"1 layer of the \d+ that it changes, such as 'lora_unet_nothing', this model does not have"),
        (
            {f"{FIRST}.lora_down.weight": torch.ones(2, 9)},
            "its change of '.*attn1_to_q' is of 32 x 9 numbers, and that layer has 32 x 32",
        ),
        ({f"{FIRST}.lora_up.weight": torch.ones(64, 2)}, "it is a LoRA of another base"),
        ({f"{FIRST}.lora_up.weight": torch.ones(32, 3)}, "the halves of '.*' are of rank 3 and 2; the file is damaged"),
        ({f"{FIRST}.alpha": torch.tensor(0.0)}, r"the scale of '.*' \(alpha / rank\) is 0, which is none"),
        ({f"{FIRST}.lora_down.weight": torch.full((2, 32), torch.nan)}, "numbers of '.*' are NaN or infinite"),
        ({f"{FIRST}_x.lora_up.weight": torch.ones(32, 2)}, "of '.*_x' it holds one half alone; the file is not whole"),
        ({"lora_unet_x.alpha": torch.tensor(1.0)}, "it holds an alpha of 'lora_unet_x' and no LoRA of it"),
        ({f"{FIRST}.alpha": torch.ones(2)}, "an alpha of it is no number"),
        ({f"{FIRST}.bias": torch.ones(2)}, "it holds '.*bias', which is no part of a LoRA"),
        ({f"{FIRST}.hada_w1_a": torch.ones(2)}, "by '.*hada_w1_a' it is a LoHa, a form that raftdiff does not read"),
        ({f"{FIRST}.lokr_w1": torch.ones(2)}, "it is a LoKr"),
        ({f"{FIRST}.dora_scale": torch.ones(2)}, "it is a DoRA"),
        ({f"{FIRST}.lora_mid.weight": torch.ones(2)}, "it is a LoCon in Tucker's form"),
        ({f"{FIRST}.diff": torch.ones(2)}, "it is a change without low rank"),
    ],
)
def test_what_is_no_lora_of_this_model(models, lora, change, sentence):
    written(lora, load_file(lora) | change)
    with pytest.raises(UserError, match=rf"model.loras.0: .*lora.safetensors.*{sentence}"):
        merge(tiny.of("sd15"), tiny.components("sd15"), [LoRAConfig(path=str(lora))])


def test_a_lora_of_another_base_or_family(tmp_path, lora):
    def worn(weights, **metadata):
        path = written(tmp_path / "other.safetensors", weights, **metadata)
        merge(tiny.of("sd15"), tiny.components("sd15"), [LoRAConfig(path=str(one)) for one in (lora, path)])

    told = "The file says that it is for sdxl_base_v1-0."
    with pytest.raises(UserError, match=f"model.loras.1: .*, this model does not have.* It is of another base. {told}"):
        worn(changes("sdxl", "kohya", 0), ss_base_model_version="sdxl_base_v1-0")
    flow = {key: it for key, it in changes("sd3", "diffusers", 0).items() if key.startswith("transformer.")}
    with pytest.raises(UserError, match="none of the layers .* is one of Stable Diffusion 1.x .* of another family"):
        worn(flow)
    with pytest.raises(UserError, match="holds no LoRA, but 'model.diffusion_model.out.0.weight'"):
        worn({"model.diffusion_model.out.0.weight": torch.ones(2)})


def test_where_a_lora_may_lie(tmp_path, lora, monkeypatch):
    def worn(path):
        modules = tiny.components("sd15")
        merge(tiny.of("sd15"), modules, [LoRAConfig(path=str(path))])
        return modules["unet"].state_dict()

    (tmp_path / "my.pt").write_bytes(b"")
    with pytest.raises(UserError, match=r"model.loras.0: .*my.pt may hold Python code.* \.safetensors alone"):
        worn(tmp_path / "my.pt")
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(UserError, match=r"folder holds no LoRA \(.safetensors\)"):
        worn(folder)
    (folder / "pytorch_lora_weights.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"pytorch_lora_weights.bin may hold Python code"):
        worn(folder)
    wanted = worn(lora)
    for name in ("one", "two"):
        (folder / f"{name}.safetensors").write_bytes(lora.read_bytes())
    with pytest.raises(UserError, match=r"folder holds 2 files \(one.safetensors, .*; name the one that is meant"):
        worn(folder)
    (folder / "one.safetensors").rename(folder / "pytorch_lora_weights.safetensors")
    asked = []
    monkeypatch.setattr(checkpoints, "_snapshot", lambda name, files, stems, key: asked.append((name, key)) or folder)
    for path in (folder, "someone/their-lora"):
        found = worn(path)
        assert all(torch.equal(found[name], weight) for name, weight in wanted.items())
    assert asked == [("someone/their-lora", "model.loras.0")]
    (folder / "pytorch_lora_weights.safetensors").unlink()
    with pytest.raises(UserError, match=r"model.loras.0: the hub's 'someone/their-lora' holds none of .*hf download"):
        worn("someone/their-lora")
    (folder / "adapter_config.json").write_text('{"peft_type": "LOHA"}')
    with pytest.raises(UserError, match="holds an adapter of the kind LOHA"):
        worn(folder)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(UserError, match=r"holds no adapter_model.safetensors"):
        worn(folder)
    (folder / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"adapter_model.bin may hold Python code"):
        worn(folder)


def test_a_run_is_no_lora(tmp_path):
    (tmp_path / "recipe.yaml").write_text("")
    (tmp_path / "rounds").mkdir()
    with pytest.raises(UserError, match=r"is a run. Write its LoRA with: raftdiff export .* --format diffusers; name"):
        merge(tiny.of("sd15"), tiny.components("sd15"), [LoRAConfig(path=str(tmp_path))])


@pytest.mark.parametrize(
    ("weight", "sentence"), [(0, "with a weight of 0 it changes nothing"), (float("nan"), "finite")]
)
def test_weights_that_change_nothing(weight, sentence, lora):
    with pytest.raises(UserError, match=rf"loras.0.weight: .*{sentence}"):
        check(ModelConfig, {"base": "x", "loras": [{"path": str(lora), "weight": weight}]}, "it")


@pytest.mark.parametrize(
    ("factor", "weight", "sentence"), [(0, 1, "changes nothing: one half"), (1, 1e38, "become infinite; lower them")]
)
def test_files_that_change_nothing_or_too_much(factor, weight, sentence, lora):
    written(lora, {name: it * (factor if "lora_up" in name else 100) for name, it in load_file(lora).items()})
    with pytest.raises(UserError, match=rf"model.loras.*{sentence}"):
        merge(tiny.of("sd15"), tiny.components("sd15"), [LoRAConfig(path=str(lora), weight=weight)])


def test_what_is_missing_is_told_before_anything_is_loaded(lora):
    config = {"base": str(lora), "loras": [{"path": str(lora)}, {"path": "./no.safetensors"}]}
    lacking = needs(check(ModelConfig, {**config, "embeddings": [{"path": "./no.pt"}]}, "it"))
    assert [need.key for need in lacking] == ["loras.1.path", "embeddings.0.path"]
    assert "there is no folder or file './no.safetensors' here." in lacking[0].sentence
