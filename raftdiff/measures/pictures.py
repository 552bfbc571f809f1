"""Pictures, without a model: opened from files, and features by which alike pictures are close."""

import io
import logging
import re
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageOps

from raftdiff.errors import UserError

PAPER = (255, 255, 255)
NIGHT = 16
"""Of 255: a grey picture that is darker everywhere is black to whoever looks at it, as one of 12 bits in 16 is."""
DAY = 1.5
"""A grey picture of floats whose lightest is below this has 1 for white; with 255 for white all would be black."""
ORIENTATION, QUARTER = 0x0112, 5
"""The EXIF mark that says how a picture is turned; from this value on by a quarter."""
OVERSHOOT = 0.05
"""Of the range: how far floats may lie beyond black and white, as bicubic resizing leaves them; they are clipped."""


def whole(source: Path | bytes) -> Image.Image:
    """The picture in a file or in its bytes, all of it, as it stands there.

    Raises:
        OSError: nothing whole is there; its text says in what way.
    """
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as picture:
            picture.load()
            return picture
    except OSError:
        raise
    except Exception as error:  # a decoder may raise anything over a damaged file
        raise OSError(str(error)) from error


def extent(source: Path | bytes, where: str | None = None) -> tuple[int, int]:
    """Height and width of the picture that ``opened`` finds there, by its head alone: no pixel is read.

    Raises:
        UserError: it is no picture.
    """
    path = where or str(source)
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as picture:
            width, height = picture.size
            # a PNG without the mark in its head is read whole by Pillow, in search of one behind
            marked = picture.format != "PNG" or "exif" in picture.info
            turned = marked and picture.getexif().get(ORIENTATION, 1) >= QUARTER
    except Exception as error:  # a decoder may raise anything over a damaged file
        raise UserError(f"{path}: this is no picture ({error}). Take it away, or fetch it again.") from None
    return (width, height) if turned else (height, width)


def opened(source: Path | bytes, where: str | None = None) -> Image.Image:
    """The picture in somebody's file, or in its bytes, as it is looked at: upright, as its EXIF mark says, and
    ``on_paper``. ``where`` is what sentences call it; the file by default.

    Raises:
        UserError: it is no whole picture, or its greys are none that ``on_paper`` can show.
    """
    path = where or str(source)
    try:
        picture = whole(source)
        try:
            picture = ImageOps.exif_transpose(picture)
        except Exception:  # whatever Pillow's reader of marks raises: the mark is damaged, the picture is whole
            logging.getLogger(__name__).warning("%s: its EXIF mark is damaged and is not heeded", path)
        return on_paper(picture)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (OSError, ValueError) as error:
        said = re.sub(rf" ({re.escape(repr(str(path)))}|<_io\.BytesIO.*?>)", "", str(error))
        raise UserError(f"{path}: this is no whole picture ({said}). Take it away, or fetch it again.") from None


def on_paper(image: Image.Image) -> Image.Image:
    """As RGB, transparent parts over white. Grey of 16 bits is scaled to 8, that of floats from 0..1, or from 0..255
    where any lies well above 1; floats that overshoot a little, as after resizing, are clipped.

    Raises:
        UserError: greys of more than 8 bits lie outside of that, or would all be black, as 0..255 in 16 bits are.
    """
    if image.mode.startswith(("I", "F")):
        image = _grey(image)
    if "A" not in image.getbands() and "transparency" not in image.info:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    sheet = Image.new("RGBA", layer.size, (*PAPER, 255))
    return Image.alpha_composite(sheet, layer).convert("RGB")


def _grey(image: Image.Image) -> Image.Image:
    """8 bits of grey of 16, of 32 that hold 16, and of floats; ``convert`` would make white of nearly all of them."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float64))
    darkest, lightest = values.min(initial=0.0), values.max(initial=0.0)
    floats = image.mode == "F"
    largest = 65535.0 if not floats else 1.0 if lightest < DAY else 255.0
    greys = values / largest * 255
    slack = 255 * OVERSHOOT if floats else 0.5
    said = f"the greys of this picture of mode '{image.mode}' reach from {darkest:g} to {lightest:g}, and"
    if greys.min(initial=0.0) < -slack or greys.max(initial=0.0) > 255 + slack:
        raise UserError(f"{said} 0 to {largest:g} can be shown. Save it with 8 bits, 0 for black and 255 for white.")
    if 0 < greys.max(initial=0.0) < NIGHT:
        raise UserError(
            f"{said} with {largest:g} for white all of it would be black. Save it with 8 bits, 0 for black and 255 for "
            "white."
        )
    return Image.fromarray(greys.clip(0, 255).round().astype(np.uint8))


def is_flat(image: Image.Image) -> bool:
    """Whether the picture is of one colour all over, and so shows nothing."""
    extrema: tuple[tuple[int, int], ...] = on_paper(image).getextrema()  # type: ignore[assignment]
    return all(low == high for low, high in extrema)


def coarse(image: Image.Image, side: int = 16) -> Float[np.ndarray, " values"]:
    """The picture at ``side`` pixels, less its own mean, at unit length: alike pictures have a cosine near 1."""
    small = on_paper(image).resize((side, side), Image.Resampling.BOX)
    values = np.asarray(small, dtype=np.float32).reshape(-1) / 255
    centred = values - values.mean()
    return np.asarray(centred / max(float(np.linalg.norm(centred)), 1e-6), dtype=np.float32)
