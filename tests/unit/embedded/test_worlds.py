"""The picture world that ships: what it knows, and a judge that says nothing where a caption does not ask."""

import numpy as np
import pytest
from PIL import Image

from raftdiff.embedded.scenes.world import GROUNDS
from raftdiff.embedded.worlds import about, open_judge, understands
from raftdiff.errors import UserError

PAIR = "a small gift and two foxes on a white background"
PLAIN = "a cat on a white background"


def test_the_judge_understands_the_captions_of_its_world_alone() -> None:
    assert understands("scene-judge", PLAIN)
    assert not understands("scene-judge", "a flat icon of a pine tree on a yellow background")


def test_a_model_s_world_is_told_in_words_that_it_knows() -> None:
    told = about("scene-sd") or ""
    assert told == about("emoji-flow")
    assert all(word in told for word in ("sailboat", "left of", "sketched", "small", "purple"))
    assert about("runwayml/stable-diffusion-v1-5") is None


def test_an_empty_picture_shows_nothing_but_its_ground_and_what_is_not_asked_is_not_judged() -> None:
    judge = open_judge("scene-judge")
    empty = Image.new("RGB", (80, 80), GROUNDS["white"])
    told = judge([empty, empty], [PLAIN, "two sketched stars"])
    assert told.keys() == {"object", "count", "style", "ground", "exact"}
    assert told["exact"].tolist() == told["object"].tolist() == [0, 0]
    np.testing.assert_array_equal(told["ground"], [1, np.nan])
    np.testing.assert_array_equal(told["style"], [np.nan, 0])
    with pytest.raises(UserError, match="The judge knows only captions such as"):
        judge([empty], ["a photo of Paris"])
