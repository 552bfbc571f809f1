"""Rules, selectors, sources of candidates and wordings on the demo's job, three seeds, at equal cost.

    OMP_NUM_THREADS=1 python tests/benchmarks/demo_methods.py --out runs/demo_methods     # 3 hours of a core
    python tests/benchmarks/demo_methods.py --out runs/demo_methods --methods raft dpo --seeds 1 loop.seed=2

Each is the recipe ``demo`` with one thing changed, run by ``raftdiff methods``, which tells the table; what is finished
is not run again. Learning rates are those that the rules had elsewhere; they were not searched here.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from raftdiff.cli.main import main as raftdiff
from raftdiff.diffusion.recipe_files import load_recipe
from raftdiff.recipes.config import plain

Change = Mapping[str, Any]
NAME = "demo_methods"


def rule(selector: dict[str, Any], rate: float, learning: str = "sft", **settings: Any) -> dict[str, Change]:
    told = {"learning": {"type": learning, **settings}, "learning_rate": rate}
    return {"ranker": {"selector": selector}, "finetuner": told}


def changes(drawing: dict[str, Any]) -> dict[str, dict[str, Change]]:
    """By name; ``drawing`` is the demo's sampler, guided."""
    advantage = {"type": "advantage"}
    unguided = {**drawing, "guidance": 1.0}
    return {
        "raft": {},
        "raft_random": rule({"type": "random", "keep": 2}, 3e-4),
        "nft": rule(advantage, 6e-4, "nft", most=1.0),
        "dpo": rule({"type": "best_worst"}, 5e-4, "dpo", beta=500.0),
        "unguided": {"sampler": unguided},
        "mixed": {"sampler": {"type": "mix", "parts": [{"share": 4, "sampler": it} for it in (drawing, unguided)]}},
        "coupled": {"prompts": {"decouple": False}},
        "no_magic": {"prompts": {"magic": ["{caption}"]}},
        "diverse": rule({"type": "diverse", "keep": 2, "penalty": 0.5}, 3e-4),
        "rwr": rule({"type": "softmax"}, 3e-4),
        "awm": rule(advantage, 3e-4, "advantage"),
        "kto": rule({"type": "threshold"}, 3e-4, "kto", beta=500.0),
        "best_1": rule({"type": "best_of_k", "keep": 1}, 3e-4),
    }


def written(folder: Path) -> dict[str, Path]:
    """The recipes, by name, and the one that they change."""
    folder.mkdir(parents=True, exist_ok=True)
    asked = ["finetuner.exposures=null", "evaluation.every_round=0", "logging.tracker=null"]
    common = plain(load_recipe("demo", asked))
    found = {}
    for name, change in {NAME: {}, **changes(common["sampler"])}.items():
        recipe = {**common, "name": name}
        for section, told in change.items():
            another = "type" in told and told["type"] != common[section].get("type")
            recipe[section] = told if another else {**common[section], **told}
        found[name] = folder / f"{name}.yaml"
        found[name].write_text(yaml.safe_dump(recipe))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs") / NAME)
    parser.add_argument("--methods", nargs="+", help="which (default: all)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    given = parser.parse_intermixed_args()
    recipes = written(given.out / "recipes")
    base = recipes.pop(NAME)
    asked = ",".join(str(recipes[name]) for name in given.methods or recipes)
    words = ["methods", str(base), "--methods", asked, "--seeds", str(given.seeds), "--training", "--guidance", "1,2,3"]
    return raftdiff([*words, "--out", str(given.out), *given.overrides])


if __name__ == "__main__":
    sys.exit(main())
