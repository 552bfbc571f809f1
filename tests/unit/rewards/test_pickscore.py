import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, CLIPConfig, CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from raftdiff.errors import UserError
from raftdiff.recipes import needs as recipe_needs
from raftdiff.recipes.config import check
from raftdiff.rewards import tiny
from raftdiff.rewards.clip import ClipConfig
from raftdiff.rewards.pickscore import PickScoreConfig, pickscore
from raftdiff.rewards.tower import Tower
from raftdiff.rewards.transformers_clip import Encoders
from raftdiff.testing.conformance import check_reward
from raftdiff.testing.examples import reward_samples


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_pickscore(tmp_path_factory.mktemp("pickscore"))


@pytest.fixture
def own(folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(folder, tmp_path / "own"))


@pytest.mark.parametrize("side", [64, 32, 20])
def test_it_equals_the_forward_pass_of_the_authors_example(folder: Path, side: int) -> None:
    """Whole batch at once, texts filled up to the longest, with the mask; pictures by Pillow, as in 2023."""
    samples = reward_samples(count=6, side=side)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), CLIPModel.from_pretrained(folder).eval()
    texts = [sample.prompt.caption for sample in samples]
    pixels = CLIPImageProcessorPil.from_pretrained(folder)([sample.media for sample in samples], return_tensors="pt")
    tokens = tokenizer(texts, padding=True, truncation=True, max_length=16, return_tensors="pt")
    with torch.no_grad():
        expected = model(**tokens, **pixels).logits_per_image.diagonal()
    reward = PickScoreConfig(model=str(folder), batch_size=4).build()
    torch.testing.assert_close(reward.score(samples), expected, atol=1e-4, rtol=0)


def test_it_keeps_the_contract_and_does_not_depend_on_the_batch(folder: Path) -> None:
    report = check_reward(PickScoreConfig(model=str(folder), batch_size=3).build(), reward_samples(count=7))
    assert all(found.passed for found in report.checks), str(report)


def test_the_unit_is_the_cosine_times_the_models_own_scale() -> None:
    """Worked by hand: e^2 times 0.6, of the vectors (1, 0) and (0.6, 0.8)."""

    class Two(torch.nn.Module):
        logit_scale = torch.tensor(2.0)

        def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
            return torch.tensor([[7.0, 0.0]]).expand(len(pixels), 2)

        def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
            return torch.tensor([[3.0, 4.0]]).expand(len(tokens), 2)

    def pixels(picture: Image.Image) -> torch.Tensor:
        return torch.zeros(3, 2, 2)

    reward = pickscore(Tower(Two(), pixels, lambda texts: torch.zeros(1, 4), 2, name="two"))
    torch.testing.assert_close(reward.score(reward_samples(count=2)), torch.full((2,), 7.38905609893 * 0.6))


def test_the_scale_keeps_its_precision_where_the_weights_do_not(folder: Path) -> None:
    low = PickScoreConfig(model=str(folder), dtype="bfloat16").build().tower
    assert low.logit_scale == pytest.approx(99.4843, abs=1e-3)  # e^4.6, which bfloat16 would make 97.5
    assert next(low._model.parameters()).dtype == torch.bfloat16


def published() -> dict[str, tuple[int, ...]]:
    """Names and shapes in model.safetensors of PickScore_v1: CLIP ViT-H/14 with its text encoder."""

    def layers(tower: str, count: int, width: int) -> dict[str, tuple[int, ...]]:
        found: dict[str, tuple[int, ...]] = {}
        for layer in range(count):
            at = f"{tower}.encoder.layers.{layer}"
            parts = {f"self_attn.{it}": (width, width) for it in ("q_proj", "k_proj", "v_proj", "out_proj")}
            parts |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
            for name, shape in parts.items():
                found |= {f"{at}.{name}.weight": shape, f"{at}.{name}.bias": shape[:1]}
            found |= {f"{at}.layer_norm{one}.{it}": (width,) for one in (1, 2) for it in ("weight", "bias")}
        return found

    norms = {
        "text_model.final_layer_norm": 1024,
        "vision_model.pre_layrnorm": 1280,
        "vision_model.post_layernorm": 1280,
    }
    return {
        **layers("text_model", 24, 1024),
        **layers("vision_model", 32, 1280),
        **{f"{name}.{it}": (width,) for name, width in norms.items() for it in ("weight", "bias")},
        "logit_scale": (),
        "text_model.embeddings.token_embedding.weight": (49408, 1024),
        "text_model.embeddings.position_embedding.weight": (77, 1024),
        "text_projection.weight": (1024, 1024),
        "vision_model.embeddings.class_embedding": (1280,),
        "vision_model.embeddings.patch_embedding.weight": (1280, 3, 14, 14),
        "vision_model.embeddings.position_embedding.weight": (257, 1280),
        "visual_projection.weight": (1024, 1280),
    }


def test_the_layout_of_the_real_weights_is_the_networks() -> None:
    shape = {"num_attention_heads": 16, "hidden_act": "gelu"}
    text = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, **shape}
    vision = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "patch_size": 14, **shape}
    with torch.device("meta"):
        model = Encoders(CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=1024)))
    assert {name: tuple(value.shape) for name, value in model.clip.state_dict().items()} == published()
    assert sum(value.numel() for value in model.clip.parameters()) == 986_109_441  # 3.94 GB of float32


def test_every_reward_on_the_same_weights_shares_the_tower(folder: Path) -> None:
    first, second = (
        PickScoreConfig(model=str(folder)).build(),
        PickScoreConfig(model=f"{folder}/../{folder.name}").build(),
    )
    clip = ClipConfig(model=str(folder)).build()
    assert first.tower is second.tower is clip.tower
    samples = reward_samples(count=3)
    torch.testing.assert_close(clip.score(samples) * first.tower.logit_scale / 100, first.score(samples))


def test_what_of_a_caption_fits_is_read_and_nothing_beyond(folder: Path) -> None:
    reward = PickScoreConfig(model=str(folder)).build()
    assert reward.token_limit == 16
    assert reward.reads_whole("a" * 14)
    assert not reward.reads_whole("a" * 15)
    assert torch.equal(*reward.tower.text_features(["a" * 15, "a" * 40]))


def test_what_is_missing_is_told_before_a_run_begins(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe_needs, "_silent", "the hub is far")
    assert list(PickScoreConfig(model=str(own)).needs(str)) == []
    (found,) = PickScoreConfig().needs(str)
    assert (found.key, found.fetched) == ("model", False)
    assert "'yuvalkirstain/PickScore_v1' is not in the hub's cache here, and the hub is far" in found.sentence
    (own / "tokenizer.json").unlink()
    (found,) = PickScoreConfig(model=str(own)).needs(str)
    assert found.sentence == f"'{own}' lacks a tokenizer: tokenizer.json or vocab.json. Fetch the model's whole folder."
    (own / "config.json").write_text('{"model_type": "blip"}')
    (found,) = PickScoreConfig(model=str(own)).needs(str)
    assert "holds no CLIP model of transformers: its config.json is of a model of the type 'blip'" in found.sentence


def test_a_wrong_folder_gets_a_sentence(own: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="there is no folder or file .*nowhere.* It takes a folder or a hub id, such as"
    ):
        PickScoreConfig(model=str(tmp_path / "nowhere")).build()
    with pytest.raises(UserError, match="carries its own weights; remove 'pretrained: openai'"):
        ClipConfig(model=str(own), pretrained="openai").build()
    weights = load_file(own / "model.safetensors")
    lacking = {name: it for name, it in weights.items() if name != "visual_projection.weight"}
    save_file(lacking, own / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="its files lack visual_projection.weight, which would be random"):
        PickScoreConfig(model=str(own)).build()
    save_file({f"module.{name}": it for name, it in weights.items()}, own / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="the 'module.' is not the model's, DataParallel puts it there"):
        PickScoreConfig(model=str(own)).build()
    save_file({**weights, "logit_scale": torch.tensor(torch.nan)}, own / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        UserError, match="1 of the 1 numbers of clip.logit_scale are NaN|numbers of logit_scale are NaN"
    ):
        PickScoreConfig(model=str(own)).build()
    (own / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(UserError, match="The CLIP model '.*own' cannot be read: "):
        PickScoreConfig(model=str(own)).build()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"size": {"height": 32, "width": 32}}, r"a way that is not known here \(size \{'height': 32, 'width': 32\}"),
        ({"crop_size": {"height": 28, "width": 28}}, "is not known here"),
        ({"do_normalize": False}, "is not known here"),
        ({"resample": 0}, "resample 0"),
        ({"rescale_factor": 1.0}, "values over 255"),
    ],
)
def test_pictures_are_never_prepared_in_a_way_that_is_not_known(
    own: Path, change: dict[str, object], said: str
) -> None:
    file = own / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(UserError, match=f"prepares pictures in .*{said}|{said}"):
        PickScoreConfig(model=str(own)).build()


def test_the_configuration_of_2023_is_read(own: Path) -> None:
    file = own / "preprocessor_config.json"
    old = {"feature_extractor_type": "CLIPFeatureExtractor", "crop_size": 32, "size": 32, "resample": 3}
    before = PickScoreConfig(model=str(own)).build().score(reward_samples(count=2))
    file.write_text(json.dumps({**old, "do_resize": True, "do_center_crop": True, "do_normalize": True}))
    torch.testing.assert_close(PickScoreConfig(model=str(own)).build().score(reward_samples(count=2)), before)


def test_a_recipe_says_it_in_yaml_words() -> None:
    config = check(PickScoreConfig, {"type": "pickscore", "model": "path/to/PickScore_v1", "weight": 2})
    assert (config.name, config.weight, config.dtype, config.batch_size) == ("pickscore", 2.0, "float32", 32)
    assert PickScoreConfig().model == "yuvalkirstain/PickScore_v1"
