"""One thread and no network: every test gives the same on every machine. Shapes in signatures are checked."""

import os
from importlib.util import find_spec
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"

import numpy as np
import pytest
import torch
from jaxtyping import install_import_hook


def shaped() -> list[str]:
    """The modules whose signatures hold shapes. In the others mypy has seen to the types, and checking them at each
    call would take a third of all tests' time."""
    root = Path(__file__).parents[1]
    files = [path for top in ("raftdiff", "llm", "rewards", "apps") for path in (root / top).rglob("*.py")]
    names = [path.relative_to(root) for path in files if "from jaxtyping import" in path.read_text("utf-8")]
    parts = [path.with_suffix("").parts for path in names]
    return sorted({".".join(one if one[0] == "raftdiff" else ("raftdiff", *one)) for one in parts})


if find_spec("beartype"):  # not in the environment of `make lowest`
    install_import_hook(shaped(), "beartype.beartype")

torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """GPU tests need one, and say so where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):  # not by keyword: tests/gpu/ is one too
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and this machine has none"))


@pytest.fixture(scope="session")
def sheet() -> np.ndarray:
    """Stands for the art of the picture world: for each object in each style a disc, of its own colour and size."""
    from raftdiff.embedded.emoji.art import SIDE
    from raftdiff.embedded.emoji.world import OBJECTS, STYLES

    art = np.zeros((len(OBJECTS), len(STYLES), SIDE, SIDE, 4), dtype=np.uint8)
    away = np.hypot(*(np.mgrid[:SIDE, :SIDE] - SIDE / 2))
    for number in range(len(OBJECTS) * len(STYLES)):
        colour = (7 * number % 256, 31 * number % 256, 83 * number % 256, 255)
        art[divmod(number, len(STYLES))][away < 20 + number % 40] = colour
    return art
