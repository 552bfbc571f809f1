"""Small commands: check-reward, recipes, schema."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from raftdiff.errors import UserError
from raftdiff.recipes import registry
from raftdiff.recipes.config import Config
from raftdiff.recipes.config import options as configured
from raftdiff.types import Sample

PICTURES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff")
SHOWN = 64
"""A reward is tried on so many pictures of a folder."""


def check_reward(args: argparse.Namespace) -> int:
    """Try a reward on pictures or answers, and print what it keeps and what it breaks."""
    from raftdiff import testing
    from raftdiff.embedded import resolve

    options = reward_type(args.reward)
    on_pictures, on_texts = (registry.sources(group) for group in ("rewards", "text_rewards"))
    texts = args.text or (options["type"] not in on_pictures and options["type"] in on_texts)
    kind = registry.load(_group(texts), options["type"])
    config = configured(kind, options, args.overrides, f"the reward '{args.reward}'")
    reward = config.build(device="cpu", resolve=resolve)  # type: ignore[attr-defined]
    pictures = _pictures(args.pictures)
    samples: list[Sample[Any]] = (
        [*testing.answer_samples()]
        if texts
        else [*testing.reward_samples([*pictures.values()], names=[*pictures] or None)]
    )
    result = testing.check_reward(reward, samples)
    print(result)
    return 0 if result.passed else 1


def reward_type(word: str) -> dict[str, str]:
    """What a word of the command line says of a reward: its name, or a ``module:function``."""
    return {"type": "callable", "function": word, "name": word} if ":" in word else {"type": word}


def recipes(args: argparse.Namespace) -> None:
    """Each recipe's name and the first line of its file, by what it is for."""
    from raftdiff.recipes.files import FOLDERS
    from raftdiff.recipes.files import recipes as shipped

    known = shipped()
    width = max(map(len, known))
    for folder, kind in FOLDERS.items():
        print(f"{kind}:" if not folder else f"\n{kind}:")
        for name, path in known.items():
            if path.parent.name == (folder or "configs"):
                first = path.read_text(encoding="utf-8").splitlines()[1].removeprefix("#").strip()
                print(f"  {name:{width}}  {first}")


def schema(args: argparse.Namespace) -> None:
    from raftdiff.diffusion.recipe import Recipe
    from raftdiff.llm.pipeline import PipelineRecipe
    from raftdiff.llm.recipe import TextRecipe
    from raftdiff.llm.reward_runs.recipe import RewardRecipe

    known: dict[str, type[Config]] = {
        "image": Recipe,
        "text": TextRecipe,
        "preferences": RewardRecipe,
        "pipeline": PipelineRecipe,
    }
    print(json.dumps(known[args.media].model_json_schema(), indent=2))


def _group(texts: bool) -> registry.Group:
    return "text_rewards" if texts else "rewards"


def _pictures(place: Path | None) -> dict[str, Image.Image]:
    """The first pictures of a folder, or the one of a file, by name; it is said what was left out."""
    from raftdiff.errors import counted
    from raftdiff.measures.pictures import is_flat, opened
    from raftdiff.recipes.needs import near

    if place is None:
        return {}
    if not place.exists():
        raise UserError(f"{place}: nothing is there. {near(str(place))}".rstrip())
    files = [place] if place.is_file() else sorted(path for path in place.glob("[!.]*") if path.is_file())
    found = [path for path in files if path.suffix.lower() in PICTURES]
    if not found:
        raise UserError(f"{place}: there is no picture here. Known: {', '.join(PICTURES)}.")
    if others := sorted({path.suffix.lower() or path.name for path in files if path not in found}):
        told = ", ".join(others[:5]) + (" ..." if len(others) > 5 else "")
        print(f"left out: {counted(len(files) - len(found), 'file')} of other kinds ({told})", file=sys.stderr)
    if len(found) > SHOWN:
        print(f"left out: all but the first {SHOWN} of {len(found)} pictures", file=sys.stderr)
    pictures = {path.name: opened(path) for path in found[:SHOWN]}
    if flat := [name for name, picture in pictures.items() if is_flat(picture)]:
        print(f"of one colour all over: {', '.join(flat)}", file=sys.stderr)  # as colours of 16 bits with small values
    return pictures
