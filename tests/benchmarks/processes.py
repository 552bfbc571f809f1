"""How much faster a round is shared by several processes: drawing and tuning by the clock, beside one process.

    OMP_NUM_THREADS=1 python tests/benchmarks/processes.py --out runs/processes

Two rounds at a time, in turn, ``--repeats`` times, a thread for each process: beyond the cores nothing is to be gained.
The clock says something on a quiet machine alone. Both stretches are those that the run writes of its second round: in
the first, drawing waits until the other processes have loaded the model, which took 6 s where this was tried.
``processes.svg`` is by the number of processes.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from raftdiff.records.provenance import provenance
from raftdiff.records.run import Run
from raftdiff.reports.plots import over

JOB = (
    *("loop.rounds=2", "loop.prompts_per_round=6", "loop.candidates=8", "sampler.batch_size=8", "finetuner.steps=8"),
    *("finetuner.exposures=null", "evaluation.every_round=0", "logging.tracker=null"),
)
STAGES = {"sample": "drawing", "tune": "tuning"}
Seconds = Mapping[int, Mapping[str, Sequence[float]]]
"""By processes and stage, a repeat each."""


def once(recipe: str, overrides: Sequence[str], processes: int, folder: Path) -> dict[str, float]:
    """Seconds of each stage of the second round, by the clock."""
    shutil.rmtree(folder, ignore_errors=True)
    begin = [sys.executable, "-m"]
    if processes > 1:
        begin = [*begin, "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    words = ["raftdiff.cli.main", "train", recipe, *JOB, *overrides, "--out", str(folder)]
    subprocess.run([*begin, *words], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    found = Run.open(folder).metrics()[1]["seconds"]
    return {stage: float(found[stage]) for stage in STAGES}


def measured(given: argparse.Namespace, overrides: Sequence[str]) -> dict[int, dict[str, list[float]]]:
    found: dict[int, dict[str, list[float]]] = {count: {stage: [] for stage in STAGES} for count in given.processes}
    for repeat in range(given.repeats):
        for count, stages in found.items():
            for stage, seconds in once(given.recipe, overrides, count, given.out / "run").items():
                stages[stage].append(seconds)
            told = ", ".join(f"{STAGES[stage]} {seconds[-1]:.1f} s" for stage, seconds in stages.items())
            print(f"{repeat + 1}/{given.repeats}: {count} processes, {told}", flush=True)
    return found


def faster(found: Seconds, stage: str, count: int) -> list[float]:
    """Of each repeat: the seconds of the fewest processes over those of ``count``.

    >>> faster({1: {"tune": [6.0, 9.0]}, 2: {"tune": [4.0, 4.5]}}, "tune", 2)
    [1.5, 2.0]
    """
    return [one / own for one, own in zip(found[min(found)][stage], found[count][stage], strict=True)]


def table(found: Seconds) -> str:
    """Markdown: medians, with the least and the greatest of the repeats."""
    lines = [
        f"| processes | {' | '.join(f'{it}, s | times as fast' for it in STAGES.values())} |",
        "|--:|--:|--:|--:|--:|",
    ]
    for count, stages in found.items():
        cells = []
        for stage, seconds in stages.items():
            times = faster(found, stage, count)
            cells += [
                f"{statistics.median(seconds):.1f}",
                f"{statistics.median(times):.2f} ({min(times):.2f} to {max(times):.2f})",
            ]
        lines.append(f"| {count} | {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(found: Seconds) -> str:
    groups = {
        name: [(float(count), statistics.median(faster(found, stage, count))) for count in found]
        for stage, name in STAGES.items()
    }
    return over(groups, x="processes", y="times as fast as one, by the clock")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/processes"), help="default: %(default)s")
    parser.add_argument("--recipe", default="scene_small", help="default: %(default)s")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4], help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=3, help="default: %(default)s")
    given, overrides = parser.parse_known_args()
    given.out.mkdir(parents=True, exist_ok=True)
    found = measured(given, overrides)
    (given.out / "processes.json").write_text(json.dumps({"provenance": provenance(), "seconds": found}, indent=1))
    (given.out / "processes.svg").write_text(plot(found))
    (given.out / "table.md").write_text(table(found) + "\n")
    print(table(found))


if __name__ == "__main__":
    main()
