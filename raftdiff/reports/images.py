"""Pictures on disk and in reports: pure functions of PIL images."""

import base64
import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont

PAPER, INK = (255, 255, 255), (32, 32, 32)
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


def on_paper(image: Image.Image) -> Image.Image:
    """As RGB, transparent parts over white."""
    if "A" not in image.getbands() and "transparency" not in image.info:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    sheet = Image.new("RGBA", layer.size, (*PAPER, 255))
    return Image.alpha_composite(sheet, layer).convert("RGB")


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


def coarse(image: Image.Image, side: int = 16) -> Float[np.ndarray, " values"]:
    """The picture at ``side`` pixels, less its own mean, at unit length: alike pictures have a cosine near 1."""
    small = on_paper(image).resize((side, side), Image.Resampling.BOX)
    values = np.asarray(small, dtype=np.float32).reshape(-1) / 255
    centred = values - values.mean()
    return np.asarray(centred / max(float(np.linalg.norm(centred)), 1e-6), dtype=np.float32)


def mean_saturation(images: Sequence[Image.Image]) -> float:
    """Mean HSV saturation, 0 (grey) to 1 (pure colours); NaN for no pictures. A rise over the rounds warns of
    over-guided training."""
    return _mean([float(np.asarray(on_paper(image).convert("HSV"))[..., 1].mean()) / 255 for image in images])


def _starts(images: Sequence[Image.Image], columns: int) -> range:
    return range(0, len(images), columns)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
