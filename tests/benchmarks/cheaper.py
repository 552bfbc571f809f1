"""What cheaper rollouts cost in quality, on the world that ships: fewer steps, a lower resolution, deep features of the
U-Net that are used again, and fewer candidates, beside the recipe's own drawing of the same seeds.

    python tests/benchmarks/cheaper.py draw --out runs/cheaper      # 20 minutes of one thread
    python tests/benchmarks/cheaper.py table runs/cheaper           # the table, and cheaper.svg
    python tests/benchmarks/cheaper.py draw --out runs/many --ways "50 steps" "50, reuse, every 4" "15 steps"
    python tests/benchmarks/cheaper.py table runs/many --beside "50 steps"

Candidates are drawn by the recipe ``demo`` for captions of kinds that the model never saw, each way in turn for every
batch. The reward ranks; the judge, whom no reward sees, says which pictures show exactly what was asked for. Intervals
are of paired differences, resampled by captions. What is drawn already is not drawn again; the table is of what there
is so far, each way on its captions.
"""

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from raftdiff.diffusion.assembly import build_ranker
from raftdiff.diffusion.models import loading
from raftdiff.diffusion.recipe import Recipe
from raftdiff.diffusion.recipe_files import load_recipe
from raftdiff.diffusion.sampler import DiffusionSampler
from raftdiff.embedded import resolve
from raftdiff.embedded.worlds import open_judge
from raftdiff.measures.statistics import Estimate, mean_std_ci
from raftdiff.ranking import Ranker
from raftdiff.recipes.prompts import build
from raftdiff.reports.plots import Bar, bars
from raftdiff.seeds import fold
from raftdiff.types import Prompt, Sample

FULL = "8 steps"
WAYS: Mapping[str, Mapping[str, Any]] = {
    FULL: {},
    "5 steps": {"steps": 5},
    "4 steps": {"steps": 4},
    "reuse, every 2": {"reuse": {"every": 2}},
    "reuse, every 3": {"reuse": {"every": 3}},
    "64 px": {"height": 64, "width": 64},
}
"""What each changes of the recipe's sampler."""
MORE: Mapping[str, Mapping[str, Any]] = {
    "6 steps": {"steps": 6},
    "reuse, every 2, 3 skips": {"reuse": {"every": 2, "skips": 3}},
    "reuse, every 2, 4 skips": {"reuse": {"every": 2, "skips": 4}},
    "48 px": {"height": 48, "width": 48},
    "50 steps": {"steps": 50},
    "25 steps": {"steps": 25},
    "15 steps": {"steps": 15},
    "10 steps": {"steps": 10},
    "50, reuse, every 2": {"steps": 50, "reuse": {"every": 2}},
    "50, reuse, every 4": {"steps": 50, "reuse": {"every": 4}},
    "50, reuse, every 8": {"steps": 50, "reuse": {"every": 8}},
}
"""Others: looked at on other captions before, and many steps, as DeepCache was published with."""
FIGURES = ("reward", "exact")


def rewarded(
    sampler: DiffusionSampler, ranker: Ranker[Any], prompts: Sequence[Prompt], seed: int, candidates: int
) -> Iterator[dict[str, Any]]:
    """A row for each candidate of the prompts, drawn in one batch: what reward and judge say of it, and its share of
    the processor time of denoising."""
    jobs = [(prompt, index) for prompt in prompts for index in range(candidates)]
    noise, generators = sampler.noise(jobs, fold(seed, "cheaper"), sampler.sizes[0])
    texts = sampler.texts(jobs)
    began = time.process_time()
    latents = sampler.denoise(noise, *texts, generators)
    spent = time.process_time() - began
    pictures = sampler.decoded(latents)
    samples = [Sample(0, *job, 0, "policy", it) for job, it in zip(jobs, pictures, strict=True)]
    raw = ranker.raw(samples)
    totals = ranker.total({name: values.reshape(len(prompts), -1) for name, values in raw.items()}).ravel()
    exact = open_judge("scene-judge")(pictures, [prompt.caption for prompt, _ in jobs])["exact"]
    for place, (prompt, index) in enumerate(jobs):
        said = {"reward": float(totals[place]), "exact": float(exact[place]), "seconds": spent / len(jobs)}
        yield {"prompt": prompt.id, "seed": seed, "index": index, **said}


def draw(recipe: Recipe, file: Path, given: argparse.Namespace) -> None:
    """Onto the end of ``file``, what is not there yet."""
    file.parent.mkdir(parents=True, exist_ok=True)
    parts, ranker = loading.load(recipe.model, resolve), build_ranker(recipe, device="cpu")
    every = {**WAYS, **MORE}
    plain = recipe.sampler.model_dump()
    samplers = {name: type(recipe.sampler)(**{**plain, **every[name]}).build(parts) for name in given.ways}
    there = {(row["way"], row["prompt"], row["seed"]) for row in _rows(file)}
    prompts = build(recipe.prompts.model_copy(update={"captions": _captions(given.prompts, given.count)}))
    width = recipe.sampler.at_once // given.candidates
    for seed in given.seeds:
        for start in range(0, len(prompts), width):
            batch = prompts[start : start + width]
            for name, sampler in samplers.items():
                if (name, batch[0].id, seed) not in there:
                    rows = [{"way": name, **it} for it in rewarded(sampler, ranker, batch, seed, given.candidates)]
                    with file.open("a") as lines:
                        lines.writelines(json.dumps(row) + "\n" for row in rows)


def read(file: Path) -> dict[str, dict[str, np.ndarray]]:
    """By way and figure (prompts, seeds, candidates), NaN for what is not drawn yet."""
    held = {(row["way"], row["prompt"], row["seed"], row["index"]): row for row in _rows(file)}
    ways, prompts, seeds, counts = (list(dict.fromkeys(column)) for column in zip(*held, strict=True))
    names, shape = (*FIGURES, "seconds"), (len(ways), 3, len(prompts), len(seeds), len(counts))
    found = np.full(shape, np.nan)
    for (way, prompt, seed, index), row in held.items():
        place = (prompts.index(prompt), seeds.index(seed), counts.index(index))
        found[(ways.index(way), slice(None), *place)] = [row[name] for name in names]
    return {way: dict(zip(names, own, strict=True)) for way, own in zip(ways, found, strict=True)}


def best(found: Mapping[str, np.ndarray], figure: str, count: int) -> np.ndarray:
    """(prompts, seeds): of the first ``count`` candidates the one that the reward likes best."""
    chosen = found["reward"][..., :count].argmax(axis=-1)
    picked: np.ndarray = np.take_along_axis(found[figure], chosen[..., None], axis=-1)[..., 0]
    return picked


def agreement(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(prompts, seeds): Spearman's, of the rewards of a prompt's candidates of one seed; rewards are not tied."""
    units = []
    for rewards in (one, other):
        ranks = rewards.argsort(axis=-1).argsort(axis=-1).astype(float)
        units.append((ranks - ranks.mean(axis=-1, keepdims=True)) / ranks.std(axis=-1, keepdims=True))
    found = (units[0] * units[1]).mean(axis=-1)
    return np.where(np.isnan(one[..., 0]) | np.isnan(other[..., 0]), np.nan, found)


def compared(found: Mapping[str, dict[str, np.ndarray]], beside: str) -> dict[str, dict[str, Any]]:
    """Each way beside one of them: its share of the time, and estimates of what is lost."""
    full = found[beside]
    prompts, _, candidates = full["reward"].shape
    ways: dict[str, tuple[Mapping[str, np.ndarray], int]] = {name: (it, candidates) for name, it in found.items()}
    ways |= {f"{count} of {candidates} drawn": (full, count) for count in range(candidates - 1, 0, -1)}
    told: dict[str, dict[str, Any]] = {}
    for name, (own, count) in ways.items():
        both = ~np.isnan(own["seconds"]) & ~np.isnan(full["seconds"])
        line: dict[str, Any] = {"captions": int(both.any(axis=(1, 2)).sum())}
        line["time"] = float(np.median((own["seconds"] / full["seconds"])[both])) * count / candidates
        for figure in FIGURES:
            every = (own[figure] - full[figure]).reshape(prompts, -1)
            chosen, whole = best(own, figure, count), best(full, figure, candidates)
            line |= {
                f"{figure}, mean": float(np.nanmean(own[figure])),
                f"{figure}, mean, less": mean_std_ci(every),
                f"{figure}, best": float(np.nanmean(chosen)),
                f"{figure}, best, less": mean_std_ci(chosen - whole),
            }
        line["ranks"] = mean_std_ci(agreement(own["reward"], full["reward"]))
        told[name] = line
    return told


def table(told: Mapping[str, Mapping[str, Any]], beside: str) -> str:
    head = ("way", "captions", "time", "reward, mean", "of the best", "exact, mean", "of the best", "rank correlation")
    lines = [f"| {' | '.join(head)} |", "|---|--:|--:|--:|--:|--:|--:|--:|"]
    for name, line in told.items():
        fewer = "drawn" in name  # of the same pictures
        cells = [name, str(line["captions"]), f"{line['time']:.0%}"]
        for figure, what in ((figure, what) for figure in FIGURES for what in ("mean", "best")):
            factor, digits = (100, 1) if figure == "exact" else (1, 2)
            same = name == beside or (fewer and what == "mean")
            more = "" if same else f", {_told(line[f'{figure}, {what}, less'], factor, digits)}"
            own = f"{factor * line[f'{figure}, {what}']:.{digits}f}{'%' if figure == 'exact' else ''}"
            cells.append("" if fewer and what == "mean" else own + more)
        cells.append("" if fewer or name == beside else _told(line["ranks"], 1, 2))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _told(it: Estimate, factor: float, digits: int) -> str:
    mean, low, high = (f"{factor * value:+.{digits}f}" for value in (it.mean, *it.ci95))
    return f"{mean} ({low} to {high})"


def plot(told: Mapping[str, Mapping[str, Any]], beside: str) -> str:
    """What the best of the candidates loses of the reward, by way, with its share of the time."""
    lost = {name: line["reward, best, less"] for name, line in told.items() if name != beside}
    short = {name: name.replace("reuse, every", "reuse").replace(" drawn", "") for name in lost}
    held = [
        Bar(f"{short[name]}\n{told[name]['time']:.0%}", -it.mean, -it.ci95[1], -it.ci95[0]) for name, it in lost.items()
    ]
    return bars(
        held, x="way to draw, and its share of the time", y="reward that the best of 4 loses, with 95% intervals"
    )


def _captions(name: str, count: int) -> list[str]:
    """So many of a file's, spread over it."""
    file = Path(__file__).parents[2] / "configs" / "prompts" / name
    known = [line for line in file.read_text().splitlines() if line and not line.startswith("#")]
    return [known[place] for place in np.linspace(0, len(known) - 1, count).round().astype(int)]


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    if file.is_file():
        yield from (json.loads(line) for line in file.read_text().splitlines())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    doors = parser.add_subparsers(dest="door", required=True)
    drawing, figures = doors.add_parser("draw"), doors.add_parser("table")
    drawing.add_argument("--out", type=Path, default=Path("runs/cheaper"))
    drawing.add_argument("--prompts", default="scene_align.txt", help="a file of configs/prompts")
    drawing.add_argument("--count", type=int, default=48, help="captions")
    drawing.add_argument("--candidates", type=int, default=4)
    drawing.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    drawing.add_argument("--ways", nargs="+", default=list(WAYS), choices=[*WAYS, *MORE])
    figures.add_argument("out", type=Path)
    figures.add_argument(
        "--beside", default=FULL, choices=[*WAYS, *MORE], help="the way that the others are compared with"
    )
    given = parser.parse_args()
    file = given.out / "candidates.jsonl"
    if given.door == "draw":
        draw(load_recipe("demo", []), file, given)
        return
    told = compared(read(file), given.beside)
    (given.out / "cheaper.svg").write_text(plot(told, given.beside) + "\n")
    print(table(told, given.beside))


if __name__ == "__main__":
    main()
