import os
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from raftdiff.errors import UserError
from raftdiff.recipes import needs as recipe_needs
from raftdiff.rewards.aesthetic import AestheticConfig, AestheticReward, Head, Origin, load_head, save_head
from raftdiff.rewards.tower import open_tower
from raftdiff.testing.conformance import check_reward
from raftdiff.testing.examples import reward_samples

SHARED = Path(os.environ.get("RAFTDIFF_SHARED") or Path(__file__).parents[4] / "shared")
REAL = SHARED / "data" / "aesthetic"
needs_real_heads = pytest.mark.skipif(
    not REAL.is_dir(), reason=f"LAION's real heads are not at {REAL}; set RAFTDIFF_SHARED to the folder above data/"
)

# spec/diffusion.md: what version 1 gives on the ten embeddings of rising rating.
RATED = {
    ("vit_l_14", "sa_0_4_vit_l_14_linear.pth"): (
        [-2.4579, -0.1379, 1.8951, 3.5849, 5.0997, 6.4701, 7.7870, 9.0480, 10.2264, 11.3044]
    ),
    ("vit_b_32", "sa_0_4_vit_b_32_linear.pth"): (
        [-1.4700, 0.2728, 1.9900, 3.6114, 5.0874, 6.3926, 7.6682, 8.9154, 9.9166, 11.0056]
    ),
}


def embeddings(tower: str) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([np.load(REAL / f"embeddings/{tower}_rating{i}.npy") for i in range(10)]))


def sequential(relu: bool, width: int = 24, seed: int = 0) -> nn.Sequential:
    """The predictor as it was trained, small: linear layers with dropout, with or without ReLU, between."""
    act: list[nn.Module] = [nn.ReLU()] if relu else []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            *[nn.Linear(width, 32), *act, nn.Dropout(0.2), nn.Linear(32, 16), *act, nn.Dropout(0.2)],
            *[nn.Linear(16, 8), *act, nn.Dropout(0.1), nn.Linear(8, 4), *act, nn.Linear(4, 1)],
        ).eval()


def save_sequential(model: nn.Sequential, path: Path) -> Path:
    torch.save(OrderedDict((f"layers.{key}", value) for key, value in model.state_dict().items()), path)
    return path


def unit(count: int, width: int = 24) -> torch.Tensor:
    return nn.functional.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(1)), dim=-1)


@needs_real_heads
@pytest.mark.parametrize(("tower", "file"), RATED)
def test_version_1_reproduces_the_published_values(tower: str, file: str) -> None:
    expected = torch.tensor(RATED[tower, file])
    torch.testing.assert_close(load_head(REAL / file)(embeddings(tower)), expected, atol=2e-3, rtol=0)


@needs_real_heads
def test_version_2_rises_with_the_rating_and_is_folded() -> None:
    head = load_head(REAL / "sac+logos+ava1-l14-linearMSE.pth")
    scores = head(embeddings("vit_l_14"))
    assert [tuple(weight.shape) for weight, _ in head.layers] == [(1, 768)]
    assert bool((scores.diff() > 0).all())
    assert 1 < float(scores.min()) < float(scores.max()) < 10


@needs_real_heads
@pytest.mark.parametrize("relu", [False, True])
def test_the_real_five_layer_heads_equal_the_network_they_come_from(relu: bool) -> None:
    file = REAL / ("ava+logos-l14-reluMSE.pth" if relu else "sac+logos+ava1-l14-linearMSE.pth")
    act: list[nn.Module] = [nn.ReLU()] if relu else []
    network = nn.Sequential(
        *[nn.Linear(768, 1024), *act, nn.Dropout(0.2), nn.Linear(1024, 128), *act, nn.Dropout(0.2)],
        *[nn.Linear(128, 64), *act, nn.Dropout(0.1), nn.Linear(64, 16), *act, nn.Linear(16, 1)],
    ).eval()
    weights = torch.load(file, map_location="cpu", weights_only=True)
    network.load_state_dict({key.removeprefix("layers."): value for key, value in weights.items()})
    x = embeddings("vit_l_14")
    torch.testing.assert_close(load_head(file)(x), network(x)[:, 0].detach(), atol=1e-4, rtol=0)


@needs_real_heads
def test_every_real_head_is_known() -> None:
    widths = {path.name: load_head(path).width for path in sorted(REAL.glob("*.pth"))}
    assert len(widths) == 5
    assert all(width == (512 if "vit_b" in name else 768) for name, width in widths.items())


def test_version_1_is_linear(tmp_path: Path) -> None:
    layer = nn.Linear(24, 1)
    torch.save(layer.state_dict(), tmp_path / "v1.pth")
    x = unit(5)
    torch.testing.assert_close(load_head(tmp_path / "v1.pth")(x), layer(x)[:, 0].detach())


@pytest.mark.parametrize("relu", [False, True])
def test_five_layers_equal_the_network_they_come_from(tmp_path: Path, relu: bool) -> None:
    network, x = sequential(relu), unit(7)
    head = load_head(save_sequential(network, tmp_path / "v2.pth"))
    assert len(head.layers) == (5 if relu else 1)
    torch.testing.assert_close(head(x), network(x)[:, 0].detach(), atol=1e-5, rtol=0)


def test_it_scores_the_towers_embedding(tmp_path: Path, tiny_clip: Path) -> None:
    network = sequential(relu=False)
    file = save_sequential(network, tmp_path / "v2.pth")
    reward = AestheticConfig(head=file, model=str(tiny_clip)).build()
    samples = reward_samples(count=5)
    expected = network(open_tower(str(tiny_clip)).image_features(samples))[:, 0].detach()
    torch.testing.assert_close(reward.score(samples), expected, atol=1e-5, rtol=0)
    report = check_reward(reward, samples)
    assert all(check.passed for check in report.checks), str(report)


def test_the_default_tower_is_openais(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_clip: Path) -> None:
    asked = []

    def opened(model: str, pretrained: str | None, **kwargs: object) -> object:
        asked.append((model, pretrained))
        return open_tower(str(tiny_clip))

    monkeypatch.setattr("raftdiff.rewards.aesthetic.open_tower", opened)
    file = save_sequential(sequential(relu=False), tmp_path / "v2.pth")
    AestheticConfig(head=file).build()
    AestheticConfig(head=file, model=str(tiny_clip)).build()
    assert asked == [("ViT-L-14", "openai"), (str(tiny_clip), None)]


def test_a_head_of_another_width_gets_a_sentence(tmp_path: Path, tiny_clip: Path) -> None:
    torch.save(nn.Linear(768, 1).state_dict(), tmp_path / "l14.pth")
    sentence = r"'l14\.pth' reads embeddings of 768 numbers, .* gives 24\. .* 'model: ViT-L-14', 'pretrained: openai'"
    with pytest.raises(UserError, match=sentence):
        AestheticReward(open_tower(str(tiny_clip)), load_head(tmp_path / "l14.pth"))


def test_a_wrong_file_gets_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "head.pth"
    with pytest.raises(UserError, match=r"There is no aesthetic head .*improved-aesthetic-predictor"):
        load_head(path)
    for text in ("not weights", "a fox on a white background"):  # of which torch raises errors of different kinds
        path.write_text(text)
        with pytest.raises(UserError, match="is not a PyTorch file of plain tensors"):
            load_head(path)
    torch.save(nn.Linear(24, 1), path)
    with pytest.raises(UserError, match="is not a PyTorch file of plain tensors"):
        load_head(path)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"visual.proj": torch.zeros(3, 4)}, r"It holds visual\.proj \(3, 4\)\. Known are"),
        ({"weight": torch.zeros(2, 24), "bias": torch.zeros(2)}, r"It holds weight \(2, 24\), bias \(2,\)\. Known are"),
        ([1, 2], "It holds a list. Known are"),
        ({"epoch": 3}, "It holds epoch. Known are"),
    ],
)
def test_another_models_weights_get_a_sentence(tmp_path: Path, content: object, sentence: str) -> None:
    torch.save(content, tmp_path / "head.pth")
    with pytest.raises(UserError, match=sentence):
        load_head(tmp_path / "head.pth")


def test_layers_that_do_not_join_get_a_sentence(tmp_path: Path) -> None:
    network = sequential(relu=False)
    tensors = {f"layers.{key}": value for key, value in network.state_dict().items()}
    tensors["layers.2.weight"] = torch.zeros(16, 31)
    torch.save(tensors, tmp_path / "head.pth")
    with pytest.raises(UserError, match="is not an aesthetic head that is known here"):
        load_head(tmp_path / "head.pth")


# heads of one's own


def own(file: Path, mark: torch.Tensor, model: str = "scene-clip", pretrained: str | None = None) -> Path:
    save_head(file, torch.ones(len(mark)), 0.5, Origin(model, pretrained, mark), {"seed": "3"})
    return file


def test_a_head_knows_its_tower_by_what_it_computes(tmp_path: Path, tiny_clip: Path) -> None:
    half = open_tower(str(tiny_clip), dtype="bfloat16")
    head = load_head(own(tmp_path / "own.safetensors", open_tower(str(tiny_clip)).mark, "another/name"))
    assert head.origin is not None
    assert (head.origin.model, head.origin.pretrained, head.width) == ("another/name", None, 24)
    AestheticReward(half, head)
    torch.testing.assert_close(head(unit(3)), unit(3).sum(dim=-1) + 0.5)
    other = own(tmp_path / "other.safetensors", unit(1)[0], "ViT-L-14", "openai")
    sentence = (
        r"'other\.safetensors' was trained on the embeddings of another CLIP model: 'model: ViT-L-14', 'pretrained: "
        r"openai', and not of '.*clip.*'\."
    )
    with pytest.raises(UserError, match=sentence):
        AestheticReward(half, load_head(other))


def test_a_head_of_ones_own_and_of_another_width_says_whose_it_is(tmp_path: Path, tiny_clip: Path) -> None:
    wide = own(tmp_path / "wide.safetensors", unit(1, 30)[0])
    with pytest.raises(UserError, match=r"of 30 numbers, but .* gives 24\. It was trained on .*'model: scene-clip'\."):
        AestheticReward(open_tower(str(tiny_clip)), load_head(wide))


def test_no_tower_is_fetched_for_a_head_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe_needs, "_silent", "the hub is silent")
    file = own(tmp_path / "own.safetensors", unit(1)[0])
    (need,) = AestheticConfig(head=file, model="hf-hub:nobody/nothing").needs(str)
    assert (need.key, need.fetched) == ("model", False)
    assert need.sentence.endswith("was trained on the embeddings of another CLIP model: 'model: scene-clip'.")
    (need,) = AestheticConfig(head=own(file, unit(1)[0], "hf-hub:nobody/nothing"), model="hf-hub:nobody/nothing").needs(
        str
    )
    assert "the hub is silent" in need.sentence


def test_a_safetensors_file_of_another_kind_gets_a_sentence(tmp_path: Path) -> None:
    file = tmp_path / "head.safetensors"
    file.write_text("not weights")
    with pytest.raises(UserError, match=r"head\.safetensors' is no readable safetensors file: "):
        load_head(file)
    save_file({"visual.proj": torch.zeros(3, 4)}, file)
    with pytest.raises(UserError, match=r"It holds visual\.proj \(3, 4\)\. Known are"):
        load_head(file)
    layer = {"weight": torch.ones(1, 24), "bias": torch.zeros(1)}
    for mark in ("no base64", "AAAA"):
        save_file(layer, file, {"model": "scene-clip", "tower_mark": mark})
        with pytest.raises(UserError, match="does not say on which CLIP model it was trained, as it should"):
            load_head(file)
    save_file(layer, file)
    assert isinstance(load_head(file), Head), "LAION's version 1, as others may have converted it"
