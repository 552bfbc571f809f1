"""How long a method needs until a held-out judge, which no reward is, gives its pictures a certain score.

    OMP_NUM_THREADS=1 python tests/benchmarks/time_to_score.py raft --out runs/time --minutes 4
    OMP_NUM_THREADS=1 python tests/benchmarks/time_to_score.py ddpo --out runs/time --minutes 12
    OMP_NUM_THREADS=1 python tests/benchmarks/time_to_score.py small --out runs/time --minutes 6
    python tests/benchmarks/time_to_score.py table --out runs/time

Each learns for so many minutes of processor time from the demo's 20 captions by the same reward, ``scene-clip``, and
is looked at every ``--every`` seconds of it, which do not count, without guidance: 64 captions that none learnt, 3
pictures each of the same noise every time. The score is the share of what the captions ask for (objects, counts,
relations, sizes, styles, colours, grounds) that ``scene-judge`` finds right; it is reached at the first look at which
it is ``--gain`` above the base's. Looks are between rounds. What is stopped goes on where it was.

``raft`` is the demo's round: 20 prompts, 8 guided candidates each, the best 2, 100 steps of 12 pictures. ``small`` are
more and smaller ones: 8 prompts, 4 guided candidates, the best of each, 20 steps of 8. ``ddpo`` is the policy gradient
of arXiv:2305.13301 on what the policy draws without guidance, as it is looked at.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raftdiff.diffusion.assembly import Assembly, assemble
from raftdiff.diffusion.recipe_files import load_recipe
from raftdiff.diffusion.sampler import DiffusionSamplerConfig
from raftdiff.embedded.worlds import open_judge
from raftdiff.raft import raft
from raftdiff.recipes.prompts import build
from raftdiff.records.provenance import provenance
from raftdiff.records.run import Run
from raftdiff.reports.plots import Course, courses

SHOWN = DiffusionSamplerConfig(type="diffusion", steps=8, guidance=1.0, scheduler="dpm++", batch_size=32)
LOOK_SEED, PICTURES = 1000, 3
PILOT = slice(24, 48)
"""Of the recipe's held-out captions, those to try settings by."""
METHODS: dict[str, list[str]] = {
    "raft": ["loop.rounds=100"],
    "small": [
        "sampler.steps=6",
        "ranker.selector={type: best_of_k, keep: 1}",
        "finetuner={type: diffusion, rank: 16, target_modules: all, learning_rate: 3.0e-4, exposures: null, "
        "steps: 20, batch_size: 8}",
        "loop={rounds: 1000, prompts_per_round: 8, candidates: 4}",
    ],
    "ddpo": [
        "prompts.magic=null",
        "sampler={type: diffusion, steps: 10, guidance: 1.0, scheduler: ddim, eta: 1.0, batch_size: 32}",
        "ranker.selector={type: advantage}",
        "finetuner={type: diffusion, rank: 16, target_modules: all, learning_rate: 3.0e-4, learning: {type: ddpo}, "
        "exposures: null, steps: 8, batch_size: 32}",
        "loop={rounds: 1000, prompts_per_round: 8, candidates: 8}",
    ],
}
"""What differs from the demo. The settings of ``ddpo`` are those of docs/results.md."""


def captions(name: str) -> list[str]:
    return [prompt.caption for prompt in build(load_recipe("demo", [f"prompts.file={name}"]).prompts)]


def recipe(method: str, seed: int) -> Any:
    common = ["name=time", f"loop.seed={seed}", "evaluation.every_round=0", "logging.tracker=null"]
    return load_recipe("demo", [*METHODS[method], *common])


class Looking:
    """The judge's look at the policy as it stands."""

    def __init__(self, assembly: Assembly, *, pilot: bool) -> None:
        """``pilot``: other captions and other noise, to try settings by."""
        held_out = captions("prompts/scene_align_held_out.txt")
        held_out = held_out[PILOT] if pilot else [it for it in held_out if it not in held_out[PILOT]]
        held_out += [] if pilot else captions("prompts/demo_held_out.txt")
        asked = ["prompts.file=null", f"prompts.captions={json.dumps(held_out)}", "prompts.magic=null"]
        self._prompts = build(load_recipe("demo", asked).prompts)
        self._sampler = SHOWN.build(assembly.model)
        self._judge, self._seed = open_judge("scene-judge"), LOOK_SEED + pilot

    def __call__(self) -> dict[str, Any]:
        drawn = list(
            self._sampler.sample(self._prompts, per_prompt=PICTURES, seed=self._seed, round=0, done=frozenset())
        )
        drawn.sort(key=lambda one: (one.prompt.id, one.index))
        found = self._judge([one.media for one in drawn], [one.prompt.caption for one in drawn])
        exact = found["exact"]
        parts = np.stack([values for name, values in found.items() if name != "exact"])
        factors = {name: float(np.nanmean(values)) for name, values in found.items()}
        return {"right": np.nanmean(parts, axis=0).tolist(), "exact": exact.tolist(), "factors": factors}


def learn(method: str, given: argparse.Namespace) -> None:
    """Rounds until the minutes are over, with what was spent and seen, in ``METHOD-SEED.json``."""
    torch.set_num_threads(1)
    name = f"{method}-{given.seed}"
    own, file = recipe(method, given.seed), given.out / f"{name}.json"
    assembly = assemble(own)
    look, run = Looking(assembly, pilot=given.pilot), Run.create(given.out / name, own, seed=given.seed)
    held = json.loads(file.read_text()) if file.is_file() else {"rounds": [], "looks": []}
    spent: list[float] = held["rounds"][: run.rounds_done()]

    def write() -> None:
        file.write_text(json.dumps({**held, "provenance": provenance()}, indent=2) + "\n")

    def seen() -> None:
        held["looks"].append({"seconds": sum(spent), "rounds": len(spent), **look()})
        write()
        told = held["looks"][-1]
        print(
            f"{name}: {told['seconds']:.0f} s, {told['rounds']} rounds: {np.mean(told['right']):.3f} of what is asked "
            f"for, {np.mean(told['exact']):.3f} exact",
            flush=True,
        )

    held["rounds"] = spent
    if not held["looks"]:
        seen()
    began = time.process_time()
    for _ in raft(run, assembly.parts):
        spent.append(time.process_time() - began)
        write()
        over = sum(spent) >= 60 * given.minutes
        if over or sum(spent) >= held["looks"][-1]["seconds"] + given.every:
            seen()
        if over:
            return
        began = time.process_time()


def reached(looks: Sequence[Mapping[str, Any]], goal: float) -> Mapping[str, Any] | None:
    """The first look at which the score is there.

    >>> reached([{"right": [0.4, 0.5]}, {"right": [0.5, 0.6]}], 0.5)
    {'right': [0.5, 0.6]}
    """
    return next((it for it in looks if np.mean(it["right"]) >= goal), None)


def table(given: argparse.Namespace) -> None:
    """Of every file in the folder, when it was there, and a plot of all."""
    runs = {file.stem: json.loads(file.read_text()) for file in sorted(given.out.glob("*-*.json"))}
    base = float(np.mean(next(iter(runs.values()))["looks"][0]["right"]))
    goal, drawn = base + given.gain, dict[str, Course]()
    print(
        f"base {base:.3f}, to be reached {goal:.3f}\n\n| method | reached after | rounds | score at the end | exact |"
    )
    print("|---|--:|--:|--:|--:|")
    for name, held in runs.items():
        looks, rounds = held["looks"], held["rounds"]
        there, last = reached(looks, goal), looks[-1]
        when = "" if there is None else f"{there['seconds']:.0f} s"
        after = "" if there is None else f"{there['rounds']}"
        change = np.subtract(last["right"], looks[0]["right"])
        half = 1.96 * float(change.reshape(-1, PICTURES).mean(axis=1).std(ddof=1)) / (len(change) / PICTURES) ** 0.5
        score = f"{np.mean(last['right']):.3f} ({change.mean():+.3f} ± {half:.3f}) at {last['seconds']:.0f} s"
        print(f"| {name} | {when or 'not'} | {after or len(rounds)} | {score} | {np.mean(last['exact']):.3f} |")
        drawn[name] = Course([(it["seconds"] / 60, float(np.mean(it["right"]))) for it in looks], half)
    levels = {"base": base, "to be reached": goal}
    text = courses(drawn, levels, x="minutes of processor time", y="right, of what held-out captions ask for")
    (given.out / "time.svg").write_text(text + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=(*METHODS, "table"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=12.0, help="of processor time, looks left out")
    parser.add_argument("--every", type=float, default=90.0, help="seconds of it between two looks")
    parser.add_argument("--pilot", action="store_true", help="look at other captions")
    parser.add_argument("--gain", type=float, default=0.05)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    table(given) if given.what == "table" else learn(given.what, given)


if __name__ == "__main__":
    main()
