"""The reward of scenes learns from neighbours that no picture shows together, and from mush that fits no caption."""

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from raftdiff.embedded import folder
from raftdiff.embedded.scenes.data import Painter
from raftdiff.embedded.scenes.judge import SceneJudge
from raftdiff.embedded.scenes.measure import Seen, chosen, to_images
from raftdiff.embedded.scenes.networks import TEXT, UNET, VAE, finished, load_vae, take_apart
from raftdiff.embedded.scenes.rows import LOOKS, to_rows
from raftdiff.embedded.scenes.rules import Found, verdicts
from raftdiff.embedded.scenes.tokens import build_tokenizer, tokenise_captions
from raftdiff.embedded.scenes.training.clip import Lessons, contrast
from raftdiff.embedded.scenes.training.drawn import Drawer, Over, Pairs
from raftdiff.embedded.scenes.training.neighbours import GROUP, group, neighbours
from raftdiff.embedded.scenes.training.pools import Ring, groups
from raftdiff.embedded.scenes.world import GROUNDS, OBJECTS, Part, Scene, draw, parse


def test_a_picture_of_a_scene_is_wrong_for_each_of_its_neighbours(art: np.ndarray) -> None:
    rng = random.Random(0)
    scenes = draw(160, seed=5, held_out=None)
    batch = Painter(art, seed=0, held_out=True).paint(to_rows(scenes))
    for row, scene in enumerate(scenes):
        places = [place for place in range(4) if batch.objects[row, place] >= 0]
        found = [
            Found(
                OBJECTS[int(batch.objects[row, place])],
                LOOKS[int(batch.looks[row, place])],
                *batch.layout.centre[row, place].tolist(),
                float(batch.layout.size[row, place]),
                1.0,
            )
            for place in places
        ]
        ground = tuple(GROUNDS)[int(batch.grounds[row])]
        first, *others = group(rng, scene)
        assert first == scene
        assert len({first, *others}) == GROUP
        assert verdicts(scene, found, ground)["exact"], scene.caption
        for other in others:
            assert parse(other.caption) == other
            assert not verdicts(other, found, ground)["exact"], f"{scene.caption} / {other.caption}"


def test_neighbours_are_of_every_kind_that_a_caption_gives() -> None:
    scene = Scene((Part("cat", style="cartoon"), Part("fox", style="sketched", colour="red")), "left of", "white")
    seen = {one.caption for seed in range(200) for one in group(random.Random(seed), scene)}
    told = {
        "a cartoon cat right of a red sketched fox on a white background",
        "a red sketched cat left of a cartoon fox on a white background",
        "a cartoon cat left of a blue sketched fox on a white background",
        "a cartoon cat left of a cartoon fox on a white background",
        "a cartoon cat left of a red sketched fox on a pink background",
        "a cartoon crab left of a red sketched fox on a white background",
    }
    assert told <= seen
    every = [one.caption for one in neighbours(scene)]
    assert seen <= {scene.caption, *every}
    assert len(set(every)) == len(every)
    assert scene.caption not in every
    counted = Scene((Part("cat", count=1), Part("fox", count=3)))
    seen = {one.caption for seed in range(60) for one in group(random.Random(seed), counted)}
    assert {"three cats and a fox", "a cat and two foxes"} <= seen
    assert "two cats and three foxes" not in seen  # five in all


def test_mush_is_one_more_negative_of_every_text_and_what_is_whole_is_none() -> None:
    texts, scale = torch.eye(2), torch.tensor(3.0)
    plain = float(np.log1p(np.exp(-3.0)))
    both = torch.tensor([True, True])
    assert contrast(torch.eye(2), texts, scale, both).item() == pytest.approx(plain)
    images = torch.cat([torch.eye(2), texts[:1]])
    whole, spoilt = torch.tensor([True, True, True]), torch.tensor([True, True, False])
    assert contrast(images, texts, scale, whole).item() == pytest.approx(plain)
    # text 0: itself and mush at e^3, the other at 1; text 1: itself at e^3, two at 1
    first, second = np.log((2 * np.exp(3) + 1) / np.exp(3)), np.log((np.exp(3) + 2) / np.exp(3))
    assert contrast(images, texts, scale, spoilt).item() == pytest.approx(((first + second) / 2 + plain) / 2)


def test_a_lesson_holds_whole_groups_and_says_which_pictures_are_spoilt(art: np.ndarray) -> None:
    torch.manual_seed(0)
    drawn = groups(build_tokenizer(), 10, seed=0, device="cpu")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lesson = Lessons(drawn, Painter(art, seed=0, held_out=True), None, batch=32).draw()
    assert (lesson.tokens.shape[0], lesson.painted) == (32, slice(0, 32))
    known = drawn.tokens.view(10, -1)
    assert all((part.flatten() == known).all(dim=1).any() for part in lesson.tokens.view(8, GROUP, -1))
    assert (len(lesson.shown.pictures), len(lesson.pictures), lesson.pictures.dtype) == (32, 40, torch.float32)
    assert lesson.fits[:32].all()
    assert not lesson.fits[32:].all()


@pytest.fixture(scope="module")
def drawer(tmp_path_factory: pytest.TempPathFactory) -> Drawer:
    results = tmp_path_factory.mktemp("results")
    take_apart(folder("scene-sd"), results)
    return Drawer(results, build_tokenizer(), "cpu")


def test_what_is_drawn_over_stands_where_it_stood_and_looks_otherwise(art: np.ndarray, drawer: Drawer) -> None:
    torch.manual_seed(0)
    scenes = draw(10, seed=77)
    painted = Painter(art, seed=5).paint(to_rows(scenes)).pictures
    drawn = drawer.over(painted, tokenise_captions(build_tokenizer(), [scene.caption for scene in scenes]))
    away = (drawn[:, None] - painted).flatten(2).norm(dim=2)
    assert (away.argmin(dim=1) == torch.arange(10)).float().mean() > 0.8
    assert 5 < (drawn - painted).abs().mean() * 127.5 < 60


def test_a_pair_is_of_one_caption_its_right_picture_first(drawer: Drawer) -> None:
    torch.manual_seed(0)
    scenes = draw(12, seed=0)
    captions = [scene.caption for scene in scenes]
    judge, tokens = SceneJudge(folder("scene-judge")).judge, tokenise_captions(build_tokenizer(), captions)
    pairs = Pairs(drawer, judge, captions, tokens, size=8, at_once=4)
    assert len(pairs)
    found, right, wrong = pairs.draw(12)
    said = [captions[int((tokens == row).all(dim=1).nonzero()[0, 0])] for row in found]
    assert judge(to_images(right), said)["exact"].all()
    assert not judge(to_images(wrong), said)["exact"].any()


def test_a_detector_that_finds_nothing_gives_no_pairs(drawer: Drawer) -> None:
    def blind(images: object, captions: Sequence[str]) -> dict[str, np.ndarray]:
        return {"exact": np.zeros(len(captions))}

    tokens = tokenise_captions(build_tokenizer(), ["a cat"])
    assert len(Pairs(drawer, blind, ["a cat"], tokens, size=2, at_once=2)) == 0


def test_a_ring_keeps_the_newest() -> None:
    ring = Ring(3, number=torch.tensor(0))
    for first in (0, 2, 4):
        ring.put(number=torch.arange(first, first + 2))
    assert len(ring) == 3
    assert set(ring.draw(64)[0].tolist()) == {3, 4, 5}


def test_a_part_of_a_lesson_is_drawn_over_and_a_part_are_pairs(art: np.ndarray, drawer: Drawer) -> None:
    torch.manual_seed(0)
    drawn, painter = groups(build_tokenizer(), 6, seed=0, device="cpu"), Painter(art, seed=0, held_out=True)
    over = Over(drawer, painter, drawn, size=3, at_once=2)
    rows, oldest = over.draw(64)
    assert all(part[0] % GROUP == 0 and (part.diff() == 1).all() for part in rows.view(-1, GROUP))
    lessons = Lessons(drawn, painter, over, batch=16)
    lesson = lessons.draw()
    assert (lesson.painted, len(lesson.pictures), len(lesson.shown.pictures)) == (slice(8, 16), 18, 8)
    assert lesson.fits[:16].all()
    lessons.renew()
    assert not torch.equal(torch.unique(over.draw(64)[1].flatten(1), dim=0), torch.unique(oldest.flatten(1), dim=0))
    lessons.pairs = Pairs(
        drawer, SceneJudge(folder("scene-judge")).judge, ["a cat"], drawn.tokens[:1], size=2, at_once=0
    )
    assert lessons.draw().pairs == 0  # there are none yet
    picture = torch.zeros(1, 3, 80, 80)
    lessons.pairs._ring.put(tokens=drawn.tokens[:1], right=picture + 1, wrong=picture - 1)
    lesson = lessons.draw()
    assert (lesson.painted, lesson.pairs, len(lesson.tokens)) == (slice(4, 8), 8, 16)
    assert lesson.fits.tolist()[:16] == [True] * 16
    assert (lesson.pictures[8:16] == 1).all()
    assert (lesson.pictures[-8:] == -1).all()
    assert not lesson.fits[-8:].any()


def test_the_best_and_the_worst_are_the_rewards_choice() -> None:
    exact = np.array([1, 0, 0, 0, 1, 1, 0, 0, 0], dtype=float)
    scores = np.array([3, 2, 1, 1, 2, 3, 1, 2, 3], dtype=float)
    features = np.concatenate([np.eye(3), np.eye(3), np.ones((3, 3))])
    told = chosen({"exact": exact}, Seen(features, scores), count=3)
    assert told == {"best": 0.6667, "worst": 0.0, "closed": 1.0, "vendi": pytest.approx(7 / 3, abs=1e-3)}
    assert "closed" not in chosen({"exact": np.zeros(9)}, Seen(features, scores), count=3)


def test_the_shipped_pipeline_comes_apart_into_what_training_goes_on_from(tmp_path: Path) -> None:
    take_apart(folder("scene-sd"), tmp_path)
    assert all(finished(tmp_path / name) for name in (VAE, UNET, TEXT))
    vae = load_vae(tmp_path / VAE)
    shipped = load_file(folder("scene-sd") / "vae" / "diffusion_pytorch_model.safetensors")
    assert {name: tensor.half() for name, tensor in vae.state_dict().items()}.keys() == shipped.keys()
    assert all(torch.equal(tensor.half(), shipped[name]) for name, tensor in vae.state_dict().items())
    assert 0.1 < vae.config.scaling_factor < 2
