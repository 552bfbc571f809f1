"""Which settings fit on which card: a table for the docs, counted from sizes alone.

    python tests/benchmarks/cards.py --cards 6 8 12 16 24

Rows are recipes that ship, at several sizes of picture, on the published configs that are written in code.
"""

import argparse
import json
import tempfile
from pathlib import Path

from raftdiff.diffusion.families.family import Family
from raftdiff.diffusion.families.sd import StableDiffusion
from raftdiff.diffusion.families.sdxl import StableDiffusionXL
from raftdiff.diffusion.memory.card import fit
from raftdiff.diffusion.memory.footprint import footprint
from raftdiff.diffusion.recipe import Recipe, load_recipe
from raftdiff.records.provenance import provenance

ROWS: tuple[tuple[str, Family, str, int], ...] = (
    ("sd15_256", StableDiffusion(), "sd1", 256),
    ("sd15_align", StableDiffusion(), "sd1", 512),
    ("sdxl_768", StableDiffusionXL(), "sdxl", 768),
    ("sdxl_align", StableDiffusionXL(), "sdxl", 1024),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cards", type=int, nargs="+", default=[6, 8, 12, 16, 24], help="GB")
    given = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        for name, family, kind, side in ROWS:
            folder = Path(scratch) / kind
            if not folder.is_dir():
                folder.mkdir()
                family.configs(kind, None, folder, folder)
            base = [f"model.base={folder}", f"sampler.height={side}", f"sampler.width={side}"]

            def load(more: list[str], name: str = name, base: list[str] = base) -> Recipe:
                return load_recipe(name, [*base, *more])

            for card in given.cards:
                made = fit(load, footprint, card * 2**30)
                fits = made.last.worst.total <= card * 2**30
                row = {"recipe": name, "side": side, "card": card, "fits": fits, "needs": made.first.worst.total}
                found.append({**row, "then": made.last.worst.total, "overrides": made.overrides})
                print(json.dumps(found[-1]), flush=True)
    print(json.dumps({"provenance": provenance(), "rows": found}))


if __name__ == "__main__":
    main()
