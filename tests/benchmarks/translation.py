"""Translation preference: the pipeline ``translation`` over several seeds, and what came of it in tables.

    python tests/benchmarks/translation.py --out runs/translation --seeds 0 1 2

A reward model, RAFT and PPO-max against it, and the control that learns translations at random; then, on held-out
sources, what the reward model says and what is true: adequacy, fluency, elegance, and chrF against the most elegant
right translation. A seed that is finished is not run again. What stands behind the seeds is given to the pipeline.
"""

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from raftdiff import embedded
from raftdiff.cli.main import main as raftdiff
from raftdiff.embedded.language import draw, load
from raftdiff.embedded.translation import world
from raftdiff.embedded.translation.data import KINDS, decided
from raftdiff.llm.model.loading import LMConfig
from raftdiff.llm.reward_models.value_model import load_value_model
from raftdiff.llm.reward_runs.evaluation import look
from raftdiff.llm.reward_runs.recipe import divided, reward_recipe_of
from raftdiff.measures.statistics import t_interval
from raftdiff.records.disk import read_json
from raftdiff.records.run import Run
from raftdiff.rewards.translation import TranslationReward
from raftdiff.types import Prompt, Sample

POLICIES = ("random", "raft", "ppo_max")
TRUE = ("adequate", "fluent", "elegant", "quality", "chrf")
SHOWN = ("reward_model", *TRUE)

Figures = dict[str, float]


def by_kind(run: Path) -> Figures:
    """The share of clean held-out pairs that a reward model puts right, by what decides them, and of all."""
    recipe = reward_recipe_of(Run(run))
    model = load_value_model(LMConfig(base=str(run / "model"), device="cpu"), embedded.resolve)
    right = look(model, divided(recipe)[1], batch_size=64).differences > 0
    assert recipe.held_out is not None
    kinds = np.array([row["kind"] for row in _rows(Path(recipe.held_out.data.file or ""))])
    return {kind: float(right[kinds == kind].mean()) for kind in KINDS} | {"all": float(right.mean())}


def sides(run: Path) -> dict[str, Figures]:
    """Means over the held-out answers before and after a policy's training, of the best of each source's answers before
    by the reward model, and how well the reward model ranks both."""
    rows = _rows(run / "eval" / "answers.jsonl")
    found: dict[str, Figures] = {}
    for side in ("before", "after"):
        found[side] = _means([row[f"{side}_scores"] for row in rows])
        found[side]["words"] = float(np.mean([len(row[side].split()) for row in rows]))
        found[side]["ranked"] = _ranked(rows, side)
    by_prompt: dict[str, list[Mapping[str, float]]] = defaultdict(list)
    for row in rows:
        by_prompt[row["prompt_id"]].append(row["before_scores"])
    found["best of n"] = _means([max(held, key=lambda one: one["reward_model"]) for held in by_prompt.values()])
    found["after"]["kl"] = float(read_json(run / "eval" / "eval.json")["drift"]["kl"])
    return found


def _means(scores: Sequence[Mapping[str, float]]) -> Figures:
    return {name: float(np.mean([one[name] for one in scores])) for name in SHOWN}


def _ranked(rows: Sequence[Mapping[str, Any]], side: str) -> float:
    """Of two answers to one source that differ, how often the reward model prefers the better."""
    by_prompt = defaultdict(list)
    for row in rows:
        by_prompt[row["prompt"]].append((row[side], row[f"{side}_scores"]["reward_model"]))
    right = []
    for prompt, held in by_prompt.items():
        for (one, first), (other, second) in combinations(held, 2):
            if found := decided(prompt, one, other):
                right.append((first > second) is found[1])
    return float(np.mean(right)) if right else math.nan


def rounds(run: Path) -> list[Figures]:
    """The held-out figures before the first round and after each."""
    metrics = Run(run).metrics()
    return [metrics[0]["held_out_base_rewards"], *(one["held_out_rewards"] for one in metrics)]


def greedy(held_out: Path) -> Figures:
    """The base's likeliest translations, greedily."""
    rows = _rows(held_out)
    asked = [row["prompt"] for row in rows]
    texts = draw(*load(embedded.folder("translate-lm")), asked, seed=0, greedy=True)
    prompts = [
        Prompt(str(place), text, text, text, meta=row)
        for place, (text, row) in enumerate(zip(asked, rows, strict=True))
    ]
    samples = [Sample(0, one, 0, 0, "policy", text) for one, text in zip(prompts, texts, strict=True)]
    pairs = list(zip(asked, texts, strict=True))
    return {
        "adequate": float(np.mean([world.adequate(*pair) for pair in pairs])),
        "fluent": float(np.mean([world.fluent(text) for text in texts])),
        "elegant": float(np.mean([world.elegance(text) for text in texts])),
        "quality": float(np.mean([world.quality(*pair) for pair in pairs])),
        "chrf": float(TranslationReward().score(samples).mean()),
        "words": float(np.mean([len(text.split()) for text in texts])),
    }


def _rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def over(found: Sequence[float], digits: int = 3) -> str:
    """Mean and half of the 95% interval over seeds.

    >>> over([0.5, 0.6, 0.7])
    '0.600 ± 0.248'
    """
    mean = float(np.mean(found))
    half = t_interval(np.array(found))[1] - mean  # NaN for a single one, 0 for what is the same in all
    return f"{mean:.{digits}f}" + (f" ± {half:.{digits}f}" if half > 1e-9 else "")


def table(head: str, lines: Mapping[str, Sequence[Mapping[str, float]]], columns: Sequence[str]) -> str:
    """Markdown: of each line, over its seeds, the columns that it has."""
    rows = [f"| {head} | {' | '.join(columns)} |", "|---|" + "--:|" * len(columns)]
    for name, seeds in lines.items():
        cells = [
            over([one[column] for one in seeds], 1 if column in ("chrf", "words", "kl") else 3)
            if column in seeds[0]
            else ""
            for column in columns
        ]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows)


def tables(out: Path, seeds: Sequence[int], held_out: Path) -> str:
    """Everything that is told of finished seeds."""
    runs = [out / str(seed) for seed in seeds]
    policies = {name: [sides(run / name) for run in runs] for name in POLICIES}
    lines: dict[str, list[Figures]] = {
        "base": [one["before"] for one in policies["raft"]],
        "base, greedy": [greedy(held_out)],
        "best of 8, base": [one["best of n"] for one in policies["raft"]],
        **{name: [one["after"] for one in found] for name, found in policies.items()},
    }
    told = [
        table("pairs", {"right": [by_kind(run / "reward") for run in runs]}, (*KINDS, "all")),
        table("held out", lines, (*SHOWN, "words", "kl", "ranked")),
    ]
    for name in POLICIES:
        curves = [rounds(run / name) for run in runs]
        held = range(len(curves[0]))
        shown = {str(t): [curve[t] for curve in curves] for t in held if name != "ppo_max" or t % 4 == 0}
        told.append(table(f"{name}, after round", shown, SHOWN))
    return "\n\n".join(told)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/translation"), help="default: %(default)s")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: %(default)s")
    given, words = parser.parse_known_args()
    for seed in given.seeds:
        seeded = [f"{stage}.loop.seed={seed}" for stage in ("reward", *POLICIES)]
        quiet = [f"{stage}.logging.tracker=null" for stage in ("reward", *POLICIES)]
        command = ["llm", "pipeline", "translation", "--out", str(given.out / str(seed)), *seeded, *quiet, *words]
        if raftdiff(command) != 0:
            raise SystemExit(f"seed {seed} broke off")
    held_out = Path(embedded.__file__).parents[1] / "configs" / "prompts" / "translation_held_out.jsonl"
    text = tables(given.out, given.seeds, held_out)
    (given.out / "table.md").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
