"""What a picture itself says."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from raftdiff.errors import UserError
from raftdiff.measures.pictures import is_flat, on_paper, opened


def dotted(mode: str, colour: object, dot: object) -> Image.Image:
    picture = Image.new(mode, (8, 8), colour)  # type: ignore[arg-type]
    picture.putpixel((3, 4), dot)  # type: ignore[arg-type]
    return picture


@pytest.mark.parametrize(("mode", "colour"), [("RGB", (0, 0, 0)), ("RGB", (12, 200, 7)), ("L", 40), ("1", 1)])
def test_a_picture_of_one_colour_is_flat(mode: str, colour: object) -> None:
    assert is_flat(Image.new(mode, (8, 8), colour))  # type: ignore[arg-type]
    assert not is_flat(dotted(mode, colour, (12, 201, 7) if mode == "RGB" else 0))


def test_what_is_hidden_does_not_count() -> None:
    assert is_flat(dotted("RGBA", (255, 0, 0, 0), (0, 255, 0, 0)))
    assert not is_flat(dotted("RGBA", (255, 0, 0, 0), (0, 255, 0, 255)))


def saved(path: Path, picture: Image.Image, **how: Any) -> Image.Image:
    """The picture, through a file."""
    picture.save(path, **how)
    found = opened(path)
    assert found.mode == "RGB"
    return found


def test_a_photo_stands_as_its_mark_says(tmp_path: Path) -> None:
    lying = Image.new("RGB", (64, 32), "white")
    lying.paste((255, 0, 0), (0, 0, 8, 32))
    mark = Image.Exif()
    mark[274] = 6  # to be turned by a quarter, clockwise: its left is the top
    found = saved(tmp_path / "a.png", lying, exif=mark)
    assert found.size == (32, 64)
    assert found.getpixel((16, 0)) == (255, 0, 0)


def test_a_whole_picture_with_a_damaged_mark_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = saved(tmp_path / "cat.png", dotted("RGB", (9, 9, 9), (200, 0, 0)), exif=b"garbage!")
    assert found.getpixel((3, 4)) == (200, 0, 0)
    assert "cat.png: its EXIF mark is damaged and is not heeded" in caplog.text


def test_what_is_clear_is_white(tmp_path: Path) -> None:
    assert saved(tmp_path / "a.png", Image.new("RGBA", (4, 4), (255, 0, 0, 0))).getpixel((0, 0)) == (255, 255, 255)
    assert saved(tmp_path / "b.png", Image.new("LA", (4, 4), (0, 0))).getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 1), 1)
    found = saved(tmp_path / "c.png", palette, transparency=0)
    assert (found.getpixel((0, 0)), found.getpixel((1, 1))) == ((255, 255, 255), (40, 50, 60))


def test_grey_of_16_bits_keeps_its_greys(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 4096).reshape(64, 64)
    for name in ("a.png", "a.tif"):
        values = np.asarray(saved(tmp_path / name, Image.fromarray(ramp.astype(np.uint16))))
        np.testing.assert_allclose(values[..., 0], ramp / 257, atol=0.51)
    for held in (ramp.astype(np.int32), (ramp / 65535).astype(np.float32), (ramp / 257).astype(np.float32)):
        values = np.asarray(on_paper(Image.fromarray(held)))
        np.testing.assert_allclose(values[..., 2], ramp / 257, atol=0.51)


@pytest.mark.parametrize(
    ("darkest", "lightest", "white"), [(0, 1.02, 1), (-0.01, 1, 1), (-0.04, 1.04, 1), (-3, 262, 255)]
)
def test_floats_that_overshoot_a_little_are_clipped(darkest: float, lightest: float, white: float) -> None:
    held = np.linspace(darkest, lightest, 256, dtype=np.float32).reshape(16, 16)
    found = np.asarray(on_paper(Image.fromarray(held)))[..., 0]
    np.testing.assert_allclose(found, (held / white).clip(0, 1) * 255, atol=0.51)


@pytest.mark.parametrize(
    ("greys", "said"),
    [
        (np.linspace(-0.1, 1, 256, dtype=np.float32), "reach from -0.1 to 1, and 0 to 1 can be shown"),
        (np.linspace(0, 1.3, 256, dtype=np.float32), "reach from 0 to 1.3, and 0 to 1 can be shown"),
        (np.arange(0, 256, dtype=np.int32), "mode 'I' reach from 0 to 255, and with 65535 for white all of it"),
        (np.arange(0, 256, dtype=np.uint16), "mode 'I;16' reach from 0 to 255, and with 65535 for white"),
        (np.arange(0, 4096, 16, dtype=np.uint16), "reach from 0 to 4080, and with 65535 for white"),
        (np.linspace(0, 2, 256, dtype=np.float32), "mode 'F' reach from 0 to 2, and with 255 for white"),
        (np.linspace(0, 0.05, 256, dtype=np.float32), "reach from 0 to 0.05, and with 1 for white"),
        (np.arange(-128, 128, dtype=np.int32) * 256, "reach from -32768 to 32512, and 0 to 65535 can be shown"),
        (np.arange(0, 256, dtype=np.int32) * 2**20, "and 0 to 65535 can be shown"),
        (np.linspace(0, 1000, 256, dtype=np.float32), "reach from 0 to 1000, and 0 to 255 can be shown"),
    ],
)
def test_greys_that_would_all_be_black_or_white_are_a_sentence(tmp_path: Path, greys: np.ndarray, said: str) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(greys.reshape(16, 16)).save(path)
    with pytest.raises(UserError, match=rf"a\.tif: the greys of this picture of {said}" if "mode" in said else said):
        opened(path)


def test_a_picture_of_16_bits_that_is_black_is_black(tmp_path: Path) -> None:
    assert is_flat(saved(tmp_path / "a.tif", Image.fromarray(np.zeros((8, 8), np.uint16))))


def test_the_colours_of_print_are_those_of_the_screen(tmp_path: Path) -> None:
    found = saved(tmp_path / "a.jpg", Image.new("CMYK", (8, 8), (0, 255, 255, 0)), quality=95)
    assert np.allclose(found.getpixel((4, 4)), (255, 0, 0), atol=4)


@pytest.mark.parametrize("kind", ["half", "page", "empty", "flipped"])
def test_what_is_no_whole_picture_is_named(tmp_path: Path, kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / "a.png"
    Image.fromarray(noise).save(path)
    held = path.read_bytes()
    flipped = held[:60] + bytes(255 - byte for byte in held[60:70]) + held[70:]
    path.write_bytes({"half": held[:3000], "page": b"<html>", "empty": b"", "flipped": flipped}[kind])
    with pytest.raises(UserError, match="a.png: this is no whole picture"):
        opened(path)
