"""Learning rules and sources of candidates side by side, three seeds each: is there one that gains at its own best?

All learn round by round from what the policy then draws for captions of kinds that ``scene-sd`` never saw, without
guidance, and cost the same number of network evaluations; where the name says otherwise the guided base draws, the
judge is the reward, or what is selected differs. Everybody is looked at with and without guidance. Each run is a
process of ``raftdiff methods``; what is not ended when the time is over is left out of the table.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from PIL.Image import Image

SPARE = 40.0
"""Seconds in which the table is written, and what need not be carried home is deleted."""
GUIDANCE = "1,2.5"
DRAWING = {"steps": 10, "guidance": 1.0, "scheduler": "dpm++", "batch_size": 512}
POLICY = {"type": "diffusion", **DRAWING}
TEACHER = {"type": "teacher", "drawing": {**DRAWING, "guidance": 2.5}}
MIXED = {"type": "mix", "parts": [{"share": 4, "sampler": TEACHER}, {"share": 4, "sampler": POLICY}]}
ORACLE = {"type": "callable", "name": "exact", "function": "methods:exact"}
CLIP = {"type": "clip", "model": "scene-clip"}
ROUNDS, CANDIDATES, CAPTIONS, PROMPTS, EVALUATIONS = 24, 8, 192, 64, 172_000


def _method(selector: dict[str, Any], rate: float, learning: str = "sft", **settings: Any) -> dict[str, Any]:
    return {
        "ranker": {"selector": selector},
        "finetuner": {"learning": {"type": learning, **settings}, "learning_rate": rate},
    }


BEST, ADVANTAGE = {"type": "best_of_k", "keep": 2}, {"type": "advantage"}
NFT = _method(ADVANTAGE, 1e-3, "nft", most=1.0)
METHODS: dict[str, dict[str, Any]] = {
    "raft": _method(BEST, 1e-4),
    "awm": _method(ADVANTAGE, 3e-4, "advantage"),
    "nft": NFT,
    "dpo": _method({"type": "best_worst"}, 3e-4, "dpo", beta=500.0),
    "oracle": {**NFT, "ranker": {"selector": ADVANTAGE, "rewards": [ORACLE]}},
}
"""What differs from the recipe of all. A rate does not suit every rule: imitating what one draws oneself at 1e-3 lost
seven points of reward in seven rounds, where ``nft`` gained four; the others' were not searched."""
OTHERS: dict[str, dict[str, Any]] = {
    "raft_random": _method({"type": "random", "keep": 2}, 1e-4),
    "rwr": _method({"type": "softmax"}, 1e-4),
    "kto": _method({"type": "threshold"}, 3e-4, "kto", beta=500.0),
    "student": {**_method(BEST, 1e-4), "sampler": TEACHER, "loop": {"sample_every": 2}},
    "mixed": {**NFT, "sampler": MIXED, "loop": {"sample_every": 2}},
    "diverse": _method({"type": "diverse", "keep": 2, "penalty": 0.5}, 1e-4),
}
"""Further ones, run where they are named: ten runs at once end some sixteen in the time."""


def exact(images: Sequence[Image], prompts: Sequence[str]) -> list[float]:
    """The judge itself as a reward, which no other run may see: 1 where everything is right. What is not gained with it
    either is no fault of the reward's."""
    return [float(value) for value in _judge().judge(images, prompts)["exact"]]


@cache
def _judge() -> Any:
    from torch import cuda

    from raftdiff.embedded import folder
    from raftdiff.embedded.scenes.judge import SceneJudge

    return SceneJudge(folder("scene-judge"), "cuda" if cuda.is_available() else "cpu")


def recipe(captions: Path, held_out: Path, *, small: bool) -> dict[str, Any]:
    """The recipe that the methods change."""
    return {
        "name": "methods",
        "model": {"base": "scene-sd", "dtype": "float32"},
        "prompts": {"file": str(captions)},
        "sampler": {**POLICY, "steps": 1} if small else POLICY,
        "ranker": {"rewards": [CLIP], "selector": BEST},
        "finetuner": {
            "type": "diffusion",
            "rank": 32,
            "target_modules": "all",
            "ema": 0.9,
            "batch_size": 4 if small else 128,
            "exposures": None,
        },
        "loop": {
            "rounds": 1 if small else ROUNDS,
            "candidates": 2 if small else CANDIDATES,
            "prompts_per_round": None if small else PROMPTS,
        },
        "evaluation": {
            "prompts": {"file": str(held_out)},
            "samples_per_prompt": 1 if small else 4,
            "guidance": 1.0,
            "judge": "scene-judge",
        },
        "logging": {"tracker": None},
    }


def figures(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What each method comes to, in percent of captions that are right in everything, each at its best guidance."""
    with tempfile.TemporaryDirectory() as scratch:
        yield from _compared(given, Path(scratch))


def _compared(given: argparse.Namespace, work: Path) -> Iterator[dict[str, Any]]:
    from raftdiff.diffusion.methods.changes import planned
    from raftdiff.diffusion.methods.standings import written
    from raftdiff.diffusion.methods.trials import Yardstick, baselines, finished
    from raftdiff.diffusion.recipe_files import load_recipe

    files = _written(work, small=given.small)
    known = given.methods or [*METHODS][: 1 if given.small else None]
    names = [str(files.get(name, name)) for name in known]
    allowed = 24 if given.small else EVALUATIONS
    base, root = load_recipe(str(files["methods"])), given.out / "methods"
    yardstick = Yardstick(base, [float(one) for one in GUIDANCE.split(",")], training=True)
    trials = planned(names, base, str(files["methods"]), evaluations=allowed)
    seeds = range(1 if given.small else 3)
    command = [sys.executable, "-m", "raftdiff", "methods", str(files["methods"]), "--seeds", "1", "--training"]
    command += ["--guidance", GUIDANCE, "--evaluations", str(allowed), "--out", str(root)]
    jobs = {
        f"{Path(name).stem}-{seed}": [*command, "--methods", name, f"loop.seed={seed}"]
        for seed in seeds
        for name in names
    }
    # the first measures the base for all
    at_once = lambda: 1 if baselines(root, yardstick).lacks(yardstick) else given.jobs  # noqa: E731
    yield from _run(jobs, root, at_once, given.deadline - SPARE)
    done = [one for seed in seeds for trial in trials if (one := finished(trial, seed, root, yardstick))]
    if done:
        print(written(root, yardstick, trials, baselines(root, yardstick), done))
        for name in ("table.md", "methods.json", "methods.svg"):
            shutil.copyfile(root / name, given.out / name)
    yield {"name": "runs ended", "value": len(done), "unit": f"of {len(jobs)}"}
    for one in done:
        for where, looks in one.end.items():
            best = max(looks, key=lambda strength: looks[strength].figures.get("judge.exact", 0.0))
            told = f"{one.method}, seed {one.seed}, {where}, at its best guidance, {best}"
            yield {"name": told, "value": looks[best].figures.get("judge.exact", 0.0), "unit": "% right"}
    shutil.rmtree(root, ignore_errors=True)  # more than can be carried home


def _written(work: Path, *, small: bool) -> dict[str, Path]:
    """The recipes, by name."""
    from raftdiff.embedded.scenes.world import draw
    from raftdiff.recipes.prompts import read_captions

    count = 2 if small else CAPTIONS
    shipped = Path(__file__).parents[2] / "configs" / "prompts" / "scene_align_held_out.txt"
    held = [str(caption) for caption in read_captions(shipped)]
    drawn = [scene.caption for scene in draw(2 * count + len(held), seed=77, held_out=True)]
    captions = [caption for caption in drawn if caption not in held][:count]
    for name, lines in (("captions.txt", captions), ("held_out.txt", held[:2] if small else held)):
        (work / name).write_text("\n".join(lines) + "\n")
    common = recipe(work / "captions.txt", work / "held_out.txt", small=small)
    found = {}
    for name, changes in {"methods": {}, **METHODS, **OTHERS}.items():
        told = {**common, **{section: _over(common[section], it) for section, it in changes.items()}, "name": name}
        found[name] = work / f"{name}.yaml"
        found[name].write_text(yaml.safe_dump(told))
    return found


def _over(section: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A section of the recipe with some keys changed; a sampler of another type takes the place of the whole."""
    return changes if changes.get("type", section.get("type")) != section.get("type") else {**section, **changes}


def _run(
    jobs: Mapping[str, Sequence[str]], root: Path, at_once: Callable[[], int], until: float
) -> Iterator[dict[str, Any]]:
    """Every command as a process, so many at once, what each says in a log; those that fail or do not end are told."""
    here = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": here, "OMP_NUM_THREADS": "1"}
    waiting = list(jobs)
    running: dict[str, subprocess.Popen[bytes]] = {}
    root.mkdir(parents=True, exist_ok=True)
    while (waiting or running) and time.time() < until:
        for name in [name for name, process in running.items() if process.poll() is not None]:
            if running.pop(name).returncode:
                said = (root / f"{name}.log").read_text().strip().splitlines()[-1:]
                yield {"name": name, "failed": " ".join(said) or "It said nothing."}
        while waiting and len(running) < at_once():
            name = waiting.pop(0)
            with (root / f"{name}.log").open("w") as log:
                running[name] = subprocess.Popen(jobs[name], stdout=log, stderr=subprocess.STDOUT, env=environment)
        time.sleep(0.2)
    for process in running.values():
        process.kill()
        process.wait()
    if left := [*running, *waiting]:
        yield {"name": "methods", "failed": f"The time was over before these ended: {', '.join(left)}."}
