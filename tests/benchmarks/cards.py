"""Which settings fit on which card: tables for the docs, counted from sizes alone.

    python tests/benchmarks/cards.py --cards 8 12 16 24
    python tests/benchmarks/cards.py --recipes flux_dev zimage --sides 512 1024

Rows are recipes that ship, at several sizes of picture, on the sizes of published models that are known in code.
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
from raftdiff.diffusion.recipe import Recipe
from raftdiff.diffusion.recipe_files import load_recipe
from raftdiff.records.provenance import provenance

RECIPES: dict[str, tuple[int, ...]] = {
    "sd15_256": (256,),
    "sd15_align": (512,),
    "sdxl_768": (768,),
    "sdxl_align": (1024,),
    "sd35_medium": (512, 768, 1024),
    "sana_1024": (512, 1024),
    "flux2_klein": (512, 768, 1024),
    "zimage": (512, 768, 1024),
    "flux_dev": (512, 768, 1024),
}
"""With the sides of the pictures, in pixels."""
WRITTEN: dict[str, tuple[Family, str]] = {
    "sd15": (StableDiffusion(), "sd1"),
    "sdxl": (StableDiffusionXL(), "sdxl"),
}
"""By how a recipe's name begins: families that write their published configs themselves."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cards", type=int, nargs="+", default=[8, 12, 16, 24], help="GB")
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    parser.add_argument(
        "--sides", type=int, nargs="+", help="of the pictures, in pixels; those of the table by default"
    )
    given = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        for name, side in ((recipe, side) for recipe in given.recipes for side in given.sides or RECIPES[recipe]):
            base = [f"sampler.height={side}", f"sampler.width={side}"]
            if made := WRITTEN.get(name.partition("_")[0]):
                folder = Path(scratch) / made[1]
                if not folder.is_dir():
                    folder.mkdir()
                    made[0].configs(made[1], None, folder, folder)
                base.append(f"model.base={folder}")

            def load(more: list[str], name: str = name, base: list[str] = base) -> Recipe:
                return load_recipe(name, [*base, *more])

            for card in given.cards:
                fitted = fit(load, footprint, card * 2**30)
                fits = fitted.last.worst.total <= card * 2**30
                row = {"recipe": name, "side": side, "card": card, "fits": fits, "needs": fitted.first.worst.total}
                row |= {"then": fitted.last.worst.total, "worst": fitted.last.worst.name}
                found.append(row | {"overrides": fitted.overrides})
                print(json.dumps(found[-1]), flush=True)
    print(json.dumps({"provenance": provenance(), "rows": found}))


if __name__ == "__main__":
    main()
