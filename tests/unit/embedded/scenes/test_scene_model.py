"""scene-sd ships as a folder that raftdiff's own loader opens."""

import numpy as np
import torch
from PIL import Image

from raftdiff import embedded
from raftdiff.diffusion.models.loading import ModelConfig, load
from raftdiff.diffusion.sampler import DiffusionSamplerConfig
from raftdiff.embedded.scenes.judge import ground_by_pixel
from raftdiff.embedded.scenes.layout import SIZE
from raftdiff.rewards.clip import ClipConfig
from raftdiff.types import Prompt, Sample

CAPTIONS = ("a sunflower on a purple background", "two cherries on a white background")


def test_it_draws_pictures_that_differ_by_caption() -> None:
    parts = load(ModelConfig(base="scene-sd", device="cpu"), resolve=embedded.resolve)
    assert parts.process.predicts == "v_prediction"
    sampler = DiffusionSamplerConfig(steps=6, guidance=4.0).build(parts)
    # one id, so that only the captions differ
    samples = [
        next(
            iter(
                sampler.sample(
                    [Prompt("p", text, sampling=text, learning=text)], per_prompt=1, seed=0, round=0, done=set()
                )
            )
        )
        for text in CAPTIONS
    ]
    images = [sample.media for sample in samples]
    assert [image.size for image in images] == [(SIZE, SIZE)] * 2
    assert [ground_by_pixel(image) for image in images] == ["purple", "white"]
    assert np.abs(np.asarray(images[0], dtype=float) - np.asarray(images[1], dtype=float)).mean() > 10


def test_its_files_are_small_and_of_half_precision() -> None:
    from safetensors.torch import load_file

    files = [path for path in embedded.folder("scene-sd").rglob("*") if path.is_file()]
    assert all(path.stat().st_size <= 16 * 2**20 for path in files)
    weights = [path for path in files if path.suffix == ".safetensors"]
    assert len(weights) == 3
    assert {tensor.dtype for path in weights for tensor in load_file(path).values()} == {torch.float16}


def test_the_cards_say_whose_art_it_was_and_how_they_were_trained() -> None:
    for name in ("scene-sd", "scene-judge", "scene-clip"):
        card = (embedded.folder(name) / "README.md").read_text(encoding="utf-8")
        assert card.startswith("---\n")
        assert all(word in card for word in ("Apache-2.0", "MIT", "seed", "H200", "fc992a0"))
    flow = (embedded.folder("emoji-flow") / "README.md").read_text(encoding="utf-8")
    assert flow.startswith("---\n")
    assert all(word in flow for word in ("Apache-2.0", "MIT", "seed", "scene-sd", "145d52d"))


def test_the_flow_draws_what_is_asked_for() -> None:
    """Things that it knows best, on the ground that is named, by the judge; one of eight may miss."""
    from raftdiff.embedded.scenes.judge import SceneJudge

    parts = load(ModelConfig(base="emoji-flow", device="cpu"), resolve=embedded.resolve)
    assert (parts.family.name, parts.process.predicts) == ("sd3", "flow")
    sampler = DiffusionSamplerConfig(steps=12, guidance=3.0, scheduler="euler").build(parts)
    prompt = Prompt("p", *["a cartoon watermelon on a purple background"] * 3)
    drawn = [one.media for one in sampler.sample([prompt], per_prompt=8, seed=0, round=0, done=set())]
    told = SceneJudge(embedded.folder("scene-judge")).judge(drawn, [prompt.caption] * 8)
    assert told["ground"].sum() >= 7
    assert told["object"].sum() >= 5
    others = SceneJudge(embedded.folder("scene-judge")).judge(drawn, ["a cartoon fox on a blue background"] * 8)
    assert others["ground"].sum() + others["object"].sum() <= 1


def test_the_reward_prefers_its_own_caption() -> None:
    reward = ClipConfig(model="scene-clip").build(resolve=embedded.resolve)
    sheet = Image.open(embedded.folder("scene-judge") / "looked_at.png")
    picture = sheet.crop((2, 2, 2 + SIZE, 2 + SIZE))  # a small gift on purple
    captions = (
        "a small gift on a purple background",
        "a large gift on a purple background",
        "two gifts on a purple background",
        "a small crown on a purple background",
        "a small gift on a blue background",
    )
    samples = [
        Sample(0, Prompt("p", text, text, text), index, 0, "policy", picture) for index, text in enumerate(captions)
    ]
    scores = reward.score(samples)
    assert int(scores.argmax()) == 0
