"""The picture world: captions that can be checked, and hold-outs that never overlap with the training data."""

from collections import Counter
from pathlib import Path

import pytest

from raftdiff import embedded
from raftdiff.embedded.emoji.tokens import caption_words
from raftdiff.embedded.emoji.world import (
    BACKGROUNDS,
    HIGH_QUALITY,
    LOW_QUALITY,
    OBJECTS,
    STYLES,
    Concept,
    all_concepts,
    draw,
    held_out_backgrounds,
    held_out_concepts,
    held_out_styles,
    is_held_out,
    parse,
    training_concepts,
)
from raftdiff.embedded.tokens import learn_merges
from raftdiff.errors import UserError


def test_the_world_is_as_large_as_the_cards_say() -> None:
    assert (len(set(OBJECTS)), len(STYLES), len(BACKGROUNDS)) == (120, 4, 8)
    assert (len(all_concepts()), len(training_concepts()), len(held_out_concepts())) == (3840, 2640, 1200)


def test_hold_outs_and_training_data_share_nothing_and_leave_nothing_out() -> None:
    training, held_out = set(training_concepts()), set(held_out_concepts())
    assert not training & held_out
    assert training | held_out == set(all_concepts())
    assert all(is_held_out(concept) for concept in held_out)


def test_every_object_style_and_background_is_seen_in_training() -> None:
    seen = training_concepts()
    assert {concept.object for concept in seen} == set(OBJECTS)
    assert {concept.style for concept in seen} == set(STYLES)
    assert {concept.background for concept in seen} == set(BACKGROUNDS)


def test_hold_outs_are_spread_evenly() -> None:
    styles = Counter(style for name in OBJECTS for style in held_out_styles(name))
    grounds = Counter(ground for name in OBJECTS for ground in held_out_backgrounds(name))
    assert set(styles.values()) == {10}
    assert set(grounds.values()) == {30}


def test_hold_outs_are_what_the_weights_were_trained_with() -> None:
    assert held_out_styles("tiger") == {"cartoon"}
    assert held_out_styles("cat") == frozenset()
    assert held_out_backgrounds("cat") == {"white", "yellow"}
    assert held_out_backgrounds("bomb") == {"blue", "white"}


@pytest.mark.parametrize("suffix", ["", HIGH_QUALITY, LOW_QUALITY])
def test_captions_read_back_as_what_was_written(suffix: str) -> None:
    assert all(parse(concept.caption + suffix) == concept for concept in all_concepts())


@pytest.mark.parametrize(
    "caption", ["", "a cat", "a cartoon of a griffin on a red background", "a cartoon of a cat on a red"]
)
def test_other_sentences_are_no_concepts(caption: str) -> None:
    assert parse(caption) is None


PROMPTS = Path(__file__).parents[4] / "configs/prompts"


def captions(name: str) -> list[str]:
    return [line for line in (PROMPTS / name).read_text().splitlines() if not line.startswith("#")]


@pytest.mark.parametrize(
    ("name", "count", "never_seen"),
    [
        ("emoji_demo.txt", 24, 0),
        ("emoji_demo_held_out.txt", 24, 12),
        ("emoji_align.txt", 192, 192),
        ("emoji_align_held_out.txt", 64, 64),
    ],
)
def test_the_prompt_files_hold_what_their_heads_say(name: str, count: int, never_seen: int) -> None:
    found = [parse(caption) for caption in captions(name)]
    assert len(set(found)) == len(found) == count
    assert None not in found
    assert sum(is_held_out(concept) for concept in found if concept) == never_seen
    assert [concept.caption for concept in found if concept] == captions(name)


def test_held_out_prompts_are_not_trained_on() -> None:
    assert not set(captions("emoji_demo.txt")) & set(captions("emoji_demo_held_out.txt"))
    assert not set(captions("emoji_align.txt")) & set(captions("emoji_align_held_out.txt"))


def test_articles() -> None:
    assert Concept("hourglass", "cartoon", "red").caption == "a cartoon of an hourglass on a red background"
    assert Concept("owl", "cartoon", "blue").caption == "a cartoon of an owl on a blue background"
    assert Concept("unicorn", "3d render", "red").caption == "a 3d render of a unicorn on a red background"


def test_draw_is_balanced_without_repetition_and_the_same_every_time() -> None:
    drawn = draw(training_concepts(), 240, seed=1)
    assert len(set(drawn)) == 240
    assert set(Counter(concept.object for concept in drawn).values()) == {2}
    assert drawn == draw(training_concepts(), 240, seed=1) != draw(training_concepts(), 240, seed=2)


def test_draw_says_when_there_are_too_few() -> None:
    with pytest.raises(ValueError, match=r"3 concepts were asked for, but there are only 2\."):
        draw(training_concepts()[:2], 3, seed=0)


def test_a_misspelt_model_gets_the_nearest_name() -> None:
    with pytest.raises(
        UserError, match=r"No model called 'emoji-clop' ships with raftdiff\. Did you mean 'emoji-clip'\?"
    ):
        embedded.folder("emoji-clop")


def test_the_vocabulary_is_the_same_every_time_and_has_every_word_of_the_captions() -> None:
    words = caption_words()
    merges = learn_merges(words)
    assert merges == learn_merges(reversed(words))
    assert {f"{word}</w>" for word in words if len(word) > 1} <= {"".join(pair) for pair in merges}
