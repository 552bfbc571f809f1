"""The README's picture: for some prompts the base model's pictures above the tuned model's, column by column one seed.

    python tests/benchmarks/readme_picture.py runs/RUN --name in_domain --out docs/before-after.png

The prompts are taken at even distances from the evaluation's, in its order: none is picked by eye.
"""

import argparse
import json
import textwrap
from itertools import groupby
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from raftdiff.reports.images import INK, PAPER, grid


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--name", default="", help="the evaluation's name")
    parser.add_argument("--prompts", type=int, default=9)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--columns", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("docs/before-after.png"))
    given = parser.parse_args()
    folder = given.run / "eval" / given.name
    asked = json.loads((folder / "pictures.json").read_text())
    prompts = [(caption, [name for name, _ in held]) for caption, held in groupby(asked.items(), key=lambda it: it[1])]
    chosen = prompts[:: max(1, len(prompts) // given.prompts)][: given.prompts]
    blocks = [block(folder, names[: given.seeds]) for _, names in chosen]
    captions = [caption.removesuffix(" background") for caption, _ in chosen]
    sheet(blocks, captions, given.columns).save(given.out, optimize=True)


def block(folder: Path, names: list[str]) -> Image.Image:
    """Before above after."""
    pictures = [Image.open(folder / side / name) for side in ("before", "after") for name in names]
    return grid(pictures, columns=len(names), cell=80, gap=5)


def sheet(blocks: list[Image.Image], captions: list[str], columns: int) -> Image.Image:
    """The blocks row by row, the caption under each."""
    font = ImageFont.load_default(14)
    width = blocks[0].width
    letters = int(width / font.getlength("n"))
    wrapped = [textwrap.fill(caption, letters) for caption in captions]
    height = blocks[0].height + 12 + 16 * max(caption.count("\n") + 1 for caption in wrapped)
    whole = Image.new("RGB", (columns * width, -(-len(blocks) // columns) * height), PAPER)
    pen = ImageDraw.Draw(whole)
    for place, (held, caption) in enumerate(zip(blocks, wrapped, strict=True)):
        left, top = place % columns * width, place // columns * height
        whole.paste(held, (left, top))
        pen.text((left + width / 2, top + held.height - 2), caption, fill=INK, font=font, anchor="ma", align="center")
    return whole


if __name__ == "__main__":
    main()
