"""Pictures on disk and in reports: pure functions of PIL images."""

import base64
import io
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from raftdiff.measures.pictures import PAPER, on_paper

INK = (32, 32, 32)
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def thumbnail(image: Image.Image, side: int) -> Image.Image:
    """An RGB copy whose longer side is ``side`` pixels, in the same proportions.

    Small pictures are enlarged by a whole factor without smoothing, so that their pixels stay what the model made.
    """
    picture, longest = on_paper(image), max(image.size)
    if longest < side:
        factor = side // longest
        return picture.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    scale = side / longest
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return picture.resize(size, Image.Resampling.LANCZOS)


def grid(
    images: Sequence[Image.Image],
    *,
    columns: int,
    labels: Sequence[str] | None = None,
    cell: int = 128,
    gap: int = 8,
    font_size: int = 13,
) -> Image.Image:
    """The pictures row by row on white, each at most ``cell`` pixels wide and high, its label below it.

    Raises:
        ValueError: no pictures, less than one column, or another number of labels than of pictures.
    """
    if not images or columns < 1:
        raise ValueError("A grid needs at least one picture and one column.")
    texts = labels if labels is not None else [""] * len(images)
    if len(texts) != len(images):
        raise ValueError(f"A grid of {len(images)} pictures was given {len(texts)} labels.")
    font = ImageFont.load_default(font_size)
    captions = [wrap(text, font, cell) for text in texts]
    line = font_size + 3
    heights = [
        cell + line * max(len(caption) for caption in captions[i : i + columns]) for i in _starts(images, columns)
    ]
    wide = min(columns, len(images)) * (cell + gap) + gap
    sheet = Image.new("RGB", (wide, sum(heights) + gap * (len(heights) + 1)), PAPER)
    pen = ImageDraw.Draw(sheet)
    for index, (image, caption) in enumerate(zip(images, captions, strict=True)):
        row, column = divmod(index, columns)
        left, top = gap + column * (cell + gap), gap + row * gap + sum(heights[:row])
        small = thumbnail(image, cell)
        sheet.paste(small, (left + (cell - small.width) // 2, top + (cell - small.height) // 2))
        for number, text in enumerate(caption):
            pen.text((left + cell / 2, top + cell + 2 + number * line), text, fill=INK, font=font, anchor="ma")
    return sheet


def wrap(text: str, font: Font, width: int) -> list[str]:
    """``text`` in lines of at most ``width`` pixels, broken between words; a longer word stands alone."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def data_uri(image: Image.Image) -> str:
    """The picture as ``data:image/png;base64,...``, for a page that opens without a network."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _starts(images: Sequence[Image.Image], columns: int) -> range:
    return range(0, len(images), columns)
