from dataclasses import replace
from pathlib import Path

import pytest
import torch

from raftdiff.errors import UserError
from raftdiff.recipes.config import check
from raftdiff.rewards.clip import ClipConfig
from raftdiff.testing.conformance import check_reward
from raftdiff.testing.examples import reward_samples


def test_the_unit_is_a_hundred_cosines_with_the_caption(tiny_clip: Path) -> None:
    reward = ClipConfig(model=str(tiny_clip)).build()
    samples = reward_samples(count=4)
    texts = reward.tower.text_features([sample.prompt.caption for sample in samples])
    expected = 100 * torch.nn.functional.cosine_similarity(reward.tower.image_features(samples), texts)
    torch.testing.assert_close(reward.score(samples), expected, atol=1e-4, rtol=0)


def test_the_caption_is_compared_not_what_the_sampler_read(tiny_clip: Path) -> None:
    reward, sample = ClipConfig(model=str(tiny_clip)).build(), reward_samples(count=1)[0]
    magic = replace(sample, prompt=replace(sample.prompt, sampling="masterpiece", learning="nothing"))
    other = replace(sample, prompt=replace(sample.prompt, caption="masterpiece"))
    assert torch.equal(reward.score([magic]), reward.score([sample]))
    assert not torch.equal(reward.score([other]), reward.score([sample]))


def test_several_templates_are_the_mean_of_their_unit_embeddings_made_a_unit(tiny_clip: Path) -> None:
    templates = ["{caption}", "a photo of {caption}, seen from above"]
    reward, samples = ClipConfig(model=str(tiny_clip), templates=templates).build(), reward_samples(count=4)
    captions = [sample.prompt.caption for sample in samples]
    first = reward.tower.text_features(captions)
    second = reward.tower.text_features([f"a photo of {caption}, seen from above" for caption in captions])
    expected = 100 * torch.nn.functional.cosine_similarity(reward.tower.image_features(samples), first + second)
    torch.testing.assert_close(reward.score(samples), expected, atol=1e-4, rtol=0)
    assert not torch.allclose(expected, ClipConfig(model=str(tiny_clip)).build().score(samples))
    assert all(found.passed for found in check_reward(reward, samples).checks)
    words = "cat " * 12
    assert ClipConfig(model=str(tiny_clip)).build().reads_whole(words)
    assert not reward.reads_whole(words)


def test_a_template_without_the_caption_is_refused() -> None:
    with pytest.raises(UserError, match=r"'a photo' has no \{caption\}, so every caption would get the same score"):
        check(ClipConfig, {"model": "ViT-L-14", "templates": ["a photo"]})


def test_it_keeps_the_contract(tiny_clip: Path) -> None:
    report = check_reward(ClipConfig(model=str(tiny_clip), batch_size=3).build(), reward_samples(count=6))
    assert all(check.passed for check in report.checks), str(report)


def test_the_name_of_a_shipped_model_is_resolved(tiny_clip: Path) -> None:
    asked = []

    def resolve(name: str) -> str:
        asked.append(name)
        return str(tiny_clip)

    reward = ClipConfig(model="scene-clip", name="alignment").build(device="cpu", resolve=resolve)
    assert asked == ["scene-clip"]
    assert reward.name == "alignment"


def test_a_recipe_says_it_in_yaml_words() -> None:
    config = check(ClipConfig, {"type": "clip", "model": "ViT-L-14", "pretrained": "openai", "weight": 2})
    assert (config.name, config.weight, config.dtype) == ("clip", 2.0, "float32")
    with pytest.raises(UserError, match=r"pretraind: unknown key\. Did you mean 'pretrained'"):
        check(ClipConfig, {"model": "ViT-L-14", "pretraind": "openai"})
    with pytest.raises(UserError, match="weight"):
        check(ClipConfig, {"model": "ViT-L-14", "weight": float("nan")})
