import base64
import io

import numpy as np
import pytest
from PIL import Image, ImageFont

from raftdiff.measures.pictures import coarse, on_paper
from raftdiff.reports.images import data_uri, grid, thumbnail, wrap

RED, GREY = Image.new("RGB", (16, 16), (255, 0, 0)), Image.new("RGB", (16, 16), (128, 128, 128))
HALF = Image.fromarray(np.repeat(np.array([[0, 255]], dtype=np.uint8), 8, axis=0).repeat(4, axis=1)).convert("RGB")


@pytest.mark.parametrize(
    ("size", "side", "expected"), [((64, 32), 16, (16, 8)), ((16, 8), 40, (32, 16)), ((9, 9), 9, (9, 9))]
)
def test_a_thumbnail_keeps_its_proportions(size: tuple[int, int], side: int, expected: tuple[int, int]) -> None:
    assert thumbnail(Image.new("RGB", size), side).size == expected


def test_transparent_parts_lie_on_white_paper() -> None:
    assert on_paper(Image.new("RGBA", (2, 2), (0, 0, 0, 0))).getpixel((0, 0)) == (255, 255, 255)


def test_a_grid_holds_its_pictures_in_reading_order() -> None:
    sheet = grid([RED, GREY, HALF], columns=2, cell=16, gap=4)
    assert sheet.size == (2 * 20 + 4, 2 * 20 + 4)
    assert [sheet.getpixel(place) for place in [(12, 12), (32, 12), (5, 32), (32, 32)]] == [
        (255, 0, 0),
        (128, 128, 128),
        (0, 0, 0),
        (255, 255, 255),
    ]


def test_labels_stand_below_their_cells() -> None:
    plain = grid([RED, GREY], columns=1, cell=64)
    labelled = grid([RED, GREY], columns=1, cell=64, labels=["a very long caption of many words", ""])
    assert labelled.height > plain.height
    below = np.asarray(labelled.convert("L"))[8 + 64 : 8 + 64 + 14]
    assert below.min() < 128, "ink below the first picture"


def test_lines_are_no_wider_than_the_cell() -> None:
    font = ImageFont.load_default(13)
    lines = wrap("a line sketch of a cat on a yellow background", font, 80)
    assert " ".join(lines) == "a line sketch of a cat on a yellow background"
    assert all(font.getlength(line) <= 80 for line in lines)
    assert wrap("", font, 80) == []


def test_a_grid_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one picture"):
        grid([], columns=2)
    with pytest.raises(ValueError, match="2 pictures was given 1 labels"):
        grid([RED, GREY], columns=2, labels=["red"])


def test_a_data_uri_is_the_picture() -> None:
    head, _, body = data_uri(RED).partition(",")
    assert head == "data:image/png;base64"
    assert Image.open(io.BytesIO(base64.b64decode(body))).tobytes() == RED.tobytes()


def test_coarse_pictures_are_near_where_they_look_alike() -> None:
    brighter = Image.eval(HALF, lambda value: value // 2 + 60)
    assert np.linalg.norm(coarse(HALF)) == pytest.approx(1)
    assert coarse(HALF) @ coarse(brighter) == pytest.approx(1, abs=1e-3)
    assert coarse(HALF) @ coarse(HALF.transpose(Image.Transpose.FLIP_LEFT_RIGHT)) == pytest.approx(-1, abs=1e-3)
    assert not np.isnan(coarse(GREY)).any()
