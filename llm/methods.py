"""Alignment methods side by side: each recipe run at the same generation budget, and one table of what came of it."""

import json
import math
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from raftdiff.embedded.reviews.reward import true_perplexity
from raftdiff.errors import UserError, nearest
from raftdiff.llm import comparison
from raftdiff.llm.assembly import TextAssembly, assemble_text
from raftdiff.llm.data.prompts import read_prompts
from raftdiff.llm.figures import diversity, perplexity
from raftdiff.llm.model.rows import row_of, score
from raftdiff.llm.recipe import UNMEASURED, load_text_recipe, weights
from raftdiff.measures import statistics
from raftdiff.progress import Progress, Quiet
from raftdiff.raft import raft
from raftdiff.ranking import scores
from raftdiff.recipes.checks import weight_of
from raftdiff.recipes.files import locate
from raftdiff.records.beginning import at_work
from raftdiff.records.disk import read_json, write_text
from raftdiff.records.run import Run, load_round
from raftdiff.reports import methods
from raftdiff.reports.methods import Column, Measured
from raftdiff.scoring import in_order
from raftdiff.seeds import fold
from raftdiff.selection.advantages import best_of_n_kl_bound
from raftdiff.stages.servers import asking_first
from raftdiff.types import Prompt, Reward

WEIGHTED, COMPARED = ("raft", "raft_random", "rwr", "rrhf"), ("dpo", "ipo", "simpo", "orpo", "kto")
METHODS = (*WEIGHTED, *COMPARED, "grpo", "dr_grpo", "rloo", "raft_pp", "reinforce_rej")
"""What is compared by default: recipes that ship."""


class Outcome(NamedTuple):
    """What one run came to, on the held-out prompts."""

    method: str
    seed: int
    reward: float
    """Mean of the reward that all are compared by; higher is better."""
    perplexity: float
    """In truth, of the answers under the text world's grammar; else under the base model. Lower is likelier."""
    distinct_2: float
    kl: float
    """log p - log p0 of an answer, nats."""
    length: float
    """Words."""
    tokens: int
    """Drawn for training; of the best of n, for its answers."""
    steps: int
    """Of the optimizer."""
    seconds: float
    """Training alone; of the best of n, drawing."""
    others: Mapping[str, float] = {}
    """Means of the further rewards by name: of the training where methods are compared by another, and those that only
    look on. Where the reward rises and the true one beside it falls, a method has found the reward's weaknesses."""
    interval: float = 0.0
    """Half the 95% interval of the reward over the held-out prompts; 0 where it is not known."""
    perplexity_of: str = ""
    """By whom the perplexity is told: "grammar" or "base"."""


COLUMNS: Mapping[str, Column] = {
    "reward": Column("reward", "{:.3f}"),
    "perplexity": Column("perplexity", "{:.2f}"),
    "distinct_2": Column("distinct-2", "{:.3f}"),
    "kl": Column("KL", "{:.1f}"),
    "length": Column("words", "{:.1f}"),
    "tokens": Column("tokens drawn", "{:,.0f}"),
    "steps": Column("steps", "{:.0f}"),
    "seconds": Column("seconds", "{:.0f}"),
}
OTHER = "other: "
"""Before the name of a further reward, so that no column is meant by it."""


def run_method(
    name: str,
    seed: int,
    root: Path,
    overrides: Sequence[str],
    *,
    reward: str,
    baselines: bool = True,
    progress: Progress | None = None,
) -> list[Outcome]:
    """One method's run, trained as far as it is not, and measured: with ``baselines`` the base and the base's best of
    K, and the method.

    ``reward``: the name of the one that all are compared by, among those of the recipe or of its evaluation.
    A run that was measured by it is not measured again, so that a comparison that was stopped goes on.

    Raises:
        UserError: the recipe is not one for texts, or does not fit the overrides.
    """
    recipe = load_text_recipe(locate(name), [*overrides, f"loop.seed={seed}"])
    name = Path(name).stem
    run = Run.at(root / f"{name}-{seed}", recipe)
    told = run.path / "outcome.json"
    known = read_json(told) if told.is_file() else {}
    held = [Outcome(**row) for row in known.get("outcomes", [])]
    enough = held and (len(held) > 1 or not baselines)
    if enough and run.rounds_done() == recipe.loop.rounds and known.get("reward", reward) == reward:
        return held if baselines else held[-1:]
    with at_work(run, recipe, weights, asking_first(run, assemble_text)) as assembly:
        for _ in raft(run, assembly.parts, progress or Quiet()):
            pass
        load_round(run, assembly.finetuner, None)
        found = _measured(name, seed, run, assembly, reward, baselines=baselines)
    write_text(told, json.dumps({"reward": reward, "outcomes": [one._asdict() for one in found]}, indent=2))
    return found


def check_comparison(planned: Mapping[str, Sequence[str]], reward: str) -> None:
    """Whether methods can be compared, before the first is trained; ``planned``: the overrides of each recipe.

    Raises:
        UserError: there is no such recipe, it does not fit the overrides, or its answers are not scored by ``reward``.
    """
    for name, overrides in planned.items():
        recipe = load_text_recipe(locate(name), overrides)
        if recipe.loop.sample_every > 1:
            raise UserError(f"{name}: methods are compared at equal numbers of drawn answers; set loop.sample_every=1.")
        rewards = (*recipe.ranker.rewards, *recipe.evaluation.rewards)
        _check_scored(name, reward, [one.name or one.type for one in rewards if one.type not in UNMEASURED])


def _check_scored(name: str, reward: str, known: Collection[str]) -> None:
    if reward not in known:
        raise UserError(
            f"{name}: its answers are not scored by '{reward}', which the methods are compared by. "
            f"{nearest(reward, known)} Name one of them with --reward, or add it to the recipe's evaluation.rewards."
        )


def rounds_of(name: str, answers: int, overrides: Sequence[str] = ()) -> int:
    """In how many rounds of its own size a recipe draws so many answers, as nearly as it comes from below: PPO-max is
    itself only with a small buffer, and other methods are not with one.

    Raises:
        UserError: there is no such recipe, or one round is more than that.
    """
    recipe = load_text_recipe(locate(name), overrides)
    prompts = len(read_prompts(recipe.prompts, Path(), "prompts"))
    drawn = min(recipe.loop.prompts_per_round or prompts, prompts) * recipe.loop.candidates
    if answers < drawn:
        raise UserError(f"{name}: one round draws {drawn} answers; allow as many, or make loop.prompts_per_round less.")
    return answers // drawn


def table(outcomes: Sequence[Outcome]) -> str:
    """Markdown, as ``reports.methods.table``. Behind the reward that all are compared by, a column for each further
    one; empty where a method was not scored by it."""
    further = dict.fromkeys(name for one in outcomes for name in one.others)
    columns = {"reward": COLUMNS["reward"], **{OTHER + name: Column(name, "{:.3f}") for name in further}, **COLUMNS}
    if len(tellers := {one.perplexity_of for one in outcomes}) == 1 and (teller := next(iter(tellers))):
        columns["perplexity"] = columns["perplexity"]._replace(label=f"perplexity ({teller})")
    found = [
        Measured(one.method, one.seed, {key: _figure(one, key) for key in columns}, {"reward": one.interval})
        for one in outcomes
    ]
    return methods.table(found, columns)


def _figure(one: Outcome, column: str) -> float:
    if column.startswith(OTHER):
        return float(one.others.get(column.removeprefix(OTHER), math.nan))
    return float(getattr(one, column))


def first_reward(name: str, overrides: Sequence[str] = ()) -> str:
    """The name of the reward that a recipe's answers are evaluated by, the first of them that counts, else the first.

    Raises:
        UserError: there is no such recipe, or it has none.
    """
    recipe = load_text_recipe(locate(name), overrides)
    rewards = [one for one in (*recipe.ranker.rewards, *recipe.evaluation.rewards) if one.type not in UNMEASURED]
    return str(sorted(rewards, key=lambda one: not weight_of(one))[0].name)


def _measured(name: str, seed: int, run: Run, assembly: TextAssembly, reward: str, *, baselines: bool) -> list[Outcome]:
    evaluation, rounds = assembly.recipe.evaluation, run.metrics()
    known = {one.name: one for one, _ in assembly.measures.rewards}
    _check_scored(name, reward, known)
    prompts = comparison.evaluation_texts(assembly, None)
    compared = comparison.compare(assembly, prompts, per_prompt=evaluation.samples_per_prompt, seed=evaluation.seed)
    spent: dict[str, Any] = {
        "tokens": sum(int(one["network_evaluations"].get("sample", 0)) for one in rounds),
        "steps": sum(int(one["tune"]["steps"]) for one in rounds),
        "seconds": sum(sum(value for stage, value in one["seconds"].items() if stage != "validate") for one in rounds),
    }
    rewards = compared.evaluation["rewards"]
    text = compared.evaluation["text"]
    truth = "true_perplexity" if "true_perplexity" in text else "perplexity"

    def side(which: str, method: str, kl: float, **cost: Any) -> Outcome:
        values = {column: text[column][which] for column in ("distinct_2", "length")}
        others = {name: means[which]["mean"] for name, means in rewards.items() if name != reward}
        mean, (low, high) = rewards[reward][which]["mean"], rewards[reward][which]["ci95"] or (0.0, 0.0)
        told: dict[str, Any] = {"others": others, "interval": (high - low) / 2, "perplexity_of": _teller(assembly)}
        return Outcome(method, seed, mean, text[truth][which], kl=kl, **values, **cost, **told)

    free = {"tokens": 0, "steps": 0, "seconds": 0.0}
    tuned = side("after", name, compared.evaluation["drift"]["kl"], **spent)
    if not baselines:
        return [tuned]
    return [side("before", "base", 0.0, **free), _best_of_n(assembly, prompts, seed, known, reward), tuned]


def _teller(assembly: TextAssembly) -> str:
    return "grammar" if assembly.judge else "base"


def _best_of_n(
    assembly: TextAssembly, prompts: Sequence[Prompt], seed: int, known: Mapping[str, Reward[str]], reward: str
) -> Outcome:
    """The best of K answers of the base by one of the ``known`` rewards, as many to each prompt as the other sides
    have: RAFT's first selection as a method of inference, which costs K answers for each. Discarded answers are not
    among them. Its KL is bounded by log K - (K - 1) / K."""
    n, evaluation, began = assembly.recipe.loop.candidates, assembly.recipe.evaluation, time.perf_counter()
    before, count = assembly.evaluator.network_evaluations(), n * evaluation.samples_per_prompt
    with assembly.finetuner.base_weights():
        stream = assembly.evaluator.sample(
            prompts, per_prompt=count, seed=fold(evaluation.seed, "best_of_n"), round=0, done=frozenset()
        )
        drawn = in_order(stream, prompts)
    seconds, tokens = time.perf_counter() - began, assembly.evaluator.network_evaluations() - before
    totals = scores(known[reward], drawn)
    best = best_of_each(totals, n)
    if not best:
        raise UserError(f"The reward '{reward}' discards every answer of the base, so none of them is the best.")
    chosen = [drawn[at] for at in best]
    text = diversity([one.media for one in chosen])
    by_prompt = [
        np.mean([totals[at] for at in best if at // count == place]) for place in sorted({at // count for at in best})
    ]
    low, high = statistics.t_interval(np.array(by_prompt))
    if assembly.judge:
        likely = true_perplexity(chosen)
    else:
        rows = [row_of(assembly.lm, one, learning=False) for one in chosen]
        with assembly.finetuner.base_weights():
            likely = perplexity(score(assembly.lm, rows, batch_size=assembly.distances.batch_size))
    return Outcome(
        f"best of {n}, base",
        seed,
        float(np.mean([totals[at] for at in best])),
        likely,
        text["distinct_2"] or math.nan,
        best_of_n_kl_bound(n),
        text["length"] or math.nan,
        tokens,
        0,
        seconds,
        {name: float(np.nanmean(scores(other, chosen))) for name, other in known.items() if name != reward},
        interval=(high - low) / 2,
        perplexity_of=_teller(assembly),
    )


def best_of_each(totals: Float[np.ndarray, " answers"], n: int) -> list[int]:
    """Where the best of each n answers stands; a discarded one (NaN) never is, and n discarded ones have none.

    >>> best_of_each(np.array([np.nan, 5.0, 1.0, np.nan, np.nan, np.nan, 2.0, 2.0, np.nan]), 3)
    [1, 6]
    """
    found = []
    for start in range(0, len(totals), n):
        valid = [at for at in range(start, min(start + n, len(totals))) if totals[at] == totals[at]]
        if valid:
            found.append(max(valid, key=lambda at: float(totals[at])))
    return found
