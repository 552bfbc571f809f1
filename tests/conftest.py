"""One thread and no network: every test gives the same on every machine. Shapes in signatures are checked."""

import gc
import io
import multiprocessing
import os
import pickle
from collections.abc import Callable, Iterator
from functools import cache
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
gc.set_threshold(20_000, 50, 100)  # networks are made and dropped all the time: looking for garbage took a thirtieth


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


@pytest.fixture(scope="session", autouse=True)
def read_once() -> Iterator[None]:
    """A network is read from files once, and copied for whoever reads the same files again, in a fifth of the time; the
    parser of commands, a twelfth of a second's work, is made once."""
    from raftdiff.cli import main
    from raftdiff.diffusion.models import components
    from raftdiff.diffusion.models import loading as pictures
    from raftdiff.llm.model import loading as texts

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(main, "parser", cache(main.parser))
        for module in (components, pictures):
            patch.setattr(module, "read_part", copied(module.read_part, part))
        patch.setattr(texts, "_read", copied(texts._read, language_model))
        yield


def part(layout: Any, name: str, dtype: torch.dtype) -> tuple[list[Path], Any]:
    return [layout.path / name], (layout.family.components[name], dtype)


def language_model(config: Any, found: Any, kind: str, dtype: torch.dtype) -> tuple[list[Path], Any]:
    return [Path(place) for place in (found.root, found.adapter) if place], (config, found, kind, dtype)


def copied(read: Callable[..., Any], asked: Callable[..., tuple[list[Path], Any]]) -> Callable[..., Any]:
    """``read``, which answers with a copy where no file has changed since it read the same. ``asked`` says of its words
    in which folders it reads, and what else its answer follows from."""
    known: dict[Any, Packed] = {}

    def reading(*words: Any) -> Any:
        folders, rest = asked(*words)
        files = [file for folder in folders if folder.is_dir() for file in sorted(folder.rglob("*"))]
        if not files:  # it is on a hub, or nowhere
            return read(*words)
        stamps = ((str(file), file.stat().st_size, file.stat().st_mtime_ns, file.stat().st_ino) for file in files)
        key = (repr(rest), *stamps)
        if key not in known:
            known[key] = Packed(read(*words))
        return known[key].copy()

    return reading


class Packed:
    """What was read, and as many copies of it as are asked for: pickled, in a fourth of ``deepcopy``'s time, with the
    tensors beside."""

    def __init__(self, read: Any) -> None:
        self._tensors: dict[int, torch.Tensor] = {}
        written = io.BytesIO()
        pickler = pickle.Pickler(written, protocol=pickle.HIGHEST_PROTOCOL)
        pickler.persistent_id = self._beside  # type: ignore[method-assign]
        pickler.dump(read)
        self._written, self._kept = written.getvalue(), read

    def _beside(self, one: Any) -> int | None:
        if type(one) not in (torch.Tensor, torch.nn.Parameter):
            return None
        self._tensors[id(one)] = one
        return id(one)

    def copy(self) -> Any:
        made: dict[int, torch.Tensor] = {}

        def again(key: int) -> torch.Tensor:
            if key not in made:
                held, clone = self._tensors[key], placed(self._tensors[key])
                made[key] = torch.nn.Parameter(clone, held.requires_grad) if type(held) is not torch.Tensor else clone
            return made[key]

        unpickler = pickle.Unpickler(io.BytesIO(self._written))
        unpickler.persistent_load = again  # type: ignore[method-assign]
        return unpickler.load()


def placed(one: torch.Tensor) -> torch.Tensor:
    """A copy as far from a multiple of 64 bytes: the last bits of what is computed with it depend on that, and some
    tests compare them with those of a process that has read the file."""
    room = torch.empty(one.numel() + 64 // one.element_size(), dtype=one.dtype)
    start = (one.data_ptr() - room.data_ptr()) % 64 // one.element_size()
    return room[start:].as_strided(one.shape, one.stride()).copy_(one.detach())


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
