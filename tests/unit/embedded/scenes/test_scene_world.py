"""Captions of scenes say what they mean, and what is held out is never learnt from."""

import random

import pytest

from raftdiff.embedded.scenes.rows import CARTOON_SHARE, LOOKS, look_shares, random_rows
from raftdiff.embedded.scenes.tokens import LENGTH, build_tokenizer, tokenise, tokenise_captions
from raftdiff.embedded.scenes.world import (
    COLOURS,
    HIGH_QUALITY,
    KINDS,
    MOST,
    OBJECTS,
    Part,
    Scene,
    draw,
    held_out_colours,
    held_out_styles,
    is_held_out,
    parse,
    random_scene,
)


def test_every_caption_parses_back_to_its_scene() -> None:
    rng = random.Random(0)
    scenes = [random_scene(rng) for _ in range(500)]
    assert {scene.kind for scene in scenes} == set(KINDS)
    for scene in scenes:
        assert parse(scene.caption) == scene
        assert parse(scene.caption + HIGH_QUALITY) == scene
        assert 1 <= scene.total <= MOST


def test_captions_read_as_they_should() -> None:
    crown = Part("crown", size="small", style="sketched", colour="red")
    assert Scene((crown, Part("crab", style="cartoon")), "left of").caption == (
        "a small red sketched crown left of a cartoon crab"
    )
    assert Scene((Part("fox", 3),), ground="white").caption == "three foxes on a white background"
    assert Scene((Part("umbrella"), Part("butterfly", 2))).caption == "an umbrella and two butterflies"


@pytest.mark.parametrize(
    "caption",
    [
        "a photo of Paris",
        "an cat",
        "two cat",
        "a cat and a cat",
        "two cats left of a fox",
        "a red cat",
        "a red cartoon cat",
        "three cats and two foxes",
        "three small cats",
        "a cat on a black background",
    ],
)
def test_what_is_no_caption_of_this_world_is_none(caption: str) -> None:
    assert parse(caption) is None


def test_hold_outs_are_never_drawn_for_training() -> None:
    training = draw(300, seed=0)
    assert len(set(training)) == 300
    assert not any(is_held_out(scene) for scene in training)
    assert all(is_held_out(scene) for scene in draw(100, seed=0, held_out=True))
    _, captions = random_rows(300, seed=1, held_out=False)
    learnt = [parse(caption) for caption in captions]
    assert all(scene is not None and not is_held_out(scene) for scene in learnt)
    assert draw(50, seed=3) == draw(50, seed=3) != draw(50, seed=4)


def test_a_look_that_is_left_open_never_comes_out_as_one_held_out() -> None:
    shares = look_shares(all_of_them=False)
    for name, row in zip(OBJECTS, shares.tolist(), strict=True):
        never = tuple(COLOURS) if held_out_styles(name) else held_out_colours(name)
        assert {look for look, share in zip(LOOKS, row, strict=True) if share == 0} == set(never)
    assert (look_shares(all_of_them=True) > 0).all()
    assert look_shares(all_of_them=True)[:, 0].tolist() == pytest.approx([CARTOON_SHARE] * len(OBJECTS))


@pytest.mark.filterwarnings("ignore")
def test_captions_are_looked_up_as_the_tokenizer_reads_them() -> None:
    tokenizer = build_tokenizer()
    captions = [scene.caption + HIGH_QUALITY for scene in draw(200, seed=5, held_out=None)]
    found = tokenise_captions(tokenizer, captions)
    assert (found == tokenise(tokenizer, captions)).all()
    assert (found[:, LENGTH - 1] == tokenizer.eos_token_id).all(), "nothing is cut off"
