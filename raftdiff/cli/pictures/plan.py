"""``raftdiff plan``: what a recipe will do, before it does it."""

import argparse
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from raftdiff.cli.either import tell
from raftdiff.cli.pictures.card import plan_for
from raftdiff.diffusion import probe
from raftdiff.diffusion.assembly import Assembly, assemble
from raftdiff.diffusion.recipe import Recipe, work
from raftdiff.diffusion.recipe_files import load_recipe
from raftdiff.diffusion.speed import known
from raftdiff.embedded import resolve
from raftdiff.errors import UserError, counted
from raftdiff.measures.categories import columns
from raftdiff.recipes.checks import weight_of
from raftdiff.recipes.needs import ready
from raftdiff.records.provenance import hardware
from raftdiff.reports.words import duration

SHOWN = 12
"""Categories of a column."""


def plan(args: argparse.Namespace) -> None:
    """Counts from the recipe; seconds and memory from what ``bench`` found on this machine, else from a short
    measurement, models loaded."""
    own = Path(args.recipe) / "recipe.yaml"  # of a run
    name = str(own) if own.is_file() else args.recipe
    if args.card is not None:
        if args.machines:
            raise UserError("--machines is about time, which is measured here, and --card about sizes alone: ask one.")
        plan_for(name, args.overrides, args.card, as_json=args.json)
        return
    recipe = load_recipe(name, args.overrides)
    for sentence in ready(recipe, resolve):
        print(sentence, file=sys.stderr)
    assembly = assemble(recipe)
    tell(assembly.first_notes())
    kept = _kept(assembly)
    prompts = recipe.loop.prompts_per_round or len(assembly.parts.prompts)
    counts = work(recipe)
    found = known.find(known.key(assembly.sampler, assembly.finetuner, recipe.model))
    measured = found.probe if found else probe.measure(assembly.sampler, assembly.finetuner)
    watched, watched_evaluations = _watched(assembly)
    drawing = (
        counts.sampling_evaluations * measured.seconds_per_evaluation + counts.images * measured.seconds_per_decode
    )
    evaluating, decoding = _pace_of_watched(assembly, measured) if watched else (0.0, 0.0)
    seconds = measured.seconds_per_round(counts) + watched * decoding + watched_evaluations * evaluating
    whole = seconds * recipe.loop.rounds - (recipe.loop.rounds - recipe.loop.draws) * drawing
    many = {
        machines: probe.spread(
            machines,
            images=counts.images,
            at_once=assembly.sampler.config.at_once,
            drawing=drawing,
            rest=seconds - drawing,
        )
        for machines in args.machines
    }
    sent = probe.traffic(assembly.sampler, assembly.finetuner, images=counts.images)
    sorts = columns(prompt.meta for prompt in assembly.parts.prompts)
    if args.json:
        per_round = asdict(counts) | {"held_out_images": watched, "held_out_evaluations": watched_evaluations}
        facts = {"rounds": recipe.loop.rounds, "per_round": per_round, "measured": asdict(measured)}
        facts |= {"categories": sorts} if sorts else {}
        facts |= {"machines": {n: it._asdict() for n, it in many.items()}, "traffic": sent._asdict()} if many else {}
        by = f"raftdiff bench, {found.date}" if found else "raftdiff plan"
        times = {"seconds_per_round": seconds, "seconds": whole, "hardware": hardware(), "measured_by": by}
        faster = {"faster": found.faster} if found and found.faster else {}
        print(json.dumps({**facts, **times, **faster}, indent=2))
        return
    every = f", in one of {recipe.loop.sample_every} rounds" if recipe.loop.sample_every > 1 else ""
    reuse = assembly.sampler.config.reuse
    every += "" if reuse is None else f", all of the U-Net at one step of {reuse.every}"
    learnt = "pairs" if recipe.finetuner.pictures_an_item == 2 else "pictures"
    share = measured.trained_parameters / measured.model_parameters
    rows = (
        ("rounds", f"{recipe.loop.rounds}"),
        ("prompts per round", f"{prompts} of {len(assembly.parts.prompts)}, {recipe.loop.candidates} candidates each"),
        *((f"prompts by {name}", _listed(counts)) for name, counts in sorts.items()),
        ("pictures per round", f"{counts.images}, {counts.sampling_evaluations:,} network evaluations{every}"),
        ("held out per round", f"{watched}, {watched_evaluations:,} network evaluations"),
        ("learnt from per round", f"{counts.selected} {learnt}, replayed ones included, at most"),
        ("ranked by", _ranked_by(recipe)),
        ("tuning per round", f"{counts.tuning_steps} steps, {counts.tuning_evaluations:,} network evaluations"),
        *((("texts read before", kept),) if kept else ()),
        ("parameters trained", f"{measured.trained_parameters:,} ({share:.1%} of the model's)"),
        ("memory", f"about {measured.memory_bytes / 1e9:.1f} GB"),
        ("time per round", f"about {duration(seconds)}, without rewards"),
        ("time for all rounds", f"about {duration(whole)}, likewise"),
        *((f"with {counted(machines, 'machine')}", _spread(it)) for machines, it in many.items()),
        *([("traffic per round", _sent(sent))] if many else []),
        ("measured on", hardware() + (f", by raftdiff bench, {found.date}" if found else "")),
        *([("faster there", f"with {found.faster}")] if found and found.faster else []),
    )
    width = max(len(name) for name, _ in rows)
    print("\n".join(f"{name:<{width}}  {value}" for name, value in rows))


def _spread(it: probe.Spread) -> str:
    """What it is to share a round's sampling."""
    return f"about {duration(it.seconds)} per round, likewise; {it.at_work} have a batch to draw"


def _sent(it: probe.Traffic) -> str:
    return f"{it.to_each / 1e6:,.1f} MB to each machine that samples, at most {it.from_all / 1e6:,.1f} MB from all"


def _kept(assembly: Assembly) -> str:
    """How many of the recipe's texts are kept on disk, and what that saves; nothing where none are to be."""
    model, known = assembly.model, assembly.model.prompts.kept
    if known is None:
        return ""
    asked = [*assembly.parts.prompts, *assembly.parts.held_out]
    texts = {text for it in asked for text in (it.sampling, it.negative, it.learning)}
    held = known.holds(texts)
    size = sum(it.numel() for one in model.text_encoders.values() for it in one.parameters()) * model.dtype.itemsize
    saved = "not loaded" if held == len(texts) else "loaded for the others"
    return f"{held} of {len(texts)}: text encoders, {size / 1e9:.1f} GB, are {saved} ({known.folder})"


def _ranked_by(recipe: Recipe) -> str:
    """The rewards by what they are for: "gdpo of clip, aesthetic x 0.5; nsfw vetoes below 0.5; jpeg looks on"."""
    ranker = recipe.ranker
    ranks = [f"{it.name}{f' x {it.weight:g}' if it.weight != 1 else ''}" for it in ranker.rewards if weight_of(it)]
    told = [f"{ranker.mix} of {', '.join(ranks)}" if len(ranks) > 1 else (*ranks, "nothing")[0]]
    for it in ranker.rewards:
        match getattr(it, "role", "train"):
            case "veto":
                told.append(f"{it.name} vetoes below {it.at_least}")
            case "constraint":
                told.append(f"those below {it.at_least} in {it.name} come last")
            case _ if not weight_of(it):
                told.append(f"{it.name} looks on")
    return "; ".join(told)


def _listed(counts: Mapping[str, int]) -> str:
    """The categories, the largest first."""
    held = sorted(counts.items(), key=lambda it: -it[1])
    more = f" and {len(held) - SHOWN} more" if len(held) > SHOWN else ""
    return ", ".join(f"{name} {count}" for name, count in held[:SHOWN]) + more


def _watched(assembly: Assembly) -> tuple[int, int]:
    """Held-out pictures of a round, and the network evaluations that they cost."""
    parts = assembly.parts
    pictures = len(parts.held_out) * parts.held_out_candidates if parts.held_out else 0
    guidance = assembly.evaluator.config.guidance
    return pictures, pictures * assembly.sampler.config.steps * (2 if guidance != 1 else 1)


def _pace_of_watched(assembly: Assembly, measured: probe.Probe) -> tuple[float, float]:
    """Seconds of a network evaluation and of a decoded picture of those held out: measured apart where they are of
    another size than the candidates, or the whole network is asked for them alone."""
    own, watcher = assembly.sampler, assembly.evaluator
    if own.config.reuse is None and watcher.sizes[0] == max(own.sizes, key=math.prod):
        return measured.seconds_per_evaluation, measured.seconds_per_decode
    return probe.pace(watcher)[:2]
