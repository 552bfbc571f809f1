import math
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.nn.functional import conv2d, gelu, layer_norm, linear
from torchvision.transforms import CenterCrop, Resize
from torchvision.transforms.functional import InterpolationMode, to_tensor

from raftdiff.errors import UserError
from raftdiff.recipes import needs as recipe_needs
from raftdiff.recipes.config import check
from raftdiff.rewards import tiny
from raftdiff.rewards.checkpoints import demand_layout, shapes
from raftdiff.rewards.image_reward import (
    SPARE,
    ImageRewardConfig,
    ImageRewardReward,
    Network,
    empty,
    published,
)
from raftdiff.testing.conformance import check_reward
from raftdiff.testing.examples import reward_samples

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
Weights = Mapping[str, torch.Tensor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_image_reward(tmp_path_factory.mktemp("image_reward"))


def config(folder: Path, **changes: Any) -> ImageRewardConfig:
    return ImageRewardConfig(
        checkpoint=changes.pop("checkpoint", folder / "ImageReward.pt"), tokenizer=str(folder / "tokenizer"), **changes
    )


@pytest.fixture(scope="module")
def reward(folder: Path) -> ImageRewardReward:
    return config(folder, batch_size=4).build()


def held(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(folder / "ImageReward.pt", weights_only=True)
    return found


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | float = 0.0) -> torch.Tensor:
    """Heads of 64 numbers; (tokens, width) each."""
    heads = [one.unflatten(-1, (-1, 64)).transpose(0, 1) for one in (q, k, v)]
    weights = (heads[0] @ heads[1].transpose(1, 2) / math.sqrt(64) + mask).softmax(dim=-1)
    return (weights @ heads[2]).transpose(0, 1).flatten(1)


def seen(weights: Weights, pixels: torch.Tensor) -> torch.Tensor:
    """A ViT as in arXiv:2010.11929, of one picture: norms first, with an epsilon of 1e-6."""
    at = "blip.visual_encoder."

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return layer_norm(x, x.shape[-1:], weights[f"{at}{name}.weight"], weights[f"{at}{name}.bias"], 1e-6)

    def dense(x: torch.Tensor, name: str) -> torch.Tensor:
        return linear(x, weights[f"{at}{name}.weight"], weights[f"{at}{name}.bias"])

    kernel = weights[f"{at}patch_embed.proj.weight"]
    patches = conv2d(pixels, kernel, weights[f"{at}patch_embed.proj.bias"], stride=kernel.shape[-1]).flatten(1).T
    x = torch.cat([weights[f"{at}cls_token"][0], patches]) + weights[f"{at}pos_embed"][0]
    for block in range(2):
        q, k, v = dense(norm(x, f"blocks.{block}.norm1"), f"blocks.{block}.attn.qkv").chunk(3, dim=-1)
        x = x + dense(attend(q, k, v), f"blocks.{block}.attn.proj")
        hidden = gelu(dense(norm(x, f"blocks.{block}.norm2"), f"blocks.{block}.mlp.fc1"))
        x = x + dense(hidden, f"blocks.{block}.mlp.fc2")
    return norm(x, "norm")


def read(weights: Weights, ids: list[int], picture: torch.Tensor) -> torch.Tensor:
    """BERT as in arXiv:1810.04805, norms last; after looking at the other words each looks at the picture."""
    at = "blip.text_encoder."

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return layer_norm(x, x.shape[-1:], weights[f"{at}{name}.weight"], weights[f"{at}{name}.bias"], 1e-12)

    def dense(x: torch.Tensor, name: str) -> torch.Tensor:
        return linear(x, weights[f"{at}{name}.weight"], weights[f"{at}{name}.bias"])

    filled = torch.tensor([*ids, *[0] * (35 - len(ids))])
    mask = torch.where(torch.arange(35) < len(ids), 0.0, -10_000.0)
    places = weights[f"{at}embeddings.position_embeddings.weight"][:35]
    x = norm(weights[f"{at}embeddings.word_embeddings.weight"][filled] + places, "embeddings.LayerNorm")
    for place in range(2):
        layer = f"encoder.layer.{place}"
        for name, other, hidden in (("attention", None, mask), ("crossattention", picture, 0.0)):
            source = x if other is None else other
            q, k, v = (
                dense(what, f"{layer}.{name}.self.{it}")
                for it, what in (("query", x), ("key", source), ("value", source))
            )
            x = norm(
                x + dense(attend(q, k, v, hidden), f"{layer}.{name}.output.dense"), f"{layer}.{name}.output.LayerNorm"
            )
        x = norm(
            x + dense(gelu(dense(x, f"{layer}.intermediate.dense")), f"{layer}.output.dense"),
            f"{layer}.output.LayerNorm",
        )
    return x[0]


def letters(caption: str) -> list[int]:
    """[CLS], each letter a token, those within a word after ##, [SEP]."""
    found = [2]
    for word in caption.split():
        found += [5 + ord(word[0]) - 97, *(31 + ord(letter) - 97 for letter in word[1:])]
    return [*found[:34], 3]


def by_hand(weights: Weights, picture: Image.Image, caption: str) -> float:
    square = CenterCrop(32)(Resize(32, interpolation=InterpolationMode.BICUBIC)(picture))
    x = read(weights, letters(caption), seen(weights, (to_tensor(square) - MEAN) / STD))
    for place in (0, 2, 4, 6, 7):
        x = linear(x, weights[f"mlp.layers.{place}.weight"], weights[f"mlp.layers.{place}.bias"])
    return (float(x) - 0.16717362830052426) / 1.0333394966054072


@pytest.mark.parametrize("size", [(64, 64), (32, 32), (50, 36), (20, 31)])
def test_it_equals_the_authors_score(folder: Path, reward: ImageRewardReward, size: tuple[int, int]) -> None:
    samples = [replace(sample, media=sample.media.resize(size)) for sample in reward_samples(count=5)]
    weights = held(folder)
    expected = torch.tensor([by_hand(weights, sample.media, sample.prompt.caption) for sample in samples])
    torch.testing.assert_close(reward.score(samples), expected, atol=1e-4, rtol=0)
    assert expected.std() > 0.05


def test_the_epsilon_of_the_norms_is_the_authors(folder: Path, tmp_path: Path) -> None:
    """Where the picture's numbers are small, another epsilon gives another score."""
    weights = held(folder)
    for name in weights:
        if re.search(r"visual_encoder\.(cls_token|pos_embed|patch_embed|blocks\.\d\.(attn\.proj|mlp\.fc2))", name):
            weights[name] = weights[name] * 1e-3
    torch.save(weights, tmp_path / "small.pt")
    samples = reward_samples(count=3)
    expected = torch.tensor([by_hand(weights, sample.media, sample.prompt.caption) for sample in samples])
    own = config(folder, checkpoint=tmp_path / "small.pt").build()
    torch.testing.assert_close(own.score(samples), expected, atol=1e-4, rtol=0)
    for part in own._network.blip.image.modules():
        if isinstance(part, torch.nn.LayerNorm):
            part.eps = 1e-5
    assert (own.score(samples) - expected).abs().max() > 1e-3


def test_the_scores_are_normalised_by_the_published_figures(folder: Path, tmp_path: Path) -> None:
    """A head that says nothing but its last bias, 1.2: (1.2 - 0.16717) / 1.03334 = 0.99951."""
    weights = held(folder)
    weights["mlp.layers.7.weight"].zero_()
    weights["mlp.layers.7.bias"].fill_(1.2)
    torch.save(weights, tmp_path / "constant.pt")
    own = config(folder, checkpoint=tmp_path / "constant.pt").build()
    torch.testing.assert_close(own.score(reward_samples(count=2)), torch.full((2,), 0.99951), atol=1e-5, rtol=0)


def test_it_keeps_the_contract_and_does_not_depend_on_the_batch(reward: ImageRewardReward) -> None:
    report = check_reward(reward, reward_samples(count=7), direction=ImageRewardReward.__doc__)
    assert all(found.passed for found in report.checks), str(report)
    assert reward.score([]).shape == (0,)


def test_two_rewards_on_one_file_share_the_network(folder: Path, reward: ImageRewardReward) -> None:
    again = config(folder, checkpoint=folder / "tokenizer" / ".." / "ImageReward.pt", name="again").build()
    assert again._network is reward._network
    assert config(folder, dtype="float16").build()._network is not reward._network


def test_the_words_count_and_those_beyond_35_tokens_do_not(reward: ImageRewardReward) -> None:
    sample = reward_samples(count=1)[0]

    def scored(caption: str) -> float:
        return float(reward.score([replace(sample, prompt=replace(sample.prompt, caption=caption))]))

    assert scored("a cat") != scored("a dog")
    assert scored("a" * 33) == scored("a" * 33 + "bcd") != scored("a" * 32)
    assert (reward.token_limit, reward.reads_whole("a" * 33), reward.reads_whole("a" * 34)) == (35, True, False)


def test_lower_precision_is_near_and_the_head_keeps_its_own(folder: Path, reward: ImageRewardReward) -> None:
    low, samples = config(folder, dtype="bfloat16").build(), reward_samples(count=4)
    torch.testing.assert_close(low.score(samples), reward.score(samples), atol=0.1, rtol=0)
    assert {str(it.dtype) for it in low._network.blip.parameters()} == {"torch.bfloat16"}
    assert {str(it.dtype) for it in low._network.head.parameters()} == {"torch.float32"}


def test_the_layout_of_the_real_checkpoint_is_recognised() -> None:
    layout = tiny.image_reward_layout(
        side=224,
        patch=16,
        image=(1024, 24),
        text=(768, 12),
        tokens=30524,
        positions=512,
        shared=256,
        head=(768, 1024, 128, 64, 16, 1),
    )
    with torch.device("meta"):
        file = {name: torch.empty(shape) for name, shape in layout.items()}
        file["blip.text_encoder.embeddings.position_ids"] = torch.empty(1, 512, dtype=torch.int64)
    network = empty("The checkpoint", file)
    demand_layout("The checkpoint", file, {published(name): it for name, it in shapes(network).items()}, spare=SPARE)
    assert (network.side, network.rows, type(network)) == (224, 30524, Network)
    vision, text = network.blip.image.config, network.blip.text.config
    assert (vision.num_attention_heads, text.num_attention_heads) == (16, 12)
    assert (vision.intermediate_size, text.intermediate_size) == (4096, 3072)
    assert [layer.in_features for layer in network.head] == [768, 1024, 128, 64, 16]
    held = sum(weight.numel() for name, weight in file.items() if "position_ids" not in name)
    assert 4 * held == pytest.approx(1.79e9, rel=3e-3)  # the size of the published file


def spoilt(weights: Mapping[str, Any], path: Path) -> Path:
    torch.save(dict(weights), path)
    return path


def test_a_wrong_file_gets_a_sentence(folder: Path, tmp_path: Path) -> None:
    weights, wrong = held(folder), tmp_path / "wrong.pt"

    def told(changed: Mapping[str, Any], sentence: str) -> None:
        with pytest.raises(UserError, match=sentence):
            config(folder, checkpoint=spoilt(changed, wrong)).build()

    def without(name: str) -> dict[str, Any]:
        return {one: weight for one, weight in weights.items() if one != name}

    query, bias = "blip.text_encoder.encoder.layer.1.crossattention.self.query.weight", "blip.visual_encoder.norm.bias"
    told(without(query), rf"The ImageReward checkpoint '.*wrong.pt': its files lack {query}, which would be random")
    told(without("mlp.layers.4.weight"), "its files lack mlp.layers.4.weight")
    wrapped = {f"module.{name}": weight for name, weight in weights.items()}
    told(wrapped, "its files lack .* but hold 'module.blip.*: the 'module.' is not the model's, DataParallel puts it")
    told({**weights, bias: torch.zeros(3)}, rf"{bias} has the shape \(3,\), where \(128,\) is expected")
    told({**weights, "blip.visual_encoder.pos_embed": torch.zeros(3)}, r"pos_embed has the shape \(3,\). It is another")
    told({**weights, "blip.itm_head.bias": torch.zeros(2)}, "it holds 'blip.itm_head.bias', which the model has not")
    told({**weights, bias: weights[bias] * math.inf}, "numbers of blip.image.post_layernorm.bias are NaN or infinite")
    told({"state_dict": without("mlp.layers.7.bias")}, "its files lack mlp.layers.7.bias")
    told({"model": weights}, "holds 'model', which is no tensor, where weights are expected")
    wrong.write_bytes(b"")
    with pytest.raises(UserError, match="The ImageReward checkpoint '.*wrong.pt' cannot be read: "):
        config(folder, checkpoint=wrong).build()


def test_a_wrong_tokenizer_gets_a_sentence(folder: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(folder / "tokenizer", tmp_path / "other"))
    file = other / "tokenizer.json"
    file.write_text(file.read_text().replace('"##z": 56', '"##z": 56, "zebra": 57'))
    with pytest.raises(UserError, match="knows 60 tokens with BLIP's two, and the network 59; it is another model's."):
        ImageRewardConfig(checkpoint=folder / "ImageReward.pt", tokenizer=str(other)).build()
    file.unlink()
    with pytest.raises(UserError, match="The tokenizer '.*other' of image_reward"):
        ImageRewardConfig(checkpoint=folder / "ImageReward.pt", tokenizer=str(other)).build()


def test_a_folder_with_the_vocabulary_alone_will_do(folder: Path, reward: ImageRewardReward, tmp_path: Path) -> None:
    words = reward._tokenizer.get_vocab()
    (tmp_path / "vocab.txt").write_text("\n".join(sorted(set(words) - {"[DEC]", "[ENC]"}, key=words.__getitem__)))
    own = ImageRewardConfig(checkpoint=folder / "ImageReward.pt", tokenizer=str(tmp_path), batch_size=4).build()
    samples = reward_samples(count=2)
    assert torch.equal(own.score(samples), reward.score(samples))


def test_what_is_missing_is_told_before_a_run_begins(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe_needs, "_silent", "the hub is far")
    assert list(config(folder).needs(str)) == []
    checkpoint, tokenizer = ImageRewardConfig(checkpoint=folder / "no.pt").needs(str)
    assert (checkpoint.key, tokenizer.key) == ("checkpoint", "tokenizer")
    assert "There is no ImageReward checkpoint '" in checkpoint.sentence
    assert "ImageReward.pt is at huggingface.co/zai-org/ImageReward; give the path" in checkpoint.sentence
    assert tokenizer.sentence.startswith(
        "'google-bert/bert-base-uncased' is not in the hub's cache here, and the hub is"
    )
    with pytest.raises(UserError, match="There is no ImageReward checkpoint"):
        ImageRewardConfig(checkpoint=folder / "no.pt").build()


def test_a_recipe_says_it_in_yaml_words() -> None:
    found = check(ImageRewardConfig, {"type": "image_reward", "checkpoint": "ImageReward.pt", "tokenizer": "bert"})
    assert (found.name, found.weight, found.checkpoint) == ("image_reward", 1.0, Path("ImageReward.pt"))
