"""A recipe for a random model of a few thousand weights, on which methods are set side by side."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

RECIPE: dict[str, Any] = {
    "name": "tiny",
    "prompts": {"captions": ["a cat", "a dog", "a red car"]},
    "sampler": {"type": "diffusion", "steps": 2, "guidance": 2.0, "batch_size": 6},
    "ranker": {"rewards": [{"type": "jpeg"}], "selector": {"type": "best_of_k"}},
    "finetuner": {
        "type": "diffusion",
        "rank": 2,
        "steps": 2,
        "batch_size": 2,
        "exposures": None,
        "learning_rate": 1e-2,
    },
    "loop": {"rounds": 2, "candidates": 3},
    "evaluation": {"prompts": {"captions": ["a bus", "a tree"]}, "samples_per_prompt": 2},
    "logging": {"tracker": None},
}
RecipeFile = Callable[..., str]


@pytest.fixture
def recipe_file(tmp_path: Path, models: dict[str, Path]) -> RecipeFile:
    """``recipe_file(name)``: the file of the recipe under a name of its own."""

    def write(name: str = "tiny", **changes: Any) -> str:
        model = {"base": str(models["sd15"]), "device": "cpu"}
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**RECIPE, "model": model, **changes, "name": name}))
        return str(path)

    return write
