import gc
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from raftdiff import embedded
from raftdiff.errors import UserError
from raftdiff.rewards import clip_weights
from raftdiff.rewards import tower as module
from raftdiff.rewards.aesthetic import AestheticReward, Head
from raftdiff.rewards.clip import ClipConfig
from raftdiff.rewards.clip_weights import identify
from raftdiff.rewards.tower import open_tower
from raftdiff.testing.examples import reward_samples


def pictures(count: int, side: int = 48) -> list[Image.Image]:
    noise = [np.random.default_rng(index).integers(0, 256, (side, side, 3), dtype=np.uint8) for index in range(count)]
    return [Image.fromarray(pixels) for pixels in noise]


def count_rows(tower: module.Tower) -> list[int]:
    """Rows of each forward of the image tower from now on."""
    rows: list[int] = []
    tower._model.visual.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))  # type: ignore[union-attr]
    return rows


@pytest.fixture
def fresh(tiny_clip: Path, tmp_path: Path) -> Path:
    """A folder of its own, so that no other test shares the tower."""
    return Path(shutil.copytree(tiny_clip, tmp_path / "clip"))


def test_features_are_open_clips_own(tiny_clip: Path) -> None:
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{tiny_clip}")
    model.eval()
    images, captions = pictures(3), ["a cat", "two dogs"]
    with torch.no_grad():
        expected = model.encode_image(torch.stack([preprocess(image) for image in images]), normalize=True)
        texts = model.encode_text(open_clip.get_tokenizer(f"local-dir:{tiny_clip}")(captions), normalize=True)
    tower = open_tower(str(tiny_clip))
    torch.testing.assert_close(tower.image_features(images), expected)
    torch.testing.assert_close(tower.text_features(captions), texts)
    assert tower.width == 24


def test_a_feature_does_not_depend_on_its_companions_to_the_bit(fresh: Path, tmp_path: Path) -> None:
    images = pictures(11)
    together = open_tower(str(fresh), batch_size=4).image_features(images)
    gc.collect()
    alone = open_tower(str(shutil.copytree(fresh, tmp_path / "again")), batch_size=4)
    reverse = torch.cat([alone.image_features([image]) for image in reversed(images)]).flip(0)
    assert torch.equal(together, reverse)


def give_tokenizer(fresh: Path) -> None:
    """A tokenizer of its own, of six words, and a text tower that knows as many."""
    words = {"<start>": 0, "a": 1, "cat": 2, "dog": 3, "<unknown>": 4, "<end>": 5}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unknown>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 0), ("<end>", 5)]
    )
    PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<end>").save_pretrained(fresh)
    config = json.loads((fresh / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"] |= {"hf_tokenizer_name": "its own", "vocab_size": len(words)}
    (fresh / "open_clip_config.json").write_text(json.dumps(config))
    rewrite(fresh, **{"token_embedding.weight": lambda table: table[: len(words)].clone()})


def rewrite(fresh: Path, **changes: Callable[[torch.Tensor], torch.Tensor]) -> None:
    file = fresh / "open_clip_model.safetensors"
    weights = load_file(file)
    save_file({name: changes.get(name, torch.Tensor.clone)(it) for name, it in weights.items()}, file)


def test_a_folder_may_bring_its_own_tokenizer(fresh: Path) -> None:
    give_tokenizer(fresh)
    tower = open_tower(str(fresh))
    cat, dog, bird, fish = tower.text_features(["a cat", "a dog", "a bird", "a fish"])
    assert not torch.allclose(cat, dog)
    assert torch.equal(bird, fish), "both are unknown to this vocabulary"


def test_a_folder_is_never_read_with_another_models_tokenizer(fresh: Path) -> None:
    give_tokenizer(fresh)
    tokenizer = (fresh / "tokenizer.json").read_text()
    (fresh / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"could not be loaded|the tokenizer"):
        open_tower(str(fresh))
    (fresh / "tokenizer.json").write_text(tokenizer)
    config = json.loads((fresh / "open_clip_config.json").read_text())
    del config["model_cfg"]["text_cfg"]["hf_tokenizer_name"]
    (fresh / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="the tokenizer knows 49406 tokens, the network only 6; it is another model's"):
        open_tower(str(fresh))


def test_the_shipped_clip_without_its_tokenizer_is_an_error(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(embedded.folder("scene-clip"), tmp_path / "clip"))
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="the tokenizer has no vocabulary, only 2 special tokens"):
        open_tower(str(folder))


def test_weights_that_are_no_numbers_or_wrapped(fresh: Path) -> None:
    rewrite(fresh, logit_scale=lambda scale: scale * torch.nan)
    with pytest.raises(UserError, match="The CLIP model .*: 1 of the 1 numbers of logit_scale are NaN or infinite"):
        open_tower(str(fresh))
    file = fresh / "open_clip_model.safetensors"
    save_file({f"_orig_mod.{name}": it for name, it in load_file(file).items()}, file)
    with pytest.raises(
        UserError, match="it holds '_orig_mod.*: the '_orig_mod.' is not the model's, torch.compile puts"
    ):
        open_tower(str(fresh))


def test_every_forward_has_the_same_shape(fresh: Path) -> None:
    tower = open_tower(str(fresh), batch_size=4)
    rows = count_rows(tower)
    tower.image_features(pictures(6))
    assert rows == [4, 4]


def test_two_rewards_share_the_tower_and_the_second_costs_no_forward(fresh: Path) -> None:
    samples = reward_samples(count=5)
    clip = ClipConfig(model=str(fresh)).build()
    head = Head([(torch.ones(1, 24), torch.zeros(1))], name="ones")
    aesthetic = AestheticReward(open_tower(f"local-dir:{fresh}"), head)
    assert aesthetic.tower is clip.tower
    rows = count_rows(clip.tower)
    clip.score(samples)
    assert len(rows) == 1
    aesthetic.score(samples)
    clip.tower.image_features([sample.media.copy() for sample in samples[2:4]])
    assert len(rows) == 1


def test_a_changed_picture_is_another_picture(fresh: Path) -> None:
    tower, image = open_tower(str(fresh)), pictures(1)[0]
    before = tower.image_features([image])
    image.paste((255, 0, 0), (0, 0, 40, 40))
    assert not torch.equal(before, tower.image_features([image]))


def test_memory_is_bounded_and_results_are_the_callers_own(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REMEMBERED", 3)
    tower, images = open_tower(str(fresh), batch_size=2), pictures(7)
    first = tower.image_features(images)
    assert len(tower._seen) == 3
    kept = first.clone()
    first.zero_()
    assert torch.equal(tower.image_features(images), kept)


def test_nothing_in_nothing_out(tiny_clip: Path) -> None:
    tower = open_tower(str(tiny_clip))
    assert tower.image_features([]).shape == (0, 24)
    assert tower.text_features([]).shape == (0, 24)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_pictures_of_other_modes_are_read_as_rgb(tiny_clip: Path, mode: str) -> None:
    tower, image = open_tower(str(tiny_clip)), pictures(1)[0].convert(mode)
    torch.testing.assert_close(tower.image_features([image]), tower.image_features([image.convert("RGB")]))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_lower_precision_is_near(tiny_clip: Path, dtype: clip_weights.Precision) -> None:
    images = pictures(4)
    low, full = (open_tower(str(tiny_clip), dtype=d).image_features(images) for d in (dtype, "float32"))
    assert low.dtype == torch.float32
    torch.testing.assert_close((low * full).sum(dim=1), torch.ones(4), atol=2e-3, rtol=0)


def test_a_tower_leaves_memory_with_its_last_user(fresh: Path) -> None:
    known = len(module._towers)
    tower = open_tower(str(fresh))
    assert len(module._towers) == known + 1
    del tower
    gc.collect()
    assert len(module._towers) == known


def test_the_tag_decides_about_quick_gelu() -> None:
    openai = identify("ViT-L-14", "openai")
    assert openai.model == "ViT-L-14-quickgelu"
    assert openai == identify("ViT-L/14", "openai") == identify("ViT-L-14-quickgelu", "openai")
    assert identify("ViT-L-14", "laion2b_s32b_b82k") == ("ViT-L-14", "laion2b_s32b_b82k", False)


def test_quick_gelu_is_forced_where_no_name_says_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda model, tag: {"quick_gelu": True})
    assert identify("ViT-S-32", "some_tag") == ("ViT-S-32", "some_tag", True)


def test_no_tag_of_open_clip_mismatches() -> None:
    for model, tag in open_clip.list_pretrained():
        name, _, forced = identify(model, tag)
        built = open_clip.get_model_config(name).get("quick_gelu", False) or forced
        assert built or not open_clip.get_pretrained_cfg(model, tag).get("quick_gelu", False), (model, tag)


def test_a_file_of_weights_must_say_which_activation(tiny_clip: Path) -> None:
    file = str(tiny_clip / "open_clip_model.safetensors")
    with pytest.raises(UserError, match=r"is a file, and 'ViT-B-32' .* Say 'quick_gelu: true'"):
        identify("ViT-B-32", file)
    assert identify("ViT-B-32", file, True).model == "ViT-B-32-quickgelu"
    assert identify("ViT-B-32", file, False).model == "ViT-B-32"


def test_a_checkpoint_file_with_a_model_name(tiny_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    factory = pytest.importorskip("open_clip.factory")
    config = json.loads((tiny_clip / "open_clip_config.json").read_text())["model_cfg"]
    monkeypatch.setitem(factory._MODEL_CONFIGS, "Tiny", config)
    torch.save(load_file(tiny_clip / "open_clip_model.safetensors"), tmp_path / "tiny.pt")
    images = pictures(2)
    named = open_tower("Tiny", str(tmp_path / "tiny.pt"))
    torch.testing.assert_close(named.image_features(images), open_tower(str(tiny_clip)).image_features(images))
    monkeypatch.setitem(factory._MODEL_CONFIGS, "Wide", {**config, "embed_dim": 32})
    with pytest.raises(UserError, match=r"'Wide' with .* could not be loaded: are the weights another model's"):
        open_tower("Wide", str(tmp_path / "tiny.pt"))


@pytest.mark.parametrize(
    ("model", "pretrained", "sentence"),
    [
        ("ViT-L-41", "openai", r"'ViT-L-41' is neither a CLIP model .* nor a folder\. Nearest names: .*ViT-L-14"),
        ("./nowhere", None, "There is no folder 'nowhere'"),
        ("local-dir:/no/such", None, "There is no folder '/no/such'"),
        ("ViT-B-32", None, "'ViT-B-32' needs 'pretrained': .* random.*openai"),
        ("ViT-B-32", "opena1", "'opena1' is neither weights of 'ViT-B-32' nor a file. Did you mean 'openai'?"),
        ("hf-hub:some/one", "openai", "'hf-hub:some/one' carries its own weights; remove 'pretrained: openai'"),
    ],
)
def test_a_wrong_name_gets_a_sentence(model: str, pretrained: str | None, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        identify(model, pretrained)


def test_a_wrong_folder_gets_a_sentence(tmp_path: Path, tiny_clip: Path) -> None:
    with pytest.raises(UserError, match=r"has no open_clip_config\.json\.$"):
        identify(str(tmp_path))
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(UserError, match="It holds a diffusers pipeline"):
        identify(str(tmp_path))
    (tmp_path / "open_clip_config.json").write_text('{"vision_cfg": {}}')
    with pytest.raises(UserError, match="does not describe an open_clip model: it needs 'model_cfg'"):
        identify(str(tmp_path))
    shutil.copy(tiny_clip / "open_clip_config.json", tmp_path)
    with pytest.raises(UserError, match=r"has no weights: it needs open_clip_model\.safetensors"):
        identify(str(tmp_path))
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"not weights")
    with pytest.raises(UserError, match=r"The CLIP model 'local-dir:.*' could not be loaded"):
        open_tower(str(tmp_path))


def test_no_network_gets_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise RuntimeError("Failed to download weights")

    monkeypatch.setattr(open_clip, "create_model_from_pretrained", offline)
    with pytest.raises(UserError, match=r"is not in the hub's cache here, and HF_HUB_OFFLINE forbids"):
        open_tower("ViT-L-14", "openai")
    monkeypatch.setattr(clip_weights, "from_hub", lambda key, name: iter(()))
    with pytest.raises(UserError, match=r"could not be fetched \(Failed to download weights\)\. Without a network"):
        open_tower("ViT-L-14", "openai")


@pytest.mark.parametrize(("model", "limit"), [("tiny", 16), ("scene-clip", 28)])
def test_what_of_a_caption_fits_is_read_and_nothing_beyond(tiny_clip: Path, model: str, limit: int) -> None:
    tower = open_tower(str(tiny_clip if model == "tiny" else embedded.folder(model)))
    assert tower.token_limit == limit
    whole, longer = (" ".join(["cat"] * words) for words in (limit - 2, limit - 1))  # beside begin and end
    assert tower.reads_whole(whole)
    assert tower.reads_whole("")
    assert not tower.reads_whole(longer)
    assert not tower.reads_whole(longer * 50)
    assert torch.equal(*tower.text_features([whole, longer]))
