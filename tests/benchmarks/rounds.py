"""A round of raftdiff beside the public scripts' way and beside the best that plain diffusers does, in turn.

    OMP_NUM_THREADS=1 python tests/benchmarks/rounds.py --out runs/rounds

Prompts, seeds and settings are the same, and so must be the pictures that are chosen, or it stops. Models are loaded
before the clock starts. Two stretches are timed apart, by the clock and by processor time, that of child processes
included: drawing, scoring, choosing and writing; and tuning until its result is on disk, and loaded where another
process wrote it. See ``public_round.py`` and ``plain_round.py`` for what these do.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from plain_round import Plain
from public_round import Public
from round_job import Job, Spent, quiet, timed

from raftdiff.diffusion.assembly import assemble
from raftdiff.diffusion.recipe_files import load_recipe
from raftdiff.embedded import folder
from raftdiff.progress import Quiet
from raftdiff.recipes.prompts import build
from raftdiff.records.provenance import provenance
from raftdiff.records.run import Run
from raftdiff.reports.plots import Bar, bars
from raftdiff.seeds import fold
from raftdiff.stages.parts import asked
from raftdiff.stages.verbs import commit, sample, score, select, tune

GUIDANCE, RANK, RATE = 2.5, 4, 9e-6
PROMPTS = 8
"""And pictures of an optimizer step: the scripts learn from the best of each prompt, 8 of them, in batches of 8."""
AIMS = {"public": 10.0, "plain": 1.3}
Stretches = dict[str, Spent]


def recipe(candidates: int, steps: int, tuning: int) -> Any:
    """The demo with the job's numbers; the sampler reads the captions as they stand."""
    captions = [prompt.caption for prompt in build(load_recipe("demo").prompts)][:PROMPTS]
    return load_recipe(
        "demo",
        [
            "prompts.file=null",
            f"prompts.captions={json.dumps(captions)}",
            "prompts.magic=null",
            f"sampler.steps={steps}",
            f"sampler.guidance={GUIDANCE}",
            "ranker.selector.keep=1",
            "finetuner.target_modules=attention",
            f"finetuner.rank={RANK}",
            f"finetuner.learning_rate={RATE}",
            f"finetuner.steps={tuning}",
            f"finetuner.batch_size={PROMPTS}",
            "finetuner.exposures=null",
            f"loop.candidates={candidates}",
            "evaluation.every_round=0",
            "logging.tracker=null",
        ],
    )


def job_of(own: Any, assembly: Any) -> Job:
    seed = fold(own.loop.seed, 0, "sample")
    prompts = asked(assembly.parts.prompts, own.loop, 0)
    return Job(
        model=str(folder("scene-sd")),
        clip=str(folder("scene-clip")),
        captions=tuple(prompt.sampling for prompt in prompts),
        seeds=tuple(tuple(fold(seed, prompt.id, index) for index in range(own.loop.candidates)) for prompt in prompts),
        steps=own.sampler.steps,
        guidance=GUIDANCE,
        side=assembly.sampler.sizes[0][0],
        tuning_steps=own.finetuner.steps,
        batch=PROMPTS,
        rank=RANK,
        learning_rate=RATE,
    )


def raftdiff(own: Any, out: Path) -> tuple[list[int], Stretches]:
    """By the four verbs, as ``raftdiff train`` calls them; assembled before, so that nothing is remembered."""
    assembly = assemble(own)
    run = Run.create(out / "run", own, seed=own.loop.seed)
    draft, parts = run.draft(0), assembly.parts

    def drawing() -> None:
        sample(draft, run, parts, Quiet())
        score(draft, parts.ranker, parts.prompts, parts.loop, Quiet())
        select(draft, run, parts.ranker)

    def tuning() -> None:
        tune(draft, run, parts, Quiet())
        commit(draft, run, parts)

    _, drew = timed(drawing)
    keys = {key[1]: key[2] for item in draft.folder.selection().items for key in item.keys}
    _, tuned = timed(tuning)
    return [keys[prompt.id] for prompt in parts.prompts], {"drawing": drew, "tuning": tuned}


def other(kind: Callable[[Job], Any], job: Job, out: Path) -> tuple[list[int], Stretches]:
    way = kind(job)
    chosen, drew = timed(lambda: way.draw(out))
    _, tuned = timed(lambda: way.tune(out))
    return chosen, {"drawing": drew, "tuning": tuned}


def ratios(spent: Mapping[str, Sequence[Stretches]]) -> dict[str, dict[str, list[float]]]:
    """By way and stretch: each repeat over raftdiff's of the same repeat, by processor time and by the clock."""
    found: dict[str, dict[str, list[float]]] = {}
    for way in AIMS:
        rows = list(zip(spent[way], spent["raftdiff"], strict=True))
        found[way] = {}
        for clock in ("processor", "wall"):
            parts = {
                stretch: [getattr(a[stretch], clock) / getattr(b[stretch], clock) for a, b in rows]
                for stretch in ("drawing", "tuning")
            }
            parts["round"] = [
                sum(getattr(it, clock) for it in a.values()) / sum(getattr(it, clock) for it in b.values())
                for a, b in rows
            ]
            found[way] |= {f"{stretch}, {clock}": values for stretch, values in parts.items()}
    return found


def table(spent: Mapping[str, Sequence[Stretches]], found: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    lines = ["| way | drawing, s | tuning, s | over raftdiff: drawing | tuning | round | by the clock |"]
    lines.append("|---|--:|--:|--:|--:|--:|--:|")
    for way, rows in spent.items():
        seconds = [statistics.median(row[stretch].processor for row in rows) for stretch in ("drawing", "tuning")]
        names = ("drawing, processor", "tuning, processor", "round, processor", "round, wall")
        told = [_spread(found[way][name]) for name in names] if way in found else ["1"] * len(names)
        lines.append(f"| {way} | {seconds[0]:.1f} | {seconds[1]:.1f} | " + " | ".join(told) + " |")
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def plot(found: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    names = ("drawing", "tuning", "round")
    every = {f"{way}\n{name}": found[way][f"{name}, processor"] for way in found for name in names}
    held = [Bar(name, statistics.median(values), min(values), max(values)) for name, values in every.items()]
    return bars(held, x="way and stretch of a round", y="times raftdiff's processor time, with spread", level=1.0)


def written(
    out: Path, spent: Mapping[str, Sequence[Stretches]], chosen: Sequence[int], given: Mapping[str, Any]
) -> str:
    """``rounds.json`` and ``rounds.svg``, of the repeats so far; returns the table."""
    found = ratios(spent)
    seconds = {way: [{key: it._asdict() for key, it in row.items()} for row in rows] for way, rows in spent.items()}
    job = {name: given[name] for name in ("candidates", "steps", "tuning")}
    facts = {"job": job, "seconds": seconds, "ratios": found, "aims": AIMS, "chosen": list(chosen)}
    (out / "rounds.json").write_text(json.dumps({**facts, "provenance": provenance()}, indent=2) + "\n")
    (out / "rounds.svg").write_text(plot(found) + "\n")
    return table(spent, found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--candidates", type=int, default=4, help=f"of each of the {PROMPTS} prompts")
    parser.add_argument("--steps", type=int, default=6, help="denoising steps")
    parser.add_argument("--tuning", type=int, default=10, help="optimizer steps, of 8 pictures")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    quiet()
    own = recipe(given.candidates, given.steps, given.tuning)
    job = job_of(own, assemble(own))
    ways: dict[str, Callable[[Path], tuple[list[int], Stretches]]] = {
        "raftdiff": lambda out: raftdiff(own, out),
        "public": lambda out: other(Public, job, out),
        "plain": lambda out: other(Plain, job, out),
    }
    spent: dict[str, list[Stretches]] = {name: [] for name in ways}
    first: list[int] = []
    for repeat in range(given.repeats):
        for name in [*ways][repeat % 3 :] + [*ways][: repeat % 3]:
            with tempfile.TemporaryDirectory() as scratch:
                chosen, stretches = ways[name](Path(scratch))
            first = first or chosen
            if chosen != first:
                raise SystemExit(f"{name} chose {chosen}, and another way {first}")
            spent[name].append(stretches)
            told = ", ".join(f"{key} {it.processor:.1f} s ({it.wall:.1f} s)" for key, it in stretches.items())
            print(f"{name}: {told} of processor time (by the clock)", flush=True)
        text = written(given.out, spent, first, vars(given))
    print(f"\n{text}\n\nthe same pictures were chosen every time: {first}")


if __name__ == "__main__":
    main()
