"""What a picture itself says."""

import pytest
from PIL import Image

from raftdiff.measures.pictures import is_flat


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
