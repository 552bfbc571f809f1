"""Whether the loop's memory stays flat: what the process holds after each round of many, and how fast it grows.

    OMP_NUM_THREADS=1 python tests/benchmarks/memory.py --rounds 50 --plot memory.svg

The loop itself, on a random model of a few thousand weights with pictures of 16 px, so that a round is short and what
every round leaves behind is a large share of it. The slope is a straight line through the rounds after the first
``--settling``, by least squares, with its 95% interval; neighbouring rounds are taken for independent, so the interval
is somewhat too narrow. Tensors and open files are counted as they are when a round is committed.
"""

import argparse
import gc
import json
import os
import tempfile
import threading
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from raftdiff.diffusion.assembly import assemble
from raftdiff.diffusion.models import tiny
from raftdiff.diffusion.recipe_files import load_recipe
from raftdiff.raft import raft
from raftdiff.records.provenance import provenance
from raftdiff.records.run import Run
from raftdiff.reports.plots import Course, courses

RECIPE = {
    "name": "memory",
    "prompts": {"captions": ["a cat", "a dog"]},
    "sampler": {"type": "diffusion", "steps": 2, "guidance": 2.0, "batch_size": 4},
    "ranker": {"rewards": [{"type": "jpeg"}], "selector": {"type": "best_of_k"}},
    "finetuner": {"type": "diffusion", "rank": 2, "steps": 2, "batch_size": 2},
    "evaluation": {"prompts": {"captions": ["a bus"]}, "every_round": 1},
    "logging": {"tracker": None},
}


def held() -> dict[str, int]:
    """What this process holds now."""
    gc.collect()
    tensors = [it for it in gc.get_objects() if type(it) in (torch.Tensor, torch.nn.Parameter)]
    return {
        "resident_bytes": int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"),
        "tensors": len(tensors),
        "tensor_bytes": sum(it.nbytes for it in tensors),
        "files": len(list(Path("/proc/self/fd").iterdir())),
        "threads": threading.active_count(),
    }


def slope(values: Sequence[float]) -> tuple[float, float, float]:
    """How much a value grows in a round, and the ends of its 95% interval."""
    rounds = np.arange(len(values)) - (len(values) - 1) / 2
    grows = float(rounds @ values / (rounds @ rounds))
    left = np.asarray(values) - np.mean(values) - grows * rounds
    half = 1.96 * float(np.sqrt(left @ left / max(len(values) - 2, 1) / (rounds @ rounds)))
    return grows, grows - half, grows + half


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--settling", type=int, default=10)
    parser.add_argument("--candidates", type=int, default=4)
    parser.add_argument("--plot", type=Path, metavar="FILE", help="the process's memory by round, as SVG")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        loop = {"rounds": given.rounds, "candidates": given.candidates}
        model = {"base": str(tiny.write_folder(folder / "model", "sd15")), "device": "cpu"}
        (folder / "memory.yaml").write_text(yaml.safe_dump({**RECIPE, "model": model, "loop": loop}))
        recipe = load_recipe(str(folder / "memory.yaml"), [])
        parts: Any = assemble(recipe).parts
        run, rows, began = Run.create(folder / "run", recipe, seed=0), list[dict[str, int]](), time.process_time()
        for _ in raft(run, parts):
            rows.append(held())
    settled = [row["resident_bytes"] / 1024 for row in rows[given.settling :]]
    grows, low, high = slope(settled)
    figures = {
        "rounds": len(rows),
        "processor_seconds": time.process_time() - began,
        "resident_kib_a_round": {"slope": grows, "low": low, "high": high},
        "resident_mib": {"after_settling": settled[0] / 1024, "last": settled[-1] / 1024, "most": max(settled) / 1024},
        "first": rows[0],
        "settled": rows[given.settling],
        "last": rows[-1],
    }
    print(json.dumps({**figures, "provenance": provenance()}, indent=2))
    if given.plot:
        points = [(place + 1.0, row["resident_bytes"] / 2**20) for place, row in enumerate(rows)]
        given.plot.write_text(courses({"the process": Course(points)}, {}, x="rounds", y="MiB in memory") + "\n")


if __name__ == "__main__":
    main()
