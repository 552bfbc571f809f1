"""The README's picture: for each prompt the base model's pictures above the tuned model's, same seeds.

python tests/benchmarks/readme_picture.py runs/demo --name in_domain --out docs/before-after.png
"""

import argparse
from pathlib import Path

from PIL import Image

from raftdiff.images import grid


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--name", default="", help="the evaluation's name")
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--out", type=Path, default=Path("docs/before-after.png"))
    given = parser.parse_args()
    folder = given.run / "eval" / given.name
    first = sorted((folder / "before").glob("*-000.png"))[: given.prompts]
    columns = len(first)
    pictures = [Image.open(path) for path in first] + [Image.open(folder / "after" / path.name) for path in first]
    names = [path.stem.removesuffix("-000").replace("-", " ").removesuffix(" background") for path in first]
    grid(pictures, columns=columns, labels=[f"before: {name}" for name in names] + ["after"] * columns, cell=96).save(
        given.out, optimize=True
    )


if __name__ == "__main__":
    main()
