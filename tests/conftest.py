"""One thread and no network: every test gives the same on every machine. Shapes in signatures are checked."""

import gc
import multiprocessing
import os
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"

import numpy as np
import pytest
import torch
from jaxtyping import install_import_hook, jaxtyped

SHARED = "raftdiff.types"
"""Of its records Scores alone holds shapes; the others are made for every sample."""


def shaped() -> list[str]:
    """The modules whose signatures hold shapes, but for ``SHARED``. In the others mypy has seen to the types, and
    checking them at each call would take a third of all tests' time."""
    root = Path(__file__).parents[1]
    files = [path for top in ("raftdiff", "llm", "rewards", "apps") for path in (root / top).rglob("*.py")]
    names = [path.relative_to(root) for path in files if "from jaxtyping import" in path.read_text("utf-8")]
    parts = [path.with_suffix("").parts for path in names]
    return sorted({".".join(one if one[0] == "raftdiff" else ("raftdiff", *one)) for one in parts} - {SHARED})


if find_spec("beartype"):  # not in the environment of `make lowest`
    install_import_hook(shaped(), "beartype.beartype")
    from beartype import beartype

    from raftdiff.types import Scores

    jaxtyped(Scores, typechecker=beartype)

torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """GPU tests need one, and say so where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):  # not by keyword: tests/gpu/ is one too
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and this machine has none"))


def pytest_collection_finish() -> None:
    """What was imported and collected stays: no collection of garbage needs to look through it again, at 0.3 s each."""
    gc.collect()
    gc.freeze()


SLOW_TO_IMPORT = [
    "accelerate",
    "diffusers.models.unets.unet_2d_condition",
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
    "peft",
    "torch.utils.tensorboard",
    "transformers.models.llama.modeling_llama",
]
Forked = Callable[..., multiprocessing.Process]


@pytest.fixture(scope="session")
def nursery() -> Any:
    """A process that has imported what takes many seconds, and done nothing else; others are forked off it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(SLOW_TO_IMPORT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        forkserver.ensure_running()
    return context


@pytest.fixture
def forked(nursery: Any, tmp_path: Path) -> Iterator[Forked]:
    """``forked(program, out, **environment)``: a process of its own that runs these lines, has this test's folder and
    environment, and writes what it says to the file ``out`` of ``tmp_path``."""
    started = []

    def start(program: str, out: str = "said.txt", **environment: str) -> multiprocessing.Process:
        begin = (
            "import os, sys\n"
            f"os.dup2(os.open({str(tmp_path / out)!r}, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)\n"
            "os.dup2(1, 2)\n"
            "sys.stdout, sys.stderr = (open(place, 'w', buffering=1, closefd=False) for place in (1, 2))\n"
            f"os.environ.clear()\nos.environ.update({ {**os.environ, **environment}!r})\n"
        )
        started.append(nursery.Process(target=exec, args=(begin + program, {"__name__": "__main__"})))
        started[-1].start()
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.join()
        process.close()


@pytest.fixture(scope="session")
def sheet() -> np.ndarray:
    """Stands for the art of the picture world: for each object in each style a disc, of its own colour and size."""
    from raftdiff.embedded.scenes.art import OBJECTS, SIDE, STYLES

    art = np.zeros((len(OBJECTS), len(STYLES), SIDE, SIDE, 4), dtype=np.uint8)
    away = np.hypot(*(np.mgrid[:SIDE, :SIDE] - SIDE / 2))
    for number in range(len(OBJECTS) * len(STYLES)):
        colour = (7 * number % 256, 31 * number % 256, 83 * number % 256, 255)
        art[divmod(number, len(STYLES))][away < 20 + number % 40] = colour
    return art
