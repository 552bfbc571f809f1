from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip import factory
from PIL import Image
from torch.nn import functional
from torchvision.transforms.functional import to_tensor

from raftdiff.errors import UserError
from raftdiff.recipes.config import check
from raftdiff.rewards import tiny
from raftdiff.rewards.checkpoints import demand_layout, shapes
from raftdiff.rewards.clip import ClipConfig, ClipReward
from raftdiff.rewards.hps import FitWhole, HpsConfig, demand_hps
from raftdiff.testing.conformance import check_reward
from raftdiff.testing.examples import reward_samples

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(factory._MODEL_CONFIGS, "ViT-H-14", dict(tiny.CLIP))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_hps(tmp_path_factory.mktemp("hps") / "HPS_v2.1_compressed.pt")


def held(file: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(file, weights_only=True)["state_dict"]
    return found


ByHand = Callable[[Image.Image, str], float]


@pytest.fixture(scope="module")
def by_hand(file: Path) -> ByHand:
    """As the authors' ``img_score`` does it, one picture at a time: numbers from 0 to 1, the longer edge to 32 px with
    anti-aliased bicubic interpolation, black around, normalised; 100 times the product of the unit embeddings."""
    model = open_clip.CLIP(**tiny.CLIP).eval()
    model.load_state_dict({name: weight.float() for name, weight in held(file).items()})
    tokenizer = open_clip.SimpleTokenizer(context_length=16)

    def score(picture: Image.Image, caption: str) -> float:
        pixels = to_tensor(picture)
        height, width = pixels.shape[1:]
        size = [round(edge * 32 / max(height, width)) for edge in (height, width)]
        if size != [height, width]:
            pixels = functional.interpolate(pixels[None], size=size, mode="bicubic", antialias=True)[0]
        canvas = torch.zeros(3, 32, 32)
        top, left = (32 - size[0]) // 2, (32 - size[1]) // 2
        canvas[:, top : top + size[0], left : left + size[1]] = pixels
        with torch.no_grad():
            image = model.encode_image(((canvas - MEAN) / STD)[None], normalize=True)
            text = model.encode_text(tokenizer([caption]), normalize=True)
        return 100 * float((image * text).sum())

    return score


@pytest.fixture(scope="module")
def reward(file: Path) -> ClipReward:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(factory._MODEL_CONFIGS, "ViT-H-14", dict(tiny.CLIP))
        return HpsConfig(checkpoint=file).build()


@pytest.mark.parametrize("size", [(64, 64), (32, 32), (64, 40), (30, 47), (20, 20), (32, 20)])
def test_it_equals_the_authors_function(reward: ClipReward, by_hand: ByHand, size: tuple[int, int]) -> None:
    samples = [replace(sample, media=sample.media.resize(size)) for sample in reward_samples(count=3)]
    expected = torch.tensor([by_hand(sample.media, sample.prompt.caption) for sample in samples])
    torch.testing.assert_close(reward.score(samples), expected, atol=1e-4, rtol=0)


def test_it_keeps_the_contract_and_does_not_depend_on_the_batch(file: Path) -> None:
    report = check_reward(HpsConfig(checkpoint=file, batch_size=3).build(), reward_samples(count=7))
    assert all(found.passed for found in report.checks), str(report)


def test_pictures_are_shown_whole() -> None:
    """Twice as wide as high: a band of grey between two of black, each a quarter of the square; worked by hand."""
    shown = FitWhole(8)(torch.full((3, 8, 16), 0.5))
    assert shown.shape == (3, 8, 8)
    assert torch.equal(shown[:, [0, 1, 6, 7]], torch.zeros(3, 4, 8))
    torch.testing.assert_close(shown[:, 2:6], torch.full((3, 4, 8), 0.5))
    assert FitWhole(8)(torch.ones(3, 1, 300)).shape == (3, 8, 8)  # one line is left
    assert FitWhole(8)(torch.ones(3, 1, 300))[:, 3:4].min() > 0.99
    assert torch.equal(FitWhole(8)(torch.ones(2, 3, 5, 8))[:, :, 1:6], torch.ones(2, 3, 5, 8))


def test_a_wide_picture_shows_its_ends_where_clip_cuts_them_off(file: Path, reward: ClipReward) -> None:
    sample = reward_samples(count=1)[0]
    plain, ended = Image.new("RGB", (96, 32), "white"), Image.new("RGB", (96, 32), "white")
    ended.paste((255, 0, 0), (0, 0, 20, 32))
    pictures = [replace(sample, media=picture) for picture in (plain, ended)]
    clip = ClipConfig(model="ViT-H-14", pretrained=str(file), quick_gelu=False).build()
    assert clip.score(pictures).diff() == 0
    assert abs(reward.score(pictures).diff()) > 0.1


def published() -> dict[str, tuple[int, ...]]:
    """Names and shapes in the ``state_dict`` of HPS_v2_compressed.pt and HPS_v2.1_compressed.pt."""
    found: dict[str, tuple[int, ...]] = {
        "positional_embedding": (77, 1024),
        "text_projection": (1024, 1024),
        "logit_scale": (),
        "token_embedding.weight": (49408, 1024),
        "visual.class_embedding": (1280,),
        "visual.positional_embedding": (257, 1280),
        "visual.proj": (1280, 1024),
        "visual.conv1.weight": (1280, 3, 14, 14),
    }
    for name, width in {"visual.ln_pre": 1280, "visual.ln_post": 1280, "ln_final": 1024}.items():
        found |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    for tower, count, width in (("visual.transformer", 32, 1280), ("transformer", 24, 1024)):
        for layer in range(count):
            parts = {
                **{f"ln_{one}.{it}": (width,) for one in (1, 2) for it in ("weight", "bias")},
                **{"attn.in_proj_weight": (3 * width, width), "attn.in_proj_bias": (3 * width,)},
                **{"attn.out_proj.weight": (width, width), "attn.out_proj.bias": (width,)},
                **{"mlp.c_fc.weight": (4 * width, width), "mlp.c_fc.bias": (4 * width,)},
                **{"mlp.c_proj.weight": (width, 4 * width), "mlp.c_proj.bias": (width,)},
            }
            found |= {f"{tower}.resblocks.{layer}.{name}": shape for name, shape in parts.items()}
    return found


def test_the_layout_of_the_real_checkpoints_is_recognised(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()
    with torch.device("meta"):
        file = {name: torch.empty(shape, dtype=torch.float16) for name, shape in published().items()}
        network = open_clip.CLIP(**open_clip.get_model_config("ViT-H-14"))
    demand_layout("The HPS checkpoint", file, shapes(network))
    assert sum(weight.numel() for weight in file.values()) * 2 == 1_972_218_882  # the 1.97 GB that are published
    monkeypatch.setattr("raftdiff.rewards.hps.tensors", lambda *_, **__: file)
    demand_hps(Path(__file__))


def spoilt(weights: Mapping[str, Any], path: Path) -> Path:
    torch.save({"state_dict": dict(weights)}, path)
    return path


def test_a_wrong_file_gets_a_sentence(file: Path, tmp_path: Path) -> None:
    weights, wrong = held(file), tmp_path / "wrong.pt"
    lacking = {name: weight for name, weight in weights.items() if name != "visual.proj"}
    with pytest.raises(UserError, match=r"'.*wrong.pt': its files lack visual.proj, which would be random"):
        HpsConfig(checkpoint=spoilt(lacking, wrong)).build()
    with pytest.raises(
        UserError, match="but hold 'module.ln_final.bias': the 'module.' is not the model's, DataParallel"
    ):
        HpsConfig(checkpoint=spoilt({f"module.{name}": it for name, it in weights.items()}, wrong)).build()
    with pytest.raises(UserError, match=r"visual.proj has the shape \(4, 4\), where \(32, 24\) is expected"):
        HpsConfig(checkpoint=spoilt({**weights, "visual.proj": torch.zeros(4, 4)}, wrong)).build()
    with pytest.raises(UserError, match="it holds 'score_predictor.bias', which the model has not"):
        HpsConfig(checkpoint=spoilt({**weights, "score_predictor.bias": torch.zeros(4)}, wrong)).build()
    with pytest.raises(UserError, match="of the 24 numbers|of the 768 numbers of visual.proj are NaN or infinite"):
        HpsConfig(checkpoint=spoilt({**weights, "visual.proj": weights["visual.proj"] * torch.nan}, wrong)).build()
    with pytest.raises(UserError, match="holds 'epoch', which is no tensor, where weights are expected"):
        HpsConfig(checkpoint=spoilt({**weights, "epoch": 3}, wrong)).build()
    wrong.write_bytes(b"<html>not found</html>")
    with pytest.raises(UserError, match="The HPS checkpoint '.*wrong.pt' is no file of PyTorch|cannot be read"):
        HpsConfig(checkpoint=wrong).build()
    wrong.write_text("a fox on a white background")  # a text that begins as a pickle of its own does
    with pytest.raises(UserError, match="The HPS checkpoint '.*wrong.pt' cannot be read"):
        HpsConfig(checkpoint=wrong).build()


class Planted:
    """What a pickle may do while it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("planted"),)


def test_nothing_that_a_file_holds_is_run(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": held(file), "optimizer": Planted()}, "HPS_v2.pt")
    with pytest.raises(UserError, match=r"holds more than tensors .*is never opened here.*HPS_v2.1_compressed.pt and"):
        HpsConfig(checkpoint=Path("HPS_v2.pt")).build()
    assert not Path("planted").exists()


def test_what_is_missing_is_told_before_a_run_begins(file: Path, tmp_path: Path) -> None:
    assert list(HpsConfig(checkpoint=file).needs(str)) == []
    (found,) = HpsConfig(checkpoint=tmp_path / "hps.pt").needs(str)
    assert found.key == "checkpoint"
    assert found.sentence.startswith(f"There is no HPS checkpoint '{tmp_path}/hps.pt'. HPS_v2.1_compressed.pt and ")
    with pytest.raises(UserError, match="There is no HPS checkpoint"):
        HpsConfig(checkpoint=tmp_path / "hps.pt").build()


def test_two_names_of_one_file_are_one_tower(file: Path, reward: ClipReward, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    assert HpsConfig(checkpoint=Path(file.name), name="again").build().tower is reward.tower
    assert (reward.token_limit, reward.reads_whole("a cat"), reward.reads_whole("cat " * 20)) == (16, True, False)


def test_a_recipe_says_it_in_yaml_words() -> None:
    config = check(HpsConfig, {"type": "hps", "checkpoint": "HPS_v2.1_compressed.pt", "name": "hps_v21"})
    assert (config.name, config.weight, config.checkpoint) == ("hps_v21", 1.0, Path("HPS_v2.1_compressed.pt"))
    with pytest.raises(UserError, match="checkpoint: .*required"):
        check(HpsConfig, {"type": "hps"})
