"""What the loop itself costs: the share of a round that is spent outside networks, backward passes and rewards.

    OMP_NUM_THREADS=1 python tests/benchmarks/overhead.py demo --plot overhead.svg
    OMP_NUM_THREADS=1 python tests/benchmarks/overhead.py demo loop.prompts_per_round=4 finetuner.steps=20    # shorter

Processor time of one round, all threads together, so that other jobs on the machine change little. The parts are timed
where they are called, in the thread that calls them (hence one thread for PyTorch); all else is the loop's own: the
optimizer's step and the solver's, pictures out of tensors and onto the disk, lines, checksums, reading back, selection.
The largest of that are timed too.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from raftdiff.diffusion.assembly import assemble
from raftdiff.diffusion.learning.descent import Descent
from raftdiff.diffusion.recipe_files import load_recipe
from raftdiff.raft import raft
from raftdiff.records import integrity, media, rounds
from raftdiff.records.provenance import provenance
from raftdiff.records.run import Run
from raftdiff.reports.plots import Bar, bars

PARTS: dict[str, float] = {}
"""Seconds of networks, backward passes and rewards."""
OWN: dict[str, float] = {}
"""Seconds of what else was timed, less what of the parts lies within."""
_within: list[float] = []


def timed(name: str, call: Callable[..., Any], table: dict[str, float]) -> Callable[..., Any]:
    """``call``, whose processor time in its thread is added up in ``table``, less what of it was timed within."""

    def wrapper(*args: Any, **words: Any) -> Any:
        _within.append(0.0)
        began = time.thread_time()
        try:
            return call(*args, **words)
        finally:
            spent, inner = time.thread_time() - began, _within.pop()
            table[name] = table.get(name, 0.0) + spent - inner
            if _within:
                _within[-1] += spent

    return wrapper


def plain(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """The same of what runs in the other thread, and holds nothing else that is timed."""

    def wrapper(*args: Any, **words: Any) -> Any:
        began = time.thread_time()
        try:
            return call(*args, **words)
        finally:
            OWN[name] = OWN.get(name, 0.0) + time.thread_time() - began

    return wrapper


def watch(assembly: Any) -> None:
    """Time the parts of an assembled recipe, and what of the loop's own is worth a name."""
    model = assembly.model
    texts = [(module, "text encoders") for module in model.text_encoders.values()]
    for module, name in ((model.denoiser, "denoiser"), (model.vae, "VAE"), *texts):
        module.forward = timed(name, module.forward, PARTS)
    model.vae.decode = timed("VAE", model.vae.decode, PARTS)
    torch.autograd.backward = timed("backward", torch.autograd.backward, PARTS)
    for reward, _ in assembly.ranker.rewards:
        object.__setattr__(reward, "score", timed("rewards", reward.score, PARTS))
    Descent.step = timed("optimizer", Descent.step, OWN)  # type: ignore[method-assign]
    scheduler = type(assembly.parts.sampler.scheduler)
    scheduler.step = timed("solver", scheduler.step, OWN)
    for room, name, told in (
        (media, "png", "packing pictures"),
        (media, "whole", "reading pictures"),
        (integrity, "digest", "checksums"),
        (rounds, "append", "lines"),
        (rounds, "save_tensors", "tensors"),
    ):
        setattr(room, name, plain(told, getattr(room, name)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="where the round's time goes, as SVG")
    given = parser.parse_intermixed_args()
    torch.set_num_threads(1)
    recipe = load_recipe(given.recipe, [*given.overrides, "loop.rounds=1", "logging.tracker=null"])
    assembly = assemble(recipe)
    watch(assembly)
    with tempfile.TemporaryDirectory() as folder:
        run = Run.create(Path(folder) / "run", recipe, seed=0)
        began, clock = time.process_time(), time.perf_counter()
        list(raft(run, assembly.parts))
        total, clock = time.process_time() - began, time.perf_counter() - clock
    own = total - sum(PARTS.values())
    figures = {"processor_seconds": total, "seconds": clock, "parts": PARTS, "own": own, "own_share": own / total}
    print(json.dumps({**figures, "of_own": OWN, "load": os.getloadavg(), "provenance": provenance()}, indent=2))
    if given.plot:
        shares = {name: 100 * seconds / total for name, seconds in {**PARTS, "the loop's own": own}.items()}
        held = [Bar(name.replace(" ", "\n"), share) for name, share in shares.items()]
        given.plot.write_text(bars(held, x="where the time goes", y="% of a round's processor time", level=5.0) + "\n")


if __name__ == "__main__":
    main()
