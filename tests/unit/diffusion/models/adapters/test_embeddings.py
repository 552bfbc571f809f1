"""Textual inversions: words of somebody's own. Pictures are those of plain diffusers."""

import pickle

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from raftdiff.diffusion.export import export
from raftdiff.diffusion.families.shared.reading import spelled, tokens_in
from raftdiff.diffusion.learning.finetuner import DiffusionFineTunerConfig
from raftdiff.diffusion.models import checkpoints, tiny
from raftdiff.diffusion.models.adapters.embeddings import EmbeddingConfig, read, teach
from raftdiff.diffusion.models.loading import ModelConfig, load
from raftdiff.diffusion.models.quiet import quietly
from raftdiff.diffusion.sampler import DiffusionSamplerConfig, make_scheduler
from raftdiff.errors import UserError
from raftdiff.recipes.config import check
from raftdiff.types import Prompt

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

TOKEN = "<a-toy>"
PROMPTS = [Prompt("a", f"{TOKEN} at sea", f"{TOKEN} at sea", f"{TOKEN} at sea", negative=f"no {TOKEN}")]
DRAWING = DiffusionSamplerConfig(steps=2, guidance=3.0, batch_size=1, scheduler="ddim")


def vectors(rows, width, seed=0):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) / 4


def opened(folder, path, token=None, **changes):
    given = [{"path": str(path), "token": token}]
    return load(check(ModelConfig, {"base": str(folder), "embeddings": given, **changes}, "it"))


def draw(parts, prompts=PROMPTS):
    (sample,) = DRAWING.build(parts).sample(prompts, per_prompt=1, seed=0, round=0, done=set())
    return sample


def drawn_by_diffusers(pipeline, sample, parts):
    pipeline.scheduler = make_scheduler(DRAWING, parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        sample.prompt.sampling,
        negative_prompt=sample.prompt.negative,
        num_inference_steps=2,
        guidance_scale=3.0,
        height=sample.media.height,
        width=sample.media.width,
        generator=torch.Generator().manual_seed(sample.seed),
        output_type="latent",
    ).images[0]


def plain(folder):
    with quietly():
        return diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True)


@pytest.fixture
def toy(tmp_path):
    """Of SD 1.x, three vectors, in diffusers' form."""
    path = tmp_path / "toy.safetensors"
    save_file({TOKEN: vectors(3, 32)}, path)
    return path


@pytest.fixture
def pair(tmp_path):
    """Of SDXL, two vectors for each text encoder."""
    path = tmp_path / "pair.safetensors"
    save_file({"clip_l": vectors(2, 32), "clip_g": vectors(2, 48)}, path)
    return path


def test_a_word_draws_what_it_draws_in_plain_diffusers(models, toy):
    parts = opened(models["sd15"], toy)
    sample, pipeline = draw(parts), plain(models["sd15"])
    pipeline.load_textual_inversion(toy)
    theirs = drawn_by_diffusers(pipeline, sample, parts)
    torch.testing.assert_close(sample.aux["latent"], theirs, atol=1e-4, rtol=1e-4)
    bare = [Prompt("a", "at sea", "at sea", "at sea", negative="no")]
    assert not torch.allclose(draw(parts, bare).aux["latent"], theirs, atol=1e-2)


def test_a_word_of_sdxl_draws_what_it_draws_in_plain_diffusers(models, pair):
    parts = opened(models["sdxl"], pair, TOKEN)
    sample, pipeline = draw(parts), plain(models["sdxl"])
    for key, number in (("clip_l", ""), ("clip_g", "_2")):
        pipeline.load_textual_inversion(
            {TOKEN: load_file(pair)[key]},
            text_encoder=getattr(pipeline, f"text_encoder{number}"),
            tokenizer=getattr(pipeline, f"tokenizer{number}"),
        )
    theirs = drawn_by_diffusers(pipeline, sample, parts)
    torch.testing.assert_close(sample.aux["latent"], theirs, atol=1e-4, rtol=1e-4)


def test_an_export_keeps_the_words_and_one_file_of_it_has_none(models, tmp_path, pair):
    parts = opened(models["sdxl"], pair, TOKEN)
    tuner = DiffusionFineTunerConfig().build(parts, total_rounds=1, guidance=3.0, seed=0)
    sample, merged = draw(parts), export(tuner, "merged", tmp_path / "merged")
    theirs = drawn_by_diffusers(plain(merged), sample, parts)
    torch.testing.assert_close(sample.aux["latent"], theirs, atol=1e-4, rtol=1e-4)
    whole = load(ModelConfig(base=str(merged)))
    torch.testing.assert_close(draw(whole).aux["latent"], theirs, atol=1e-4, rtol=1e-4)
    written = tiny.write_single_file(tmp_path / "bare.safetensors", "sdxl")
    file = export(tuner, "checkpoint", tmp_path / "checkpoint.safetensors")
    shapes = [{name: it.shape for name, it in load_file(path).items()} for path in (written, file)]
    assert shapes[0] == shapes[1]
    assert parts.text_encoders["text_encoder"].get_input_embeddings().num_embeddings > 514, "it is a copy that is cut"


def saved(path, held):
    torch.save(held, path) if path.suffix != ".safetensors" else save_file(held, path)
    return path


A1111 = {"string_to_token": {"*": 265}, "string_to_param": {"*": vectors(2, 32)}, "name": "theirs", "step": 500}


@pytest.mark.parametrize(
    ("name", "held", "token", "rows"),
    [
        ("it.pt", A1111, "theirs", 2),
        ("it.pt", {**A1111, "name": None}, "it", 2),
        ("it.pt", vectors(2, 32), "it", 2),
        ("it.bin", {"<theirs>": vectors(1, 32)[0]}, "<theirs>", 1),
        ("it.safetensors", {"emb_params": vectors(2, 32)}, "it", 2),
    ],
    ids=["a1111", "nameless", "tensor", "diffusers", "kohya"],
)
def test_forms(name, held, token, rows, tmp_path):
    config = EmbeddingConfig(path=str(saved(tmp_path / name, held)))
    found, by_encoder = read(config, "it", ["text_encoder"])
    assert (found, {key: it.shape for key, it in by_encoder.items()}) == (token, {"text_encoder": (rows, 32)})


def test_a_word_of_several_vectors_is_several_tokens(toy):
    modules = tiny.components("sd15")
    teach(tiny.of("sd15"), modules, [EmbeddingConfig(path=str(toy), token="MyToy")])
    tokenizer = modules["tokenizer"]
    assert spelled(tokenizer, "a mytoy, MYTOY_2") == "a MyToy MyToy_1 MyToy_2, MYTOY_2"
    assert tokens_in(tokenizer, "a mytoy") == tokens_in(tokenizer, "a") + 3
    assert tokenizer("mytoy").input_ids[1:2] == [514]
    table = modules["text_encoder"].get_input_embeddings().weight
    assert torch.equal(table[514:], vectors(3, 32))


def test_the_end_of_a_caption_is_found_where_a_config_is_old(toy):
    """Published configs say that the end is token 2, by which the highest token is taken for it: the word's."""
    modules = tiny.components("sd15")
    modules["text_encoder"].eos_token_id = modules["text_encoder"].config.eos_token_id = 2
    teach(tiny.of("sd15"), modules, [EmbeddingConfig(path=str(toy))])
    told = modules["tokenizer"](f"{TOKEN} at", return_tensors="pt").input_ids
    found = modules["text_encoder"](told)
    assert torch.equal(found.pooler_output[0], found.last_hidden_state[0, -1])


@pytest.mark.parametrize(
    ("held", "token", "sentence"),
    [
        ({TOKEN: vectors(1, 24)}, None, "its vectors have 24 numbers, and those of this model's text_encoder 32"),
        ({TOKEN: vectors(1, 32) / 0}, None, "numbers of it are NaN or infinite"),
        (
            {"clip_l": vectors(1, 32), "clip_g": vectors(1, 48)},
            "<x>",
            "holds 2 tables of vectors, and this model has 1",
        ),
        ({TOKEN: vectors(1, 32), "clip_l": vectors(1, 32)}, None, "holds more than a textual inversion"),
        ({TOKEN: vectors(1, 32)[None]}, None, r"holds no vectors, but numbers of the shape \(1, 1, 32\)"),
        ({TOKEN: vectors(1, 32)}, "a toy", "'a toy' is no token; give it a name without spaces"),
        ({TOKEN: vectors(1, 32)}, "A", "the tokenizer knows 'A' already, and captions with that word"),
    ],
)
def test_what_is_no_word_of_this_model(held, token, sentence, tmp_path):
    path = saved(tmp_path / "it.safetensors", held)
    with pytest.raises(UserError, match=rf"model.embeddings.0: .*it.safetensors.*{sentence}"):
        teach(tiny.of("sd15"), tiny.components("sd15"), [EmbeddingConfig(path=str(path), token=token)])


def test_a_word_is_taught_once(toy):
    again = EmbeddingConfig(path=str(toy))
    for token in (TOKEN, TOKEN.upper(), f"{TOKEN}_2", f"{TOKEN}_7"):
        with pytest.raises(UserError, match="model.embeddings.1: .* knows '.*' already"):
            teach(tiny.of("sd15"), tiny.components("sd15"), [again, EmbeddingConfig(path=str(toy), token=token)])


def test_other_families_refuse_words(toy, pair, tmp_path):
    with pytest.raises(
        UserError, match="are for models that read captions by CLIP alone.* 3 and 3.5 reads them by more"
    ):
        teach(tiny.of("sd3"), tiny.components("sd3"), [EmbeddingConfig(path=str(pair))])
    with pytest.raises(UserError, match="holds 1 table of vectors, and this model has 2 text encoders"):
        teach(tiny.of("sdxl"), tiny.components("sdxl"), [EmbeddingConfig(path=str(toy))])
    uneven = saved(tmp_path / "it.safetensors", {"clip_l": vectors(1, 32), "clip_g": vectors(2, 48)})
    with pytest.raises(UserError, match="it has 1 and 2 vectors for the two text encoders"):
        teach(tiny.of("sdxl"), tiny.components("sdxl"), [EmbeddingConfig(path=str(uneven))])


class Runs:
    def __reduce__(self):
        return print, ("code",)


def test_where_words_may_lie(toy, tmp_path, monkeypatch, capsys):
    def at(path):
        return read(EmbeddingConfig(path=str(path)), f"model.embeddings.0: {path}", ["text_encoder"])[0]

    (tmp_path / "code.pt").write_bytes(pickle.dumps(Runs()))
    with pytest.raises(UserError, match="code.pt cannot be read as plain vectors. It may hold Python code, which"):
        at(tmp_path / "code.pt")
    assert capsys.readouterr().out == ""
    (tmp_path / "it.png").write_bytes(b"")
    with pytest.raises(UserError, match="a textual inversion is read from .safetensors, .pt or .bin"):
        at(tmp_path / "it.png")
    with pytest.raises(UserError, match="nothing.bin holds no textual inversion"):
        at(saved(tmp_path / "nothing.bin", {"step": 1}))
    assert at(tmp_path) == TOKEN, "the one file of the folder"
    monkeypatch.setattr(checkpoints, "_snapshot", lambda *_: tmp_path / "hub")
    (tmp_path / "hub").mkdir()
    with pytest.raises(UserError, match="model.embeddings.0: the hub's 'someone/toy' holds none of learned_embeds"):
        at("someone/toy")
    saved(tmp_path / "hub" / "learned_embeds.bin", {"<hub>": vectors(1, 32)})
    assert at("someone/toy") == "<hub>"
