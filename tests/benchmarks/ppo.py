"""How steady is PPO, and which part of PPO-max makes it steady? Recipes over several seeds against one reward model.

    raftdiff llm rm train rm_reviews --out runs/rm
    python tests/benchmarks/ppo.py --reward runs/rm/model --answers 2048 --methods ppo ppo_max --seeds 0 1 2 3 4
    python tests/benchmarks/ppo.py --reward runs/rm/model --answers 2048 --methods ablations --seeds 0 1

The policy is trained on the reward model, and the text world's exact reward looks on: where the first rises and the
second falls, the policy has found the reward model's weaknesses. Every figure is of the held-out prompts, drawn with
the same seeds after every round. A run that is finished is not trained again, so the script continues where it was
stopped; one that breaks off is written down as such.
"""

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from raftdiff.errors import UserError
from raftdiff.llm.assembly import assemble_text
from raftdiff.llm.methods import rounds_of
from raftdiff.llm.recipe import load_text_recipe
from raftdiff.raft import raft
from raftdiff.recipes.files import locate, recipes
from raftdiff.records.disk import read_json, write_text
from raftdiff.records.provenance import provenance
from raftdiff.records.run import Run
from raftdiff.records.watching import warnings

TRAINED, TRUE = "learnt", "review"
"""The names of the two rewards: what is trained on, and the truth."""


class Steady(NamedTuple):
    """What one run came to, and how it got there; rewards in their own units, higher is better."""

    true: float
    trained: float
    """After the last round."""
    true_drop: float
    trained_drop: float
    """From the best round to the last; 0 where the last is the best."""
    true_fall: float
    trained_fall: float
    """The largest fall from one round to the next; 0 where there was none."""
    kl: float
    """log p - log p0 of an answer, nats."""
    words: float
    """Of an answer of the last round's training."""
    seconds: float
    warned: Sequence[str]
    """What the watch list said after any of the rounds."""


def steadiness(rounds: Sequence[Mapping[str, Any]]) -> Steady:
    """The figures of a run, from the metrics of its rounds."""
    first, last = rounds[0], rounds[-1]
    curves = {
        name: np.array([first["held_out_base_rewards"][name], *(one["held_out_rewards"][name] for one in rounds)])
        for name in (TRUE, TRAINED)
    }
    seen = [sentence for end in range(1, len(rounds) + 1) for sentence in warnings(rounds[:end])]
    return Steady(
        *(float(curves[name][-1]) for name in (TRUE, TRAINED)),
        *(float(curves[name].max() - curves[name][-1]) for name in (TRUE, TRAINED)),
        *(float(max(0.0, -np.diff(curves[name]).min())) for name in (TRUE, TRAINED)),
        float(last["held_out_figures"]["kl"]),
        float(last["diversity_all"]["length"]),
        float(sum(sum(one["seconds"].values()) for one in rounds)),
        list(dict.fromkeys(" ".join(sentence.split()[:3]) for sentence in seen)),
    )


def one_run(given: argparse.Namespace, method: str, seed: int) -> Steady | str:
    """A method's run, trained as far as it is not; a sentence where it broke off."""
    reward = json.dumps(str(given.reward.resolve()))
    words = [
        f"ranker.rewards=[{{type: reward_model, name: {TRAINED}, model: {reward}}}]",
        f"evaluation.rewards=[{{type: {TRUE}}}]",
        "evaluation.every_round=2",
        *([f"finetuner.critic.model={reward}"] if _begins_with_reward_model(method) else []),
        *given.set,
        f"loop.seed={seed}",
        "logging.tracker=null",
    ]
    words += [f"loop.rounds={rounds_of(method, given.answers, words)}"] if given.answers else []
    recipe = load_text_recipe(locate(method), words)
    run = Run.create(given.out / f"{Path(method).stem}-{seed}", recipe, seed=seed)
    broken = run.path / "broken.json"
    if broken.is_file():
        return str(read_json(broken)["why"])
    if run.rounds_done() < recipe.loop.rounds:
        with run.locked(recipe):
            try:
                for _ in raft(run, assemble_text(recipe).parts):
                    pass
            except (UserError, FloatingPointError) as error:
                write_text(broken, json.dumps({"why": str(error)}))
                return str(error)
    return steadiness(run.metrics())


def _begins_with_reward_model(method: str) -> bool:
    """Whether the critic does, as in PPO-max; the recipes name none, for want of one that ships."""
    return Path(method).stem.startswith("ppo_max") and Path(method).stem != "ppo_max_no_critic_init"


def table(found: Mapping[str, Sequence[Steady | str]]) -> str:
    """Markdown, a line a method: over seeds the mean, the standard deviation (n - 1) and the worst."""
    heads = ("true reward", "worst", "trained reward", "worst", "true: drop from best", "largest fall")
    heads = (*heads, "trained: drop from best", "largest fall", "KL", "words", "warned", "seconds")
    lines = ["| method | " + " | ".join(heads) + " |", "|---|" + "--:|" * len(heads)]
    for method, runs in found.items():
        held = [one for one in runs if isinstance(one, Steady)]
        if not held:
            lines.append(f"| {method} | broke off: {runs[0]} |" + " |" * (len(heads) - 1))
            continue
        columns = {name: np.array([getattr(one, name) for one in held]) for name in Steady._fields if name != "warned"}
        cells = [_spread(columns["true"]), f"{columns['true'].min():.3f}"]
        cells += [_spread(columns["trained"]), f"{columns['trained'].min():.2f}"]
        for name in ("true_drop", "true_fall", "trained_drop", "trained_fall"):
            most = f" (at most {columns[name].max():.3f})" if len(held) > 1 else ""
            cells.append(f"{columns[name].mean():.3f}{most}")
        cells += [_spread(columns["kl"], 1), _spread(columns["words"], 1)]
        cells += [f"{sum(bool(one.warned) for one in held)} of {len(held)}", f"{columns['seconds'].mean():.0f}"]
        mark = f" ({len(runs) - len(held)} broke off)" if len(held) < len(runs) else ""
        lines.append(f"| {method}{mark} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _spread(values: np.ndarray, decimals: int = 3) -> str:
    spread = float(values.std(ddof=1)) if len(values) > 1 else math.nan
    return f"{values.mean():.{decimals}f}" + ("" if math.isnan(spread) else f" ± {spread:.{decimals}f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reward", type=Path, required=True, help="a trained reward model's folder")
    parser.add_argument("--methods", nargs="+", default=["ppo", "ppo_max"], help="recipes; 'ablations' for ppo_max_*")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--answers", type=int, help="drawn for each run's training; as the recipes say by default")
    parser.add_argument("--set", nargs="*", default=[], metavar="key=value", help="changes to every recipe")
    parser.add_argument("--out", type=Path, default=Path("runs/ppo"))
    parser.add_argument("--table", type=Path, help="where to write the table; beside the runs by default")
    given = parser.parse_args()
    ablations = [name for name in recipes() if name.startswith("ppo_max")]
    methods = [name for one in given.methods for name in (ablations if one == "ablations" else [one])]
    found: dict[str, list[Steady | str]] = {Path(method).stem: [] for method in methods}
    for seed in given.seeds:
        for method in methods:
            one = one_run(given, method, seed)
            found[Path(method).stem].append(one)
            print(f"{method}, seed {seed}: {one}", flush=True)
        report(given, found)  # so that a table of fewer seeds stands early
    print(f"\n{table(found)}")


def report(given: argparse.Namespace, found: Mapping[str, Sequence[Steady | str]]) -> None:
    """The table, and every run's figures, in files."""
    runs = {name: [one._asdict() if isinstance(one, Steady) else one for one in runs] for name, runs in found.items()}
    given.out.mkdir(parents=True, exist_ok=True)
    name = "-".join(Path(one).stem for one in given.methods)
    told = {"provenance": provenance(), "answers": given.answers, "set": given.set, "runs": runs}
    write_text(given.out / f"{name}.json", json.dumps(told, indent=2))
    write_text(given.table or given.out / f"{name}.md", table(found) + "\n")


if __name__ == "__main__":
    main()
