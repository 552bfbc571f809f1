"""Methods run side by side: each trained with every seed, and measured as all others are.

Runs lie beside each other in one folder, ``METHOD-SEED``, each with its ``outcome.json``; ``base.json`` holds what the
base comes to. What stands there is not made again, so that a comparison that was stopped goes on.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypeVar, final

import numpy as np
import torch
from PIL.Image import Image
from pydantic import Field

from raftdiff.diffusion.assembly import Assembly, assemble, build_ranker, measuring
from raftdiff.diffusion.before_after.comparison import compare, evaluation_prompts, measured
from raftdiff.diffusion.methods.changes import Trial, step_cost
from raftdiff.diffusion.recipe import Recipe, looking_of
from raftdiff.diffusion.recipe_files import weights
from raftdiff.measures.evaluation import Evaluation, draw
from raftdiff.progress import Progress, Quiet
from raftdiff.raft import raft
from raftdiff.ranking import Ranker
from raftdiff.recipes.config import Config, check, digest, plain
from raftdiff.records.beginning import at_work
from raftdiff.records.disk import read_json, write_text
from raftdiff.records.run import Run, load_round
from raftdiff.reports.tables import rows
from raftdiff.selection.best import best_of_k
from raftdiff.stages.servers import asking_first
from raftdiff.types import Report, Sample, silent

HELD_OUT, TRAINING = "held_out", "training"
"""Whose prompts: the evaluation's, or the recipe's own."""
CHECKPOINTS = 4
"""At most so many of a run's rounds are measured, evenly apart, the last among them."""


class Look(Config):
    """One model's pictures of some prompts in figures."""

    figures: dict[str, float]
    """By the keys of ``reports.tables.rows``, rates in percent; ``gain.`` and such a key for what a reward or verdict
    is above the base's, picture by picture; and ``spread``, the latents' standard deviation."""
    halves: dict[str, float]
    """Half the 95% interval over the prompts, of those figures for which it is known."""


Looks = dict[str, dict[str, Look]]
"""By whose prompts they are, and by the strength of guidance."""


class Baselines(Config):
    """What the base comes to without being tuned."""

    how: str
    """A digest of how it was measured."""
    base: Looks = Field(default_factory=dict)
    best: Looks = Field(default_factory=dict)
    """Of so many candidates for each picture the one that the rewards rank highest, its own among them: what ranking
    gives without learning, at as many times the cost of a picture."""

    def lacks(self, yardstick: "Yardstick") -> list[tuple[str, str]]:
        """Whose prompts and the strength of every look that was not taken yet."""
        return [place for place in yardstick.places if not _has(self.best, *place)]


class Outcome(Config):
    """What one run came to."""

    method: str
    seed: int
    how: str
    """A digest of how it was measured."""
    spent: list[int]
    """Network evaluations up to the end of each round, drawing and learning; looking is left out."""
    steps: int
    exposures: float
    """How often each picture was learnt from in a round, mean over the rounds."""
    seconds: float
    """Without looking."""
    looks: dict[int, Looks] = Field(default_factory=dict)
    """After these rounds: the last in every way that was asked for, those before it as the evaluation draws."""

    @property
    def end(self) -> Looks:
        """After the last round."""
        return self.looks[len(self.spent) - 1]

    def lacks(self, yardstick: "Yardstick") -> list[tuple[int, str, str]]:
        """The round, whose prompts and the strength of every look that was not taken yet."""
        marks = looked_at(len(self.spent))
        wanted = [(t, *yardstick.places[0]) for t in marks[:-1]] + [(marks[-1], *place) for place in yardstick.places]
        return [
            (t, where, strength) for t, where, strength in wanted if not _has(self.looks.get(t, {}), where, strength)
        ]

    def with_look(self, t: int, where: str, strength: str, look: Look) -> "Outcome":
        return self.model_copy(update={"looks": {**self.looks, t: _put(self.looks.get(t, {}), where, strength, look)}})


Kept = TypeVar("Kept", Outcome, Baselines)


@final
class Yardstick:
    """What every model is measured with: one recipe's prompts, seeds, sampler, rewards and judge, and the same pictures
    of the base beside it, which are drawn once."""

    def __init__(self, recipe: Recipe, strengths: Sequence[float] = (), *, training: bool = False) -> None:
        """
        Args:
            strengths: of guidance, beside the evaluation's own, which comes first.
            training: whether to look at the prompts of the training too.
        """
        self.recipe = recipe
        evaluation, own = recipe.evaluation, recipe.guidance
        drawing = looking_of(recipe)
        used = drawing.model_copy(update={"steps": evaluation.steps or drawing.steps})
        every = (own, *sorted(set(strengths) - {own}))
        self.ways = {f"{strength:g}": used.model_copy(update={"guidance": strength}) for strength in every}
        held_out = {HELD_OUT: None} if evaluation.prompts.captions else {}
        trained_on = {TRAINING: TRAINING} if training or not held_out else {}
        self.prompts = {where: evaluation_prompts(recipe, file) for where, file in {**held_out, **trained_on}.items()}
        self.places = [(where, strength) for where in self.prompts for strength in self.ways]
        ranker = plain(recipe.ranker)
        ranked_by = {"rewards": ranker["rewards"], "mix": ranker["mix"]}
        used_by = {"sampler": plain(used), **ranked_by, "model": plain(recipe.model)}
        counted = {"evaluation": plain(evaluation), "candidates": recipe.loop.candidates, "marks": weights(recipe)}
        asked = {where: [[prompt.id, prompt.caption] for prompt in held] for where, held in self.prompts.items()}
        self.how = digest({**used_by, **counted, "asked": asked}, ("model.device",))
        self._measures: Ranker[Image] | None = None
        self._drawn: dict[tuple[str, str], list[Sample[Image]]] = {}

    def look(self, assembly: Assembly, where: str, strength: str, report: Report = silent) -> Look:
        """At the policy as it stands.

        Raises:
            UserError: as ``comparison.compare``.
        """
        there, evaluation = self._there(assembly, strength), self.recipe.evaluation
        compared = compare(
            there,
            self.prompts[where],
            per_prompt=evaluation.samples_per_prompt,
            seed=evaluation.seed,
            report=report,
            before=self._base(there, where, strength),
        )
        return _look(compared.evaluation, "after", compared.after)

    def baselines(self, assembly: Assembly, where: str, strength: str, report: Report = silent) -> tuple[Look, Look]:
        """The base, and its best of so many as a prompt has candidates, by the weighted rewards."""
        there, evaluation = self._there(assembly, strength), self.recipe.evaluation
        prompts, count, n = self.prompts[where], evaluation.samples_per_prompt, self.recipe.loop.candidates
        before = self._base(there, where, strength)
        best: list[Sample[Image]] = []
        with assembly.finetuner.base_weights():
            for place, prompt in enumerate(prompts):
                drawn = draw(there.evaluator, [prompt], per_prompt=n * count, seed=evaluation.seed)
                # each place has its own candidates, and is ranked among these
                raw = {name: told.reshape(-1, count).T for name, told in there.measures.raw(drawn).items()}
                best += best_in_place(drawn, there.measures.total(raw).T.ravel(), count)
                report(place + 1, len(prompts))
        both = measured(there, prompts, before, best)
        return _look(both.evaluation, "before", before), _look(both.evaluation, "after", best)

    def _there(self, assembly: Assembly, strength: str) -> Assembly:
        """A method's network, looked at as the recipe of the comparison says."""
        if self._measures is None:
            device = str(assembly.model.device)
            self._measures = measuring(self.recipe, build_ranker(self.recipe, device=device), device=device)
        evaluator = self.ways[strength].build(assembly.model)
        return replace(assembly, recipe=self.recipe, evaluator=evaluator, measures=self._measures)

    def _base(self, there: Assembly, where: str, strength: str) -> list[Sample[Image]]:
        if (where, strength) not in self._drawn:
            count, seed = self.recipe.evaluation.samples_per_prompt, self.recipe.evaluation.seed
            with there.finetuner.base_weights():
                drawn = draw(there.evaluator, self.prompts[where], per_prompt=count, seed=seed)
            self._drawn[where, strength] = drawn
        return self._drawn[where, strength]


def run_trial(
    trial: Trial,
    seed: int,
    root: Path,
    yardstick: Yardstick,
    *,
    progress: Progress | None = None,
    begin: Callable[[Run, Assembly], None] | None = None,
) -> Outcome:
    """A method's run with one seed, trained as far as it is not, and looked at where it was not yet; the base too.

    ``begin`` hears of it before it is trained.

    Raises:
        UserError: the folder of the run holds that of another recipe, or something of it fails.
    """
    recipe, progress = trial.of_seed(seed), progress or Quiet()
    run = Run.at(root / f"{trial.name}-{seed}", recipe)
    kept = _kept(Outcome, run.path / "outcome.json", yardstick)
    if kept and not kept.lacks(yardstick) and not baselines(root, yardstick).lacks(yardstick):
        return kept
    with at_work(run, recipe, weights, asking_first(run, assemble)) as assembly:
        if begin:
            begin(run, assembly)
        _look_at_base(root, assembly, yardstick, progress)
        for _ in raft(run, assembly.parts, progress):
            pass
        return _look_at(
            run, assembly, kept or _trained(trial.name, seed, run, recipe, yardstick.how), yardstick, progress
        )


def finished(trial: Trial, seed: int, root: Path, yardstick: Yardstick) -> Outcome | None:
    """What a run came to, where it has been trained and looked at in every way."""
    kept = _kept(Outcome, root / f"{trial.name}-{seed}" / "outcome.json", yardstick)
    return kept if kept and not kept.lacks(yardstick) else None


def baselines(root: Path, yardstick: Yardstick) -> Baselines:
    """What is known of the base; nothing where it was measured otherwise."""
    return _kept(Baselines, root / "base.json", yardstick) or Baselines(how=yardstick.how)


def looked_at(rounds: int) -> list[int]:
    """The rounds after which a run is measured.

    >>> looked_at(2), looked_at(10)
    ([0, 1], [1, 4, 6, 9])
    """
    count = min(rounds, CHECKPOINTS)
    return sorted({rounds * (place + 1) // count - 1 for place in range(count)})


def best_in_place(drawn: Sequence[Sample[Image]], totals: np.ndarray, count: int) -> list[Sample[Image]]:
    """One picture for each of a prompt's first ``count``, the best by ``totals`` of it and of every ``count``-th after
    it, under its number and seed; where all are discarded, it stays."""
    table = totals.reshape(-1, count).T
    chosen = [int(row.argmax()) for row in best_of_k(table)]
    return [
        replace(drawn[candidate * count + place], index=drawn[place].index, seed=drawn[place].seed)
        for place, candidate in enumerate(chosen)
    ]


def _trained(name: str, seed: int, run: Run, recipe: Recipe, how: str) -> Outcome:
    rounds, step = run.metrics(), step_cost(recipe)
    spent = [int(it["network_evaluations"].get("sample", 0)) + int(it["tune"]["steps"]) * step for it in rounds]
    return Outcome(
        method=name,
        seed=seed,
        how=how,
        spent=np.cumsum(spent).tolist(),
        steps=sum(int(it["tune"]["steps"]) for it in rounds),
        exposures=float(np.mean([it["tune"].get("exposures_mean", 0.0) for it in rounds])),
        seconds=sum(sum(value for stage, value in it["seconds"].items() if stage != "validate") for it in rounds),
    )


def _look_at_base(root: Path, assembly: Assembly, yardstick: Yardstick, progress: Progress) -> None:
    base = baselines(root, yardstick)
    for where, strength in base.lacks(yardstick):
        own, best = yardstick.baselines(assembly, where, strength, progress.stage(0, "evaluate the base"))
        base = base.model_copy(
            update={"base": _put(base.base, where, strength, own), "best": _put(base.best, where, strength, best)}
        )
        write_text(root / "base.json", base.model_dump_json(indent=2))


def _look_at(run: Run, assembly: Assembly, found: Outcome, yardstick: Yardstick, progress: Progress) -> Outcome:
    loaded = None
    for t, where, strength in found.lacks(yardstick):
        if t != loaded:
            load_round(run, assembly.finetuner, t)
            loaded = t
        look = yardstick.look(assembly, where, strength, progress.stage(t, "evaluate"))
        found = found.with_look(t, where, strength, look)
        write_text(run.path / "outcome.json", found.model_dump_json(indent=2))
    return found


def _look(evaluation: Evaluation, side: Literal["before", "after"], samples: Sequence[Sample[Image]]) -> Look:
    found = rows(evaluation)
    values = {row.key: row.before if side == "before" else row.after for row in found}
    figures = {key: value for key, value in values.items() if value is not None and math.isfinite(value)}
    figures["spread"] = float(torch.stack([sample.aux["latent"] for sample in samples]).std())
    ends = {f"reward.{name}": (it[side]["ci95"], 1.0) for name, it in evaluation["rewards"].items()}
    for name, it in evaluation["judge"].items():
        ends[f"judge.{name}"] = (it["before_ci95"] if side == "before" else it["after_ci95"], 100.0)
    halves = {key: scale * (ci95[1] - ci95[0]) / 2 for key, (ci95, scale) in ends.items() if ci95 is not None}
    if side == "after":
        figures |= {f"gain.{row.key}": row.difference for row in found if row.key in ends}
        halves |= {f"gain.{row.key}": (row.ci95[1] - row.ci95[0]) / 2 for row in found if row.key in ends and row.ci95}
    return Look(figures=figures, halves=halves)


def _kept(kind: type[Kept], path: Path, yardstick: Yardstick) -> Kept | None:
    """What a file holds, where it was measured as now."""
    found = check(kind, read_json(path), str(path)) if path.is_file() else None
    return found if found and found.how == yardstick.how else None


def _has(looks: Looks, where: str, strength: str) -> bool:
    return strength in looks.get(where, {})


def _put(looks: Looks, where: str, strength: str, look: Look) -> Looks:
    return {**looks, where: {**looks.get(where, {}), strength: look}}
