import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont

from raftdiff.errors import UserError
from raftdiff.images import data_uri, grid, mean_contrast, mean_saturation, on_paper, save_png, spread, thumbnail, wrap

RED, GREY = Image.new("RGB", (16, 16), (255, 0, 0)), Image.new("RGB", (16, 16), (128, 128, 128))
HALF = Image.fromarray(np.repeat(np.array([[0, 255]], dtype=np.uint8), 8, axis=0).repeat(4, axis=1)).convert("RGB")


def test_a_saved_picture_reads_back_and_leaves_nothing_else(tmp_path: Path) -> None:
    save_png(RED, tmp_path / "red.png")
    with Image.open(tmp_path / "red.png") as back:
        assert back.tobytes() == RED.tobytes()
    assert [path.name for path in tmp_path.iterdir()] == ["red.png"]


def test_a_full_disk_keeps_the_old_picture_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "red.png"
    save_png(RED, path)

    def full(self: Image.Image, file: Path, **options: object) -> None:
        Path(file).write_bytes(b"half a pict")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(UserError, match=r"red\.png: cannot write this picture: No space left on device\."):
        save_png(GREY, path)
    assert [item.name for item in tmp_path.iterdir()] == ["red.png"]
    with Image.open(path) as back:
        assert back.tobytes() == RED.tobytes()


def test_a_missing_folder_gets_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot write this picture: No such file or directory"):
        save_png(RED, tmp_path / "nowhere" / "red.png")


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


def test_saturation_contrast_and_spread_have_their_extremes() -> None:
    assert mean_saturation([RED]) == pytest.approx(1)
    assert mean_saturation([GREY, RED]) == pytest.approx(0.5)
    assert mean_contrast([GREY]) == 0
    assert mean_contrast([HALF]) == pytest.approx(0.5)
    black, white = Image.new("RGB", (4, 4)), Image.new("RGB", (4, 4), (255, 255, 255))
    assert spread([black, white]) == pytest.approx(0.5)
    assert spread([black, black]) == 0
    assert all(np.isnan(measure([])) for measure in (mean_saturation, mean_contrast, spread))
