"""Before and after of a run: both sides drawn with the same seeds, scored, and written down with pictures and page."""

import json
import math
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import torch
from PIL.Image import Image

from raftdiff.diffusion.assembly import Assembly, features
from raftdiff.diffusion.learning.drift import drift
from raftdiff.diffusion.recipe import Recipe
from raftdiff.diffusion.sampler import DiffusionSamplerConfig
from raftdiff.errors import UserError
from raftdiff.measures.evaluation import Evaluation, Guidance, Pair, Strength, draw, draw_both, evaluate
from raftdiff.ranking import AllUnfitError
from raftdiff.recipes.config import plain
from raftdiff.recipes.prompts import PromptsConfig, build, read_named
from raftdiff.records.disk import write_text
from raftdiff.records.media import file_name
from raftdiff.records.run import Run
from raftdiff.reports.before_after import BeforeAfter
from raftdiff.reports.comparison import write_comparison
from raftdiff.scoring import demand_prompts, demand_servers
from raftdiff.types import Prompt, Report, Sample, silent

SHOWN_PROMPTS, SHOWN_SEEDS = 24, 4
DRAWN = ("steps", "guidance", "guidance_rescale", "scheduler", "spacing", "eta", "height", "width")
"""Of a sampler's settings, those that change a picture."""


@final
@dataclass(frozen=True, slots=True)
class Drawn:
    """One picture and what the recipe's rewards and judge say of it."""

    sample: Sample[Image]
    scores: Mapping[str, float]
    """By reward; NaN where it was discarded. Higher is better."""
    verdicts: Mapping[str, bool]
    """By the judge's aspect; empty where there is no judge for this caption."""

    @property
    def marks(self) -> dict[str, float | bool]:
        """Both in one, scores first."""
        return {**self.scores, **self.verdicts}


@final
@dataclass(frozen=True)
class Compared:
    """Both sides, drawn and measured."""

    prompts: Sequence[Prompt]
    before: Sequence[Sample[Image]]
    after: Sequence[Sample[Image]]
    evaluation: Evaluation


def evaluation_prompts(recipe: Recipe, file: str | None) -> list[Prompt]:
    """The prompts to compare on: a file's, ``training`` for the run's own (their plain captions), or the held-out ones.

    Whatever was sampled in training, here the model reads the plain caption: that is what a user types afterwards.
    """
    held_out = recipe.evaluation.prompts
    if file is not None and file != "training":
        captions = read_named(file, Path(), "--prompts")
        return build(held_out.model_copy(update={"file": None, "captions": captions}), "--prompts")
    if file is None and held_out.captions:
        return build(held_out, "evaluation.prompts")
    own = [{**prompt.meta, "id": prompt.id, "caption": prompt.caption} for prompt in build(recipe.prompts)]
    return build(PromptsConfig(captions=list(own)))


def compare(
    assembly: Assembly,
    prompts: Sequence[Prompt],
    *,
    per_prompt: int,
    seed: int,
    report: Report = silent,
    before: Sequence[Sample[Image]] | None = None,
) -> Compared:
    """Draw and measure the base and the policy as it stands, with the same seeds. ``before`` are the base's pictures,
    where they were drawn already.

    Raises:
        UserError: the judge understands some of the captions and not others, as after a slip of the pen; a reward can
            say nothing of one of the prompts, or its server is not there; or one side drew nothing but pictures of one
            colour.
    """
    _judged_or_not(assembly, [prompt.caption for prompt in prompts])
    rewards = [reward for reward, _ in assembly.measures.rewards]
    demand_prompts(rewards, prompts)
    demand_servers(rewards)
    began, spent = time.perf_counter(), assembly.evaluator.network_evaluations()
    base_weights, evaluator = assembly.finetuner.base_weights, assembly.evaluator
    if before is None:
        before, after = draw_both(evaluator, base_weights, prompts, per_prompt=per_prompt, seed=seed, report=report)
    else:
        after = draw(evaluator, prompts, per_prompt=per_prompt, seed=seed, report=report)
    for side in (before, after):
        assembly.measures.refuse_unfit(side)
    latents = torch.stack([sample.aux["latent"] for sample in before])
    captions = [sample.prompt.caption for sample in before]
    rows = assembly.evaluator.config.at_once
    moved = drift(assembly.model, base_weights, latents, captions, batch_size=rows)
    seconds, evaluations = time.perf_counter() - began, assembly.evaluator.network_evaluations() - spent
    return measured(assembly, prompts, before, after, moved=moved, seconds=seconds, evaluations=evaluations)


def compare_over(
    assembly: Assembly,
    prompts: Sequence[Prompt],
    strengths: Sequence[float],
    *,
    per_prompt: int,
    seed: int,
    report: Report = silent,
) -> Compared:
    """``compare`` with each of some strengths of guidance: the base at its best one against the policy at its own. One
    with which a side drew nothing but pictures of one colour, as where guidance overflows, is told and left out.

    Raises:
        UserError: as ``compare``; the strengths are left out one and all.
    """
    config = assembly.evaluator.config
    asked = [config.model_copy(update={"guidance": strength}) for strength in sorted(set(strengths))]
    ways, found = [], []
    for place, way in enumerate(asked):

        def told(done: int, total: int, place: int = place) -> None:
            report(place * total + done, len(asked) * total)

        there = replace(assembly, evaluator=way.build(assembly.model))
        try:
            found.append(compare(there, prompts, per_prompt=per_prompt, seed=seed, report=told))
        except AllUnfitError as error:
            blank = f"With guidance {way.guidance:g}: {error}"
            if not found and way is asked[-1]:
                raise UserError(blank) from None
            warnings.warn(f"{blank} That strength is left out.", stacklevel=2)
        else:
            ways.append(way)
    curve = [_strength(*point) for point in zip(ways, found, strict=True)]
    base, tuned = _best(curve, "before"), _best(curve, "after")
    compared = measured(
        assembly,
        prompts,
        found[base].before,
        found[tuned].after,
        moved=found[tuned].evaluation["drift"]["prediction"],
        seconds=sum(it.evaluation["seconds"] for it in found),
        evaluations=sum(it.evaluation["network_evaluations"] for it in found),
    )
    best = Pair(before=ways[base].guidance, after=ways[tuned].guidance)
    compared.evaluation["guidance"] = Guidance(curve=curve, best=best)
    return compared


def _strength(way: DiffusionSamplerConfig, compared: Compared) -> Strength:
    evaluation, figures = compared.evaluation, {}
    if judged := evaluation["judge"].get("exact"):
        figures["judge.exact"] = Pair(before=judged["before"], after=judged["after"])
    for name, it in evaluation["rewards"].items():
        figures[f"reward.{name}"] = Pair(before=it["before"]["mean"], after=it["after"]["mean"])
    if diversity := evaluation["diversity"]:
        figures["diversity.vendi_within"] = diversity["vendi_within"]
    return Strength(guidance=way.guidance, evaluations=way.evaluations, figures=figures)


def _best(curve: Sequence[Strength], side: Literal["before", "after"]) -> int:
    """The first of the places at which the first figure is highest."""
    decisive = next(iter(curve[0]["figures"]))
    values = [-math.inf if (value := it["figures"][decisive][side]) is None else value for it in curve]
    return values.index(max(values))


def measured(
    assembly: Assembly,
    prompts: Sequence[Prompt],
    before: Sequence[Sample[Image]],
    after: Sequence[Sample[Image]],
    *,
    moved: float | None = None,
    seconds: float = 0.0,
    evaluations: int = 0,
) -> Compared:
    """Two sides that are drawn, by the recipe's rewards, judge and features; what they cost, and how far the model's
    predictions ``moved``, is passed through."""
    evaluation = evaluate(
        prompts,
        before,
        after,
        rewards=[reward for reward, _ in assembly.measures.rewards],
        features=features(assembly.measures.rewards, assembly.measures.turn),
        judge=assembly.judge([sample.prompt.caption for sample in before]),
        prediction_drift=moved,
        seconds=seconds,
        network_evaluations=evaluations,
    )
    return Compared(prompts, before, after, evaluation)


def _judged_or_not(assembly: Assembly, captions: Sequence[str]) -> None:
    strange = assembly.strange(captions)
    if strange and len(strange) < len(captions):
        raise UserError(
            f"The judge does not understand '{strange[0]}', though it understands {len(captions) - len(strange)} of "
            f"{len(captions)} prompts. Write it as they are written, or evaluate with: evaluation.judge=null"
        )


def write(
    folder: Path,
    run: Run,
    assembly: Assembly,
    compared: Compared,
    *,
    trained_on: bool = False,
    training: Mapping[str, Any] | None = None,
    round: int | None = None,
) -> Path:
    """The pictures of both sides beside figures and page; as ``reports.comparison.write_comparison``."""

    def pictures(aside: Path) -> None:
        for side, samples in (("before", compared.before), ("after", compared.after)):
            (aside / side).mkdir()
            for sample in samples:
                sample.media.save(aside / side / file_name(sample))
        captions = {file_name(sample): sample.prompt.caption for sample in compared.before}
        write_text(aside / "pictures.json", json.dumps(captions, indent=1) + "\n")

    return write_comparison(
        folder,
        run,
        name=assembly.recipe.name,
        evaluation=compared.evaluation,
        drawn=_how(assembly, compared),
        media=pictures,
        pairs=_pairs(assembly, compared),
        trained_on=trained_on,
        training=training,
        round=round,
    )


def _how(assembly: Assembly, compared: Compared) -> dict[str, Any]:
    """What pictures depend on beside prompt and model; the strengths of guidance where there are several."""
    config = plain(assembly.evaluator.config)
    told = {name: config[name] for name in DRAWN}
    if several := compared.evaluation.get("guidance"):
        told["guidance"] = [it["guidance"] for it in several["curve"]]
    return {**told, "seed": assembly.recipe.evaluation.seed}


def judged(assembly: Assembly, samples: Sequence[Sample[Image]]) -> list[Drawn]:
    """The pictures with every raw reward, and with the held-out judge's word where it knows the captions."""
    raw = assembly.measures.raw(samples)
    captions = [sample.prompt.caption for sample in samples]
    judge = assembly.judge(captions)
    verdicts = judge([sample.media for sample in samples], captions) if judge else {}
    return [
        Drawn(
            sample,
            {name: float(values[row]) for name, values in raw.items()},
            {name: bool(values[row]) for name, values in verdicts.items() if not np.isnan(values[row])},
        )
        for row, sample in enumerate(samples)
    ]


def _pairs(assembly: Assembly, compared: Compared) -> list[BeforeAfter]:
    """The pictures for the page: the first seeds of prompts spread over all of them."""
    step = max(1, -(-len(compared.prompts) // SHOWN_PROMPTS))
    ids = {prompt.id for prompt in compared.prompts[::step]}
    chosen = [(b, a) for b, a in zip(compared.before, compared.after, strict=True) if b.prompt.id in ids]
    chosen = [(b, a) for b, a in chosen if b.index < SHOWN_SEEDS]
    before, after = (judged(assembly, side) for side in zip(*chosen, strict=True))
    return [
        BeforeAfter(b.sample.prompt.caption, b.sample.media, a.sample.media, b.marks, a.marks)
        for b, a in zip(before, after, strict=True)
    ]
