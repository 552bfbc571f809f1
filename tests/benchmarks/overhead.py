"""What the loop itself costs: the share of a round that is spent outside network, VAE and reward.

    python tests/benchmarks/overhead.py demo loop.rounds=1

The named parts are timed where they are called, within one run: the share does not depend on the machine's speed.
"""

import argparse
import contextlib
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from raftdiff.diffusion.assembly import assemble
from raftdiff.diffusion.recipe import load_recipe
from raftdiff.raft import raft
from raftdiff.records.provenance import provenance
from raftdiff.records.run import Run

SPENT: dict[str, float] = {}
_depth = 0


def timed(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """``call``, whose time is added up under ``name``; only the outermost of nested parts counts."""

    def wrapper(*args: Any, **words: Any) -> Any:
        global _depth  # noqa: PLW0603
        _depth += 1
        began = time.perf_counter()
        try:
            return call(*args, **words)
        finally:
            _depth -= 1
            if not _depth:
                SPENT[name] = SPENT.get(name, 0.0) + time.perf_counter() - began

    return wrapper


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_args()
    recipe = load_recipe(given.recipe, [*given.overrides, "loop.rounds=1", "logging.tracker=null"])
    assembly = assemble(recipe)
    model = assembly.model
    texts = [(module, "text encoder") for module in model.text_encoders.values()]
    for module, name in ((model.denoiser, "U-Net"), (model.vae, "VAE"), *texts):
        module.forward = timed(name, module.forward)
    model.vae.decode = timed("VAE", model.vae.decode)
    torch.Tensor.backward = timed("backward", torch.Tensor.backward)  # type: ignore[method-assign]
    object.__setattr__(assembly.ranker, "raw", timed("reward", assembly.ranker.raw))
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(StopIteration):
        run = Run.create(Path(folder) / "run", recipe, seed=0)
        began = time.perf_counter()
        list(raft(run, assembly.parts))
        total = time.perf_counter() - began
    own = total - sum(SPENT.values())
    figures = {"seconds": total, "parts": SPENT, "own": own, "own_share": own / total}
    print(json.dumps({**figures, "provenance": provenance()}, indent=2))


if __name__ == "__main__":
    main()
