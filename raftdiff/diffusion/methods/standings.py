"""What methods came to, for people: tables in Markdown, a plot of quality against cost, and all of it as JSON."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from raftdiff.diffusion.methods.changes import BASE, Trial
from raftdiff.diffusion.methods.trials import HELD_OUT, Baselines, Look, Outcome, Yardstick
from raftdiff.errors import counted
from raftdiff.records.disk import write_text
from raftdiff.reports import methods
from raftdiff.reports.methods import Column, Measured, over_seeds
from raftdiff.reports.plots import Course, courses
from raftdiff.reports.tables import DIVERSITY_LABELS, decimals
from raftdiff.reports.words import duration

WHERE = {HELD_OUT: "held-out prompts"}
COST: Mapping[str, Column] = {
    "learning": Column("evaluations, learning", "{:,.0f}"),
    "picture": Column("evaluations, a picture", "{:,.0f}"),
    "steps": Column("steps", "{:,.0f}"),
    "exposures": Column("exposures", "{:.1f}"),
    "seconds": Column("seconds", "{:,.0f}"),
}
"""What a line says behind its figures: network evaluations to draw and to learn, and then to draw one picture;
optimizer steps; how often each picture was learnt from in a round."""
SHOWN = ("diversity.vendi", "diversity.vendi_within", "drift.prediction", "spread")


def written(
    root: Path, yardstick: Yardstick, trials: Sequence[Trial], base: Baselines, outcomes: Sequence[Outcome]
) -> str:
    """Write ``table.md``, ``methods.json`` and ``methods.svg``; returns the first."""
    text = told(yardstick, trials, base, outcomes)
    write_text(root / "table.md", text)
    write_text(root / "methods.svg", plot(yardstick, base, outcomes) + "\n")
    facts = {
        "recipe": yardstick.recipe.name,
        "candidates": yardstick.recipe.loop.candidates,
        "prompts": {where: len(prompts) for where, prompts in yardstick.prompts.items()},
        "samples_per_prompt": yardstick.recipe.evaluation.samples_per_prompt,
        "evaluations_a_picture": {strength: way.evaluations for strength, way in yardstick.ways.items()},
        "planned": {trial.name: {**trial.cost._asdict(), "total": trial.cost.total} for trial in trials},
        "base": base.model_dump(mode="json"),
        "outcomes": [outcome.model_dump(mode="json") for outcome in outcomes],
    }
    write_text(root / "methods.json", json.dumps(facts, indent=2) + "\n")
    return text


def told(yardstick: Yardstick, trials: Sequence[Trial], base: Baselines, outcomes: Sequence[Outcome]) -> str:
    """Markdown: for each set of prompts a table with everything at the evaluation's guidance, and where there are more
    strengths one that has each method at its best."""
    recipe, parts = yardstick.recipe, [f"# Methods on {yardstick.recipe.name}"]
    main, count = next(iter(yardstick.ways)), recipe.evaluation.samples_per_prompt
    for where, prompts in yardstick.prompts.items():
        found = lines(yardstick, base, outcomes, where, main)
        head = WHERE.get(where, "prompts of the training").capitalize()
        parts.append(f"## {head}: {len(prompts)} x {count} pictures, guidance {main}")
        parts.append(methods.table(found, columns(found)))
        if len(yardstick.ways) > 1:
            parts.append(f"## {head}, over guidance: {_label(decisive(found))}")
            parts.append(over_guidance(yardstick, base, outcomes, where))
    each = Counter(outcome.method for outcome in outcomes)
    fewest, most = min(each.values(), default=0), max(each.values(), default=0)
    over = f"over {most} training seeds; of the base and its best, over the prompts"
    fewer = "" if fewest == most else f", of some methods {fewest}{', whose ± is over the prompts' * (fewest == 1)}"
    spent = sorted({trial.cost.total for trial in trials})
    spread = f"{spent[0]:,}" if len(spent) == 1 else f"{spent[0]:,} to {spent[-1]:,}"
    parts.append(
        f"± is half the 95% interval {over if most > 1 else 'over the prompts'}. {spread} network evaluations a "
        f"method and seed, drawing and learning together; {counted(most, 'seed')}{fewer}."
    )
    return "\n\n".join(parts) + "\n"


def summary(yardstick: Yardstick, outcome: Outcome) -> str:
    """One run in a line."""
    where, strength = yardstick.places[0]
    found = _line(outcome.method, outcome.seed, outcome.end[where][strength])
    by = decisive([found])
    told = {_label(key): value for key, value in found.figures.items() if key == by or key.startswith("reward.")}
    figures = ", ".join(f"{label} {value:.2f}" for label, value in told.items())
    spent, seconds = outcome.spent[-1], duration(outcome.seconds)
    return f"{outcome.method}, seed {outcome.seed}: {figures}; {spent:,} network evaluations, {seconds}"


def lines(
    yardstick: Yardstick, base: Baselines, outcomes: Sequence[Outcome], where: str, strength: str
) -> list[Measured]:
    """The base, its best of N, and each method and seed, with figures and cost."""
    picture, n = yardstick.ways[strength].evaluations, yardstick.recipe.loop.candidates
    found = [
        _line(BASE, 0, base.base[where][strength], learning=0, picture=picture),
        _line(best_name(n), 0, base.best[where][strength], learning=0, picture=n * picture),
    ]
    for one in outcomes:
        cost = {"learning": one.spent[-1], "steps": one.steps, "exposures": one.exposures, "seconds": one.seconds}
        found.append(_line(one.method, one.seed, one.end[where][strength], picture=picture, **cost))
    return found


def best_name(n: int) -> str:
    return f"best of {n}, {BASE}"


def columns(found: Sequence[Measured]) -> dict[str, Column]:
    """Everything right where it is judged, the rewards, of the first of these what it is above the base's; diversity,
    drift, spread, and the costs."""
    keys, by = list(dict.fromkeys(key for one in found for key in one.figures)), decisive(found)
    shown = [by, f"gain.{by}", *(key for key in keys if key.startswith("reward.") and key != by)]
    shown += [key for key in SHOWN if key in keys]
    sizes = {key: max((abs(one.figures[key]) for one in found if key in one.figures), default=0.0) for key in shown}
    sizes[f"gain.{by}"] = sizes[by]
    hows = {key: 1 if "judge." in key else decimals(size) for key, size in sizes.items()}
    signs = {key: "+" if key.startswith("gain.") else "" for key in shown}
    return {**{key: Column(_label(key), f"{{:{signs[key]}.{hows[key]}f}}") for key in shown}, **COST}


def decisive(found: Sequence[Measured]) -> str:
    """The figure by which a method is at its best: everything right where it is judged, else the first reward."""
    keys = list(dict.fromkeys(key for one in found for key in one.figures))
    return "judge.exact" if "judge.exact" in keys else next(key for key in keys if key.startswith("reward."))


def over_guidance(yardstick: Yardstick, base: Baselines, outcomes: Sequence[Outcome], where: str) -> str:
    """The decisive figure with each strength, and each method with the one at which its mean is highest, the lower of
    equals. It is chosen on the prompts that are told of, for all alike."""
    strengths = sorted(yardstick.ways, key=float)
    every = {strength: lines(yardstick, base, outcomes, where, strength) for strength in strengths}
    by = decisive(every[strengths[0]])
    means = {
        name: [over_seeds(every[strength], name, by)[0] for strength in strengths]
        for name in dict.fromkeys(one.method for one in every[strengths[0]])
    }
    best = {name: strengths[values.index(max(values))] for name, values in means.items()}
    found = []
    for place, one in enumerate(every[strengths[0]]):
        own = best[one.method]
        at = {strength: every[strength][place] for strength in strengths}
        figures = {strength: it.figures[by] for strength, it in at.items()}
        halves = {strength: it.halves.get(by, 0.0) for strength, it in at.items()}
        figures |= {"best": figures[own], "at": float(own), "picture": at[own].figures["picture"]}
        found.append(Measured(one.method, one.seed, figures, {**halves, "best": halves[own]}))
    how = f"{{:.{1 if by.startswith('judge.') else decimals(max(abs(it.figures['best']) for it in found))}f}}"
    shown = {strength: Column(strength, how) for strength in strengths}
    at_best = {"best": Column("at its best", how), "at": Column("which is", "{:g}")}
    return methods.table(found, {**shown, **at_best, "picture": COST["picture"]})


def plot(yardstick: Yardstick, base: Baselines, outcomes: Sequence[Outcome]) -> str:
    """The decisive figure against network evaluations, a line a method through the rounds at which it was measured. The
    intervals are of what it is above the base."""
    where, strength = yardstick.places[0]
    found = lines(yardstick, base, outcomes, where, strength)
    by = decisive(found)
    start = (0.0, base.base[where][strength].figures[by])
    groups = {}
    for name in dict.fromkeys(outcome.method for outcome in outcomes):
        runs = [outcome for outcome in outcomes if outcome.method == name]
        rounds = sorted(set.intersection(*({*run.looks} for run in runs)))
        points = [
            (
                sum(run.spent[t] for run in runs) / len(runs),
                sum(run.looks[t][where][strength].figures[by] for run in runs) / len(runs),
            )
            for t in rounds
        ]
        groups[name] = Course([start, *points], over_seeds(found, name, f"gain.{by}")[1])
    n = yardstick.recipe.loop.candidates
    levels = {BASE: start[1], best_name(n): base.best[where][strength].figures[by]}
    about = f"{WHERE.get(where, 'prompts of the training')}, guidance {strength}"
    return courses(groups, levels, x="network evaluations, drawing and learning", y=f"{_label(by)}: {about}")


def _line(name: str, seed: int, look: Look, **cost: float) -> Measured:
    return Measured(name, seed, {**look.figures, **cost}, look.halves)


def _label(key: str) -> str:
    kind, _, name = key.partition(".")
    if kind in ("judge", "gain"):
        return "everything right, %" if kind == "judge" else "above the base"
    known = {"drift.prediction": "drift", "spread": "spread of latents"}
    return known.get(key) or (DIVERSITY_LABELS[name] if kind == "diversity" else name)
