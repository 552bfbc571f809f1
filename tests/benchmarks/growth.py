"""How a round grows with candidates, with prompts and with the side of its pictures, by processor time.

    OMP_NUM_THREADS=1 python tests/benchmarks/growth.py --out runs/growth

Small rounds of a recipe, as ``raftdiff bench`` has them: a few denoising steps, two optimizer steps, into a folder that
is thrown away. From one size at a time the others are reached, in turn, ``--repeats`` times; told are medians, with the
least and the greatest. ``growth.svg`` is by pictures drawn, ``growth-side.svg`` by the pixels of one.
"""

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from raftdiff.diffusion.assembly import assemble
from raftdiff.diffusion.recipe_files import load_recipe
from raftdiff.diffusion.speed.ways import small_round
from raftdiff.records.provenance import provenance
from raftdiff.reports.plots import over

PROMPTS, CANDIDATES = 2, 4
GROWN = {"candidates": (2, 4, 8, 16), "prompts": (1, 2, 4, 8), "side": (32, 48, 64, 80)}
STAGES = ("sample", "tune")
Seconds = Mapping[str, list[float]]
"""Of the whole round, and of its stages, a repeat each."""


def spent(assembly: object, prompts: int, candidates: int, side: int) -> dict[str, float]:
    """Processor seconds of a small round; its stages have their share of the clock."""
    began = time.process_time()
    call = small_round(assembly, prompts, candidates, (side, side))  # type: ignore[arg-type]
    whole = time.process_time() - began
    return {"round": whole, **{name: whole * call.parts.get(name, 0.0) / call.seconds for name in STAGES}}


def measured(recipe: str, overrides: Sequence[str], repeats: int) -> dict[str, dict[int, Seconds]]:
    own = load_recipe(recipe, [*overrides, "evaluation.every_round=0"])
    assembly = assemble(own)
    side = assembly.sampler.sizes[0][0]
    found: dict[str, dict[int, dict[str, list[float]]]] = {what: {} for what in GROWN}
    spent(assembly, 1, 2, side)  # what is made once, at the first call
    for repeat in range(repeats):
        for what, sizes in GROWN.items():
            for size in sizes:
                grown = {"prompts": PROMPTS, "candidates": CANDIDATES, "side": side} | {what: size}
                for name, seconds in spent(assembly, **grown).items():
                    found[what].setdefault(size, {}).setdefault(name, []).append(seconds)
                print(f"{repeat + 1}/{repeats} {what} {size}: {found[what][size]['round'][-1]:.1f} s", flush=True)
    return found


def table(found: Mapping[str, Mapping[int, Seconds]]) -> str:
    """Markdown: seconds of each size, and the round over that of the smallest size in the same repeat."""
    lines = [
        "| | round, s | drawing, s | tuning, s | times the smallest | times as many |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for what, sizes in found.items():
        least = min(sizes)
        for size, rows in sizes.items():
            times = [one / first for one, first in zip(rows["round"], sizes[least]["round"], strict=True)]
            seconds = [f"{statistics.median(rows[name]):.1f}" for name in ("round", *STAGES)]
            more = (size / least) ** (2 if what == "side" else 1)
            told = f"{statistics.median(times):.2f} ({min(times):.2f} to {max(times):.2f})"
            lines.append(f"| {what} {size} | {' | '.join(seconds)} | {told} | {more:g} |")
    return "\n".join(lines)


def plots(found: Mapping[str, Mapping[int, Seconds]]) -> dict[str, str]:
    def median(what: str, size: int, name: str = "round") -> float:
        return statistics.median(found[what][size][name])

    more = {
        "candidates": [(PROMPTS * size, median("candidates", size)) for size in found["candidates"]],
        "prompts": [(CANDIDATES * size, median("prompts", size)) for size in found["prompts"]],
    }
    larger = {
        called: [(size**2, median("side", size, name)) for size in found["side"]]
        for called, name in (("the whole round", "round"), ("drawing", "sample"))
    }
    return {
        "growth.svg": over(
            more, x="pictures drawn, by more candidates or more prompts", y="processor seconds of a round"
        ),
        "growth-side.svg": over(larger, x="pixels of a picture", y="processor seconds"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/growth"), help="default: %(default)s")
    parser.add_argument("--recipe", default="demo", help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=3, help="default: %(default)s")
    given, overrides = parser.parse_known_args()
    torch.set_num_threads(1)
    found = measured(given.recipe, overrides, given.repeats)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "growth.json").write_text(json.dumps({"provenance": provenance(), "seconds": found}, indent=1))
    for name, drawn in plots(found).items():
        (given.out / name).write_text(drawn)
    (given.out / "table.md").write_text(table(found) + "\n")
    print(table(found))


if __name__ == "__main__":
    main()
