"""What pruned best of K costs and what it gives, on the world that ships: the reward of the best of 8 that were all
drawn to the end, beside that of pruned ones at half of the network evaluations and at as many.

    python tests/benchmarks/pruning.py draw --out runs/pruning       # 6 minutes of one thread
    python tests/benchmarks/pruning.py table runs/pruning

``draw`` draws 12 candidates of each prompt to the end, by the recipe ``demo``, and rewards what the predictions of the
second to the fifth of 8 steps mean. Pruning changes no bit of those that it leaves, so each way to prune can be read
off that table; the first 8 candidates are the full best of 8. Settings are chosen on prompts of ``demo.txt`` and
reported on others, of kinds that the model never saw (``scene_align.txt``), with other seeds. The judge, whom no reward
and no choice sees, says which of the chosen pictures show exactly what was asked for. What is drawn already is not
drawn again.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise, product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from raftdiff.diffusion.assembly import build_ranker
from raftdiff.diffusion.models import loading
from raftdiff.diffusion.recipe import Recipe
from raftdiff.diffusion.recipe_files import load_recipe
from raftdiff.diffusion.sampler import DiffusionSampler
from raftdiff.diffusion.sampling.pruned import meant
from raftdiff.embedded import resolve
from raftdiff.embedded.worlds import open_judge
from raftdiff.measures.statistics import mean_std_ci
from raftdiff.ranking import Ranker
from raftdiff.recipes.prompts import build
from raftdiff.seeds import fold
from raftdiff.selection.pruning import going_on
from raftdiff.types import Prompt, Sample

PROMPTS = {"chosen": "demo.txt", "reported": "scene_align.txt"}
FULL, MOST, SEEN = 8, 12, (2, 3, 4, 5)
"""Candidates of the full best, and of the widest pruned one; after which steps previews are rewarded."""


class Drawn(NamedTuple):
    """Candidates of some prompts with one seed or several, a row a prompt and seed."""

    prompts: list[str]
    previews: np.ndarray
    """(rows, candidates, steps): the reward of what the prediction of a step means, NaN for those that were not looked
    at, and of the last the picture's own."""
    exact: np.ndarray
    """(rows, candidates): 1 where the judge finds what was asked for."""


class Way(NamedTuple):
    """A way to prune, in whole steps and candidates."""

    candidates: int
    looks: tuple[tuple[int, int], ...]
    """After how many steps, and how many go on."""

    def steps(self, steps: int) -> int:
        """Denoising steps of a prompt's candidates together."""
        looks = [(0, self.candidates), *self.looks, (steps, 0)]
        return sum(kept * (after - at) for (at, kept), (after, _) in pairwise(looks))

    def choice(self, previews: np.ndarray) -> np.ndarray:
        """The candidate that each row ends with, by its last column among those left."""
        there = np.zeros(previews.shape[:2], dtype=bool)
        there[:, : self.candidates] = True
        for step, kept in self.looks:
            there = going_on(previews[:, :, step - 1], there, kept)
        return np.where(there, previews[:, :, -1], -np.inf).argmax(axis=1)

    def __str__(self) -> str:
        looks = ", ".join(f"{kept} after step {step}" for step, kept in self.looks)
        return f"{self.candidates} candidates; {looks}" if looks else f"{self.candidates}, all drawn"


def ways(steps: int, candidates: Sequence[int]) -> Iterator[Way]:
    """Those with one look or two."""
    seen = [step for step in SEEN if step < steps]
    for count in candidates:
        kept = [one for one in (1, 2, 3, 4, 6, 8) if one < count]
        for step, one in product(seen, kept):
            yield Way(count, ((step, one),))
        for (first, second), (fewer, more) in product(combinations(seen, 2), combinations(kept, 2)):
            yield Way(count, ((first, more), (second, fewer)))


def rewarded(
    sampler: DiffusionSampler, ranker: Ranker[Any], prompt: Prompt, seed: int, candidates: int
) -> Iterator[dict[str, Any]]:
    """A row for each candidate of a prompt: what the rewards say of it after every step, and of its picture."""
    jobs = [(prompt, index) for index in range(candidates)]
    noise, generators = sampler.noise(jobs, fold(seed, "pruning"), sampler.sizes[0])
    solver, said = sampler.solver(), []

    def totals(latents: torch.Tensor) -> list[float]:
        pictures[:] = sampler.decoded(latents)
        samples = [Sample(0, prompt, k, k, "policy", picture) for k, picture in enumerate(pictures)]
        raw = {name: values[None] for name, values in ranker.raw(samples).items()}  # one prompt's
        return [float(it) for it in ranker.total(raw)[0]]

    pictures: list[Any] = []
    began, looked = time.process_time(), 0.0
    begun, texts = sampler.begun(noise, solver), sampler.texts(jobs)
    for number, step in enumerate(sampler.steps(solver, solver.timesteps, begun, texts, generators), start=1):
        if number in SEEN or number == sampler.config.steps:
            before = time.process_time()
            last = number == sampler.config.steps
            said.append(totals(step.following if last else meant(sampler.parts.process, step)))
            looked += time.process_time() - before
        else:
            said.append([math.nan] * candidates)
    seconds = {"evaluation": time.process_time() - began - looked, "preview": looked}
    shown = sum(not math.isnan(one[0]) for one in said)
    costs = {"evaluation": seconds["evaluation"] / sampler.config.evaluations, "preview": seconds["preview"] / shown}
    exact = open_judge("scene-judge")(pictures, [prompt.caption] * candidates)["exact"]
    for index, column in enumerate(zip(*said, strict=True)):
        row = {"prompt": prompt.id, "seed": seed, "index": index, "previews": column, "exact": float(exact[index])}
        yield row | {"seconds": {name: cost / candidates for name, cost in costs.items()}}


def draw(recipe: Recipe, out: Path, counts: dict[str, int], seeds: Sequence[int], candidates: int) -> None:
    """Into ``out``, a file a part, what is not there yet."""
    out.mkdir(parents=True, exist_ok=True)
    sampler = recipe.sampler.build(loading.load(recipe.model, resolve))
    ranker = build_ranker(recipe, device="cpu")
    for part, name in PROMPTS.items():
        file = out / f"{part}.jsonl"
        there = {(row["prompt"], row["seed"]) for row in _rows(file)}
        config = recipe.prompts.model_copy(update={"captions": _captions(name, counts[part])})
        own = [seed + 100 for seed in seeds[:1]] if part == "chosen" else seeds
        for prompt, seed in product(build(config), own):
            if (prompt.id, seed) not in there:
                rows = list(rewarded(sampler, ranker, prompt, seed, candidates))
                with file.open("a") as lines:
                    lines.writelines(json.dumps(row) + "\n" for row in rows)


def read(file: Path) -> Drawn:
    held: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in _rows(file):
        held.setdefault((row["prompt"], row["seed"]), []).append(row)
    previews, exact = ([[row[name] for row in rows] for rows in held.values()] for name in ("previews", "exact"))
    return Drawn([prompt for prompt, _ in held], np.array(previews), np.array(exact))


def spearman(drawn: Drawn) -> np.ndarray:
    """(rows, steps): of a preview's rank with the picture's, within each row's candidates."""
    ranks = drawn.previews.argsort(axis=1).argsort(axis=1).astype(float)  # rewards are not tied
    centred = ranks - ranks.mean(axis=1, keepdims=True)
    unit = centred / np.sqrt((centred**2).sum(axis=1, keepdims=True))
    return (unit * unit[:, :, -1:]).sum(axis=1)


def best(drawn: Drawn, within: Sequence[Way], steps: int) -> Way:
    """Of the ways that take at most so many denoising steps, the one that chose the highest reward."""
    whole, rows = drawn.previews.shape[2], np.arange(len(drawn.prompts))
    return max(
        (way for way in within if way.steps(whole) <= steps),
        key=lambda way: float(drawn.previews[rows, way.choice(drawn.previews), -1].mean()),
    )


def told(drawn: Drawn, way: Way, full: Way) -> dict[str, str]:
    """A line of the table: cost, reward and judge of what is chosen, and the reward's difference from the full best."""
    rows, whole = np.arange(len(drawn.prompts)), drawn.previews.shape[2]
    picked, ours = (it.choice(drawn.previews) for it in (way, full))
    reward, own = drawn.previews[rows, picked, -1], drawn.previews[rows, ours, -1]
    more = _interval(drawn, reward - own)
    return {
        "way": str(way),
        "steps": f"{way.steps(whole)} ({way.steps(whole) / full.steps(whole):.0%})",
        "reward": _interval(drawn, reward),
        "less the full best of 8": "-" if way == full else more,
        "same picture": f"{np.mean(picked == ours):.0%}",
        "judge: exact": f"{drawn.exact[rows, picked].mean():.0%}",
    }


def _interval(drawn: Drawn, values: np.ndarray) -> str:
    """The mean with its interval, resampled by prompts: seeds of one prompt are alike."""
    names = list(dict.fromkeys(drawn.prompts))
    table = np.full((len(names), max(map(drawn.prompts.count, names))), np.nan)
    for row, name in enumerate(names):
        own = [value for value, prompt in zip(values, drawn.prompts, strict=True) if prompt == name]
        table[row, : len(own)] = own
    found = mean_std_ci(table)
    return f"{found.mean:.2f} ({found.ci95[0]:.2f} to {found.ci95[1]:.2f})"


def tables(out: Path) -> str:
    """Both tables, as Markdown."""
    chosen, drawn = (read(out / f"{part}.jsonl") for part in PROMPTS)
    steps, full, one = drawn.previews.shape[2], Way(FULL, ()), Way(1, ())
    budget, wide = full.steps(steps), list(ways(steps, range(FULL, drawn.previews.shape[1] + 1)))
    within = [way for way in wide if way.candidates == FULL]
    budgets = [(within, budget // 2), (within, budget * 3 // 4), (wide, budget)]
    shown = [one, *(Way(count, ()) for count in (FULL // 2, FULL * 3 // 4)), full]
    shown += [best(chosen, known, most) for known, most in budgets]
    lines = [told(drawn, way, full) for way in dict.fromkeys(shown)]
    hindsight = [told(drawn, best(drawn, known, most), full) for known, most in budgets]
    ranks, seen = spearman(drawn), [step for step in SEEN if step < steps]
    correlation = [
        {"after step": f"{step} of {steps}", "rank correlation": _interval(drawn, ranks[:, step - 1])} for step in seen
    ]
    costs = [row["seconds"]["preview"] / row["seconds"]["evaluation"] for row in _rows(out / "reported.jsonl")]
    head = f"{len(set(drawn.prompts))} prompts, {len(drawn.prompts)} rows; chosen on {len(chosen.prompts)} others\n"
    tail = f"A preview, decoded and rewarded, takes the time of {np.median(costs):.1f} network evaluations.\n"
    apart = "Had the settings been chosen on the prompts that are reported on:\n"
    return "\n".join([head, _markdown(lines), apart, _markdown(hindsight), _markdown(correlation), tail])


def _markdown(lines: Sequence[dict[str, str]]) -> str:
    rows = [list(lines[0]), ["---"] * len(lines[0]), *(list(line.values()) for line in lines)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _captions(name: str, count: int) -> list[str]:
    """So many of a file's, spread over it."""
    file = Path(__file__).parents[2] / "configs" / "prompts" / name
    known = [line for line in file.read_text().splitlines() if line and not line.startswith("#")]
    return [known[place] for place in np.linspace(0, len(known) - 1, count).round().astype(int)]


def _rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    doors = parser.add_subparsers(dest="door", required=True)
    drawing, table = doors.add_parser("draw"), doors.add_parser("table")
    drawing.add_argument("--out", type=Path, default=Path("runs/pruning"))
    drawing.add_argument("--chosen", type=int, default=6, help="prompts that settings are chosen on")
    drawing.add_argument("--reported", type=int, default=8, help="prompts that are reported on")
    drawing.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    drawing.add_argument("--candidates", type=int, default=MOST)
    table.add_argument("out", type=Path)
    args = parser.parse_args()
    if args.door == "table":
        print(tables(args.out))
        return
    recipe = load_recipe("demo", ["sampler.batch_size=16"])
    draw(recipe, args.out, {"chosen": args.chosen, "reported": args.reported}, args.seeds, args.candidates)


if __name__ == "__main__":
    main()
