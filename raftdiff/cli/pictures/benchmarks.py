"""``raftdiff eval ... --benchmark NAME``: a benchmark's prompts drawn, scored and reduced, of a run, a model or a
folder."""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from raftdiff import embedded
from raftdiff.cli.either import prepared, run_to_read, tell, tell_once
from raftdiff.cli.opening import chosen_round
from raftdiff.cli.pictures.rank import named_rewards
from raftdiff.cli.show import Bars
from raftdiff.diffusion.assembly import Assembly, read_by_rewards
from raftdiff.diffusion.models import loading
from raftdiff.diffusion.models.loading import ModelConfig
from raftdiff.diffusion.recipe import UNMEASURED, EvaluationConfig, Recipe
from raftdiff.diffusion.sampler import DiffusionSamplerConfig
from raftdiff.diffusion.suites import lying
from raftdiff.diffusion.suites.drawing import draw
from raftdiff.diffusion.suites.known import prompts_of, rows_of, suite, told_of
from raftdiff.diffusion.suites.lying import Picture
from raftdiff.diffusion.suites.outcome import Outcome, outcome
from raftdiff.diffusion.suites.results import results
from raftdiff.diffusion.suites.scoring import Scored, Scorer, score
from raftdiff.diffusion.wording import Reading, limits
from raftdiff.embedded import resolve
from raftdiff.errors import UserError, counted, gone
from raftdiff.recipes import registry
from raftdiff.recipes.config import Config, check, options, plain
from raftdiff.recipes.needs import HUB_ID, near, ready, rewards_ready
from raftdiff.recipes.prompts import PromptsConfig
from raftdiff.records.disk import alone, demand_writable, vacant, write_text
from raftdiff.records.provenance import fingerprints
from raftdiff.records.run import load_round
from raftdiff.reports import benchmark as tables
from raftdiff.scoring import demand_prompts, demand_servers
from raftdiff.training.devices import find_device, flush_denormals
from raftdiff.types import Prompt

RESULT, SCORES = "benchmark.json", "scores.jsonl"
SHOWN = 5
"""Sentences on pictures that were left out."""
UNSEEN = ("weight", "batch_size", "role", "at_least")
"""Of a reward, what changes no score of it."""
ALIKE = ("device", "attention", "channels_last", "compile", "batch_size", "vae_batch_size")
"""Settings that change nothing in what is drawn but its last bits."""


class DrawingConfig(Config):
    """A model that no recipe speaks of, and how it draws."""

    model: ModelConfig
    sampler: DiffusionSamplerConfig = DiffusionSamplerConfig()
    """Steps, guidance, size, solver."""
    seed: int = 1000
    """As that of a recipe's evaluation."""


class Drawn(NamedTuple):
    """What is to be scored."""

    sides: Mapping[str, Sequence[Picture]]
    prompts: Sequence[Prompt]
    how: Mapping[str, Any]
    notes: Sequence[str]


def benchmark(args: argparse.Namespace, *, free: Sequence[str], guidance: Sequence[float]) -> None:
    """Draw what is not drawn yet, score what is not scored yet, and write the tables.

    Args:
        free: recipe keys of a run that may be changed.
        guidance: none, or the one strength to draw with.
    """
    suite(args.benchmark)
    if len(guidance) > 1:
        raise UserError("--guidance: a benchmark is drawn with one strength; name one, and --name for each of several.")
    place = Path(args.recipe)
    if (place / "run.json").is_file():
        _of_run(args, free, guidance)
    elif _is_model(args.recipe):
        _of_model(args, guidance)
    elif place.is_dir():
        _of_folder(args, place)
    else:
        raise UserError(
            " ".join(filter(None, [f"There is no run, model or folder '{args.recipe}'.", near(args.recipe)]))
        )


def _is_model(word: str) -> bool:
    """Whether a word names a model without a run: one that ships, a diffusers folder, a single file, a hub id."""
    place = Path(word)
    if word in embedded.names() or gone(word):
        return True
    if place.exists():
        return place.is_file() or (place / "model_index.json").is_file() or (place / "unet").is_dir()
    return "/" in word and HUB_ID.fullmatch(word) is not None and not place.parent.is_dir()


def _of_run(args: argparse.Namespace, free: Sequence[str], guidance: Sequence[float]) -> None:
    if args.out is not None:
        raise UserError("--out: what is looked at of a run lies in it, under eval; name that folder with --name.")
    run, recipe = run_to_read(args, free=free)
    if not isinstance(recipe, Recipe):
        raise UserError(f"{run.path}: benchmarks are of pictures, and this is a run on texts.")
    changed = {"steps": args.steps, "guidance": guidance[0] if guidance else None}
    told = {key: value for key, value in changed.items() if value is not None}
    evaluation = check(EvaluationConfig, {**plain(recipe.evaluation), **told}, "on the command line")
    recipe = recipe.model_copy(update={"evaluation": evaluation})
    chosen, samples = chosen_round(run, args.round), args.samples or suite(args.benchmark).samples
    prompts = prompts_of(args.benchmark, rows_of(args.benchmark, args.prompts), evaluation.prompts)
    folder = run.path / "eval" / (args.name or args.benchmark)
    configs = _configs(args)
    _ready(configs)
    assembly = prepared(run, recipe)
    assert isinstance(assembly, Assembly)
    load_round(run, assembly.finetuner, chosen)
    scorers = _built(configs, str(assembly.model.device)) if configs else _own(recipe, assembly)
    demand_prompts([one.reward for one in scorers], prompts)
    if not folder.is_dir():  # before hours of drawing; of what is drawn, scores may be kept
        demand_servers(one.reward for one in scorers)
    notes = told_of(args.benchmark, len(prompts), samples)
    tell_once(run, [*assembly.notes(f"--benchmark {args.benchmark}", prompts), *notes])
    demand_writable(folder)
    how = _settings(recipe.model, assembly.evaluator.config)
    common: dict[str, Any] = {"per_prompt": samples, "seed": evaluation.seed}
    with alone(folder):
        bars = Bars()
        try:
            at = {"before": {"round": None, **how}, "after": {"round": chosen, **how}}
            sampler = assembly.evaluator
            with assembly.finetuner.base_weights():
                report = bars.stage(0, "before")
                before = draw(sampler, prompts, folder / "before", how=at["before"], report=report, **common)
            after = draw(sampler, prompts, folder / "after", how=at["after"], report=bars.stage(0, "after"), **common)
        finally:
            bars.close()
        made = Drawn({"before": before, "after": after}, prompts, {**how, "round": chosen, **common}, notes)
        _report(args, run.path.name, made, scorers, folder)


def _of_model(args: argparse.Namespace, guidance: Sequence[float]) -> None:
    _refuse(args, {"round": args.round, "name": args.name}, "is for runs; a model is one, and lies in --out")
    changed = {"steps": args.steps, "guidance": guidance[0] if guidance else None}
    words = [f"sampler.{key}={value}" for key, value in changed.items() if value is not None]
    config = options(DrawingConfig, {"model": {"base": args.recipe}}, [*args.overrides, *words], args.recipe)
    samples = args.samples or suite(args.benchmark).samples
    prompts = prompts_of(args.benchmark, rows_of(args.benchmark, args.prompts), PromptsConfig())
    named = Path(args.recipe)
    folder = _place(args, named.stem if named.is_file() else named.name)
    configs = _demanded(args)
    _ready(configs, config)
    flush_denormals()
    parts = loading.load(config.model, resolve)
    scorers = _built(configs, str(parts.device))
    demand_prompts([one.reward for one in scorers], prompts)
    if not folder.is_dir():  # before hours of drawing; of what is drawn, scores may be kept
        demand_servers(one.reward for one in scorers)
    what = f"--benchmark {args.benchmark}"
    readings = [Reading("the sampler", parts.prompts, lambda prompt: prompt.sampling), *_readings(scorers)]
    notes = told_of(args.benchmark, len(prompts), samples)
    tell([*limits(what, prompts, readings), *notes])
    how = _settings(config.model, config.sampler)
    with alone(folder):
        bars = Bars()
        try:
            pictures = draw(
                config.sampler.build(parts),
                prompts,
                folder / "pictures",
                per_prompt=samples,
                seed=config.seed,
                how=how,
                report=bars.stage(0, "draw"),
            )
        finally:
            bars.close()
        made = Drawn({"score": pictures}, prompts, {**how, "seed": config.seed, "per_prompt": samples}, notes)
        _report(args, Path(args.recipe).name, made, scorers, folder)


def _of_folder(args: argparse.Namespace, place: Path) -> None:
    drawn = {"round": args.round, "name": args.name, "samples": args.samples, "steps": args.steps}
    given = {**drawn, "guidance": args.guidance, "key=value": args.overrides or None}
    _refuse(args, given, "does not go with a folder of pictures, which are drawn already")
    name, configs, folder = args.benchmark, _demanded(args), _place(args, place.resolve().name)
    _same_pictures(folder, place)
    asked = prompts_of(name, rows_of(name, args.prompts), PromptsConfig()) if args.prompts else []
    _ready(configs)
    pictures, left = lying.pictures(place, asked)
    prompts = list({one.prompt.id: one.prompt for one in pictures}.values())
    scorers = _built(configs, str(find_device("auto")))
    demand_prompts([one.reward for one in scorers], prompts)
    notes = told_of(name, len(prompts))
    if asked and (bare := len(asked) - len(prompts)):
        notes.append(f"{args.recipe}: of {counted(bare, 'prompt')} there is no picture; the figures are of the others.")
    if lacking := [it for it in suite(name).columns if not all(it in prompt.meta for prompt in prompts)]:
        notes.append(f"{args.recipe}: nothing says of which {lacking[0]} a picture is; name the file with --prompts.")
    told = [f"left out: {sentence}" for sentence in left[:SHOWN]]
    more = [f"left out: {len(left) - SHOWN} more"] if len(left) > SHOWN else []
    print(*told, *more, sep="\n", end="\n" if left else "", file=sys.stderr)
    tell([*limits(args.recipe, prompts, _readings(scorers)), *notes])
    with alone(folder):
        _report(
            args,
            place.resolve().name,
            Drawn({"score": pictures}, prompts, {"folder": str(place.resolve()), "left_out": left}, notes),
            scorers,
            folder,
        )


def _refuse(args: argparse.Namespace, given: Mapping[str, Any], why: str) -> None:
    if wrong := next((name for name, value in given.items() if value is not None), None):
        raise UserError(f"{args.recipe}: {wrong if '=' in wrong else f'--{wrong}'} {why}.")


def _place(args: argparse.Namespace, stem: str) -> Path:
    """Where the results of a model or a folder go: a new folder, or one of ours, in which the work goes on.

    Raises:
        UserError: something else is there.
    """
    folder: Path = args.out or Path(f"{stem}-{args.benchmark}")
    ours = (folder / SCORES).is_file() or (folder / "pictures" / "drawn.json").is_file()
    if folder.is_file() or (folder.is_dir() and not vacant(folder) and not ours):
        raise UserError(f"{folder}: there is something else already; name another folder with --out.")
    demand_writable(folder)
    return folder


def _same_pictures(folder: Path, place: Path) -> None:
    """
    Raises:
        UserError: the results there are of another folder of pictures, and would be lost.
    """
    try:
        other = json.loads((folder / RESULT).read_text(encoding="utf-8"))["how"]["folder"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if other != str(place.resolve()):
        raise UserError(f"{folder}: these are the results of {other}; name another folder with --out.")


def _configs(args: argparse.Namespace) -> list[Any]:
    """The rewards that the user names, else the benchmark's own; none where there is neither.

    Raises:
        UserError: the benchmark's figure is by a reward for which a model must be named, and none is.
    """
    configs, needed = named_rewards(args.reward) if args.reward else [], suite(args.benchmark).scored_by
    if needed and needed not in [it.type for it in configs]:
        raise UserError(
            f"--benchmark {args.benchmark}: it is scored by a vision-language model that you name: --reward "
            f"{needed}:model=Qwen/Qwen3-VL-8B-Instruct, a folder, or with server=http://... the name that it has there."
        )
    if configs:
        return configs
    own = suite(args.benchmark).reward
    return (
        [options(registry.load("rewards", own["type"]), dict(own), [], f"--benchmark {args.benchmark}")] if own else []
    )


def _demanded(args: argparse.Namespace) -> list[Any]:
    if not (configs := _configs(args)):
        raise UserError(
            f"--benchmark {args.benchmark}: say what scores the pictures with --reward, such as --reward "
            "clip:model=ViT-L-14,pretrained=openai; a run brings its own."
        )
    return configs


def _ready(configs: Sequence[Any], *others: Any) -> None:
    for sentence in (*(told for one in others for told in ready(one, resolve)), *rewards_ready(configs, resolve)):
        print(sentence, file=sys.stderr)


def _built(configs: Sequence[Any], device: str) -> list[Scorer]:
    return [Scorer(it.build(device=device, resolve=resolve), _marked(it)) for it in configs]


def _own(recipe: Recipe, assembly: Assembly) -> list[Scorer]:
    """The rewards of a recipe, as an evaluation measures them."""
    configs = [it for it in (*recipe.ranker.rewards, *recipe.evaluation.rewards) if it.type not in UNMEASURED]
    known = {it.name: _marked(it) for it in configs}
    return [Scorer(reward, known[reward.name]) for reward, _ in assembly.measures.rewards]


def _marked(config: Any) -> dict[str, Any]:
    settings = {key: value for key, value in plain(config).items() if key not in UNSEEN}
    return {**settings, "weights": fingerprints({"reward": plain(config)}, resolve)}


def _settings(model: ModelConfig, sampler: DiffusionSamplerConfig) -> dict[str, Any]:
    """What the pictures depend on."""
    told = {"model": plain(model), "sampler": plain(sampler)}
    kept = {part: {key: it for key, it in held.items() if key not in ALIKE} for part, held in told.items()}
    return {**kept, "weights": fingerprints({"model": plain(model)}, resolve)}


def _readings(scorers: Sequence[Scorer]) -> list[Reading]:
    return read_by_rewards([one.reward for one in scorers])


def _report(args: argparse.Namespace, model: str, made: Drawn, scorers: Sequence[Scorer], folder: Path) -> None:
    bars, found, blank = Bars(), dict[str, Scored](), dict[str, int]()
    try:
        for side, pictures in made.sides.items():
            report = bars.stage(0, "score" if len(made.sides) == 1 else f"score {side}")
            found[side] = score(pictures, made.prompts, scorers, folder / SCORES, report=report)
            blank[side] = found[side].blank
    finally:
        bars.close()
    if any(blank.values()):
        told = ", ".join(f"{count} of {len(made.sides[side])} {side}" for side, count in blank.items() if count)
        tell([f"pictures of one colour all over, scored as the others are: {told}."])
    tell([sentence for side, it in found.items() for sentence in (*_discards(it, side), *_odd(it))])
    settings = {one.reward.name: dict(one.settings) for one in scorers}
    how = {**made.how, "rewards": settings, "notes": list(made.notes), "blank": blank}
    figures = {side: it.tables for side, it in found.items()}
    reasons = {side: it.reasons for side, it in found.items()}
    result = outcome(args.benchmark, model, made.prompts, figures, how, reasons=reasons)
    _write(folder, result)
    files = ["table.md", "table.tex", RESULT, *_explain(folder, args.benchmark, made, found), SCORES]
    if args.json:
        print((folder / RESULT).read_text(encoding="utf-8"), end="")
    else:
        print(f"\n{tables.plain(result)}\n\n{folder}: {', '.join(files)}")


def _discards(scored: Scored, side: str) -> list[str]:
    """Of how many pictures each reward says nothing, those that say something of all left out."""
    lost = {name: int(np.isnan(it).sum()) - it.size + scored.pictures for name, it in scored.tables.items()}
    return [
        f"the reward '{name}' is NaN (discard) for {count} of {scored.pictures} pictures ({side}); its figures are of "
        "the others."
        for name, count in lost.items()
        if count
    ]


def _odd(scored: Scored) -> list[str]:
    """That pictures are of another size than most."""
    counts = Counter(scored.sizes.values())
    if len(counts) < 2:
        return []
    ((usual, count),) = counts.most_common(1)
    where, size = next((where, size) for where, size in scored.sizes.items() if size != usual)
    odd = len(scored.sizes) - count
    return [
        f"{odd} of {counted(len(scored.sizes), 'picture')} {'is' if odd == 1 else 'are'} of another size than most, "
        f"{usual[0]} x {usual[1]}: {where} has {size[0]} x {size[1]}. Each is scored as it is."
    ]


def _write(folder: Path, result: Outcome) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / RESULT, json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    write_text(folder / "table.md", tables.markdown(result))
    write_text(folder / "table.tex", tables.latex(result))


def _explain(folder: Path, name: str, made: Drawn, scored: Mapping[str, Scored]) -> list[str]:
    """Write what is wrong with each picture; returns the files' names, of rewards without reasons none."""
    found = []
    for side, it in scored.items():
        file = folder / (f"results-{side}.jsonl" if len(scored) > 1 else "results.jsonl")
        file.unlink(missing_ok=True)  # of other rewards
        if rows := list(results(made.sides[side], it.reasons, suite(name).columns)):
            write_text(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
            found.append(file.name)
    return found
