"""``raftdiff llm rm``: train a reward model, measure how strong preferences are, look at what a model learnt."""

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from raftdiff.chat.dialogue import whole
from raftdiff.cli import opening
from raftdiff.cli.show import Bars
from raftdiff.embedded import resolve
from raftdiff.errors import UserError, command, counted
from raftdiff.llm.data import preferences
from raftdiff.llm.data.preferences import Comparison
from raftdiff.llm.data.prompts import DataConfig
from raftdiff.llm.model.lengths import Limits
from raftdiff.llm.model.loading import LMConfig
from raftdiff.llm.recipe import limits_of
from raftdiff.llm.reward_models.reward import MODEL, reward_folder
from raftdiff.llm.reward_models.value_model import load_value_model
from raftdiff.llm.reward_runs.ensemble import figures, lines, measure, measured
from raftdiff.llm.reward_runs.evaluation import evaluation, look
from raftdiff.llm.reward_runs.recipe import divided, load_reward_recipe, reward_recipe_of, weights
from raftdiff.llm.reward_runs.report import Side, table, write_evaluation
from raftdiff.llm.reward_runs.strength_report import write_strength
from raftdiff.llm.reward_runs.training import RewardParts, assemble_reward, readable_pairs, train
from raftdiff.recipes.files import locate
from raftdiff.recipes.needs import ready
from raftdiff.recipes.prompts import find_file
from raftdiff.records.beginning import at_work
from raftdiff.records.disk import write_text
from raftdiff.records.provenance import provenance
from raftdiff.records.run import Run
from raftdiff.reports.words import duration
from raftdiff.types import Round

KIND = opening.Kind(
    lambda name, overrides: load_reward_recipe(locate(name), overrides),
    reward_recipe_of,
    "llm rm train",
    lambda recipe: ready(recipe, resolve),
)
ROWS = 64
"""Answers through the network at once, where no recipe says how many."""


def train_model(args: argparse.Namespace) -> None:
    """Run what is missing of a reward model's training, and write the model."""
    run, recipe = opening.open_run(args, KIND)
    with at_work(run, recipe, weights, assemble_reward) as parts:
        loop(run, parts)
    model = run.path / MODEL
    asked = () if parts.held_out else ("--pairs", "FILE")
    print(f"\n{model}\nnext: {command('llm', 'rm', 'eval', run.path, *asked)}")
    print(f"as a reward: {{type: reward_model, model: {run.path}}}")


def loop(run: Run, parts: RewardParts) -> None:
    """Consume the parts of the training: show a line each, log, track."""
    wanted, done = parts.recipe.loop.rounds, run.rounds_done()
    held_out = f"{len(parts.held_out)} held out" if parts.held_out else "none held out"
    print(f"{run.path}: " + (f"continuing with part {done}" if done else counted(wanted, "part")), end=", ")
    print(f"{counted(len(parts.pairs), 'pair')}, {held_out}")
    print(f"trained: {parts.tuner.trainable.described()}")
    opening.follow(run, parts.recipe, lambda bars: train(run, parts, bars), part_line, event="part")


def part_line(finished: Round, parts: int, seconds_left: float) -> str:
    """One line a part: the loss, what was right of the trained and of the held-out pairs, the time spent and left."""
    metrics = finished.metrics
    told = [f"part {finished.index}/{parts - 1}", _loss(metrics)]
    if "accuracy" in metrics["tune"]:
        told.append(f"{metrics['tune']['accuracy']:.0%} right in training")
    if held_out := metrics.get("held_out_pairs"):
        told.append(f"held-out {accuracy_text(held_out)}")
    told.append(duration(sum(metrics["seconds"].values())))
    if finished.index + 1 < parts:
        told.append(f"about {duration(seconds_left)} left")
    return " | ".join(told)


def show_training(run: Run) -> None:
    """How far the training is, and what became of the held-out pairs."""
    recipe, metrics = reward_recipe_of(run), run.metrics()
    print(f"{recipe.name}: {len(metrics)} of {counted(recipe.loop.rounds, 'part')} done")
    for t, it in enumerate(metrics):
        held_out = f"held-out {accuracy_text(it['held_out_pairs'])}, " if "held_out_pairs" in it else ""
        print(f"  part {t}: {_loss(it)}, {held_out}{duration(sum(it['seconds'].values()))}")
    if (run.path / MODEL).is_dir():
        print(f"the model: {run.path / MODEL}")
    else:
        print(f"go on with: {command('llm', 'rm', 'train', run.path)}")


def _loss(metrics: Mapping[str, Any]) -> str:
    """A training of fewer steps than parts has parts without a step."""
    return f"loss {metrics['tune']['loss']:.3f}" if "loss" in metrics["tune"] else "no step"


def accuracy_text(found: Mapping[str, Any]) -> str:
    """``81% (95% interval 72% to 89%)``"""
    low, high = found["ci95"]
    return f"{found['accuracy']:.0%} (95% interval {low:.0%} to {high:.0%})"


def strength(args: argparse.Namespace) -> None:
    """Train the ensemble, and write the pairs with what it says of each."""
    if args.out.suffix != ".jsonl":
        raise UserError(f"--out {args.out}: name a file that ends in .jsonl; the pairs are written as JSON lines.")
    recipe = load_reward_recipe(locate(args.recipe), [*args.overrides, "denoise={type: none}"])
    folder, bars = args.out.with_suffix(".members"), Bars(recipe.loop.rounds, "part")
    began = time.monotonic()
    try:
        for done, member in enumerate(measure(recipe, folder, args.models, bars), 1):
            bars.close()
            left = (time.monotonic() - began) / done * (args.models - done)
            told = f", about {duration(left)} left" if done < args.models else ""
            print(f"model {done}/{args.models} agrees with {member.accuracy:.0%} of the labels{told}", flush=True)
    finally:
        bars.close()
    found = measured(recipe, folder, args.models)
    told_of = figures(found)
    write_text(args.out, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines(found)))
    page = write_strength(args.out.with_suffix(".html"), f"Preference strength: {recipe.name}", found, told_of)
    below, wrong = told_of["mu"]["below_0"], told_of["auc"]
    pairs = counted(len(found.pairs), "pair")
    print(f"\n{pairs}; {below:.0%} have a mu below 0: the models would have chosen the other answer")
    if wrong is not None:
        print(f"a low mu tells the wrong labels (column truth) with an AUC of {wrong:.2f}; 0.5 is chance")
    kept = [word for word in args.overrides if word.split("=")[0].split(".")[0] not in ("pairs", "denoise")]
    then = command("llm", "rm", "train", args.recipe, *kept, _of_file(args.out), "denoise={type: flip}")
    print(f"{args.out}\nreport: {page}\nnext: {then}")


def evaluate(args: argparse.Namespace) -> None:
    """Ask a reward model, or two, of labelled pairs, and write down what they say."""
    pairs, limits = _asked(args.recipe, args.pairs)
    paths = [args.recipe] if args.before is None else [args.before, args.recipe]
    sides = [_looked(path, name, pairs, limits) for path, name in zip(paths, _names(paths), strict=True)]
    if len({len(side.looked.pairs) for side in sides}) > 1:
        raise UserError(
            "--before: the two models cannot read the same pairs; name pairs that are short enough for both."
        )
    folder = args.out or args.recipe / "eval"
    folder.mkdir(parents=True, exist_ok=True)
    trained_on = _trained_on(args.recipe, list(sides[-1].looked.pairs))
    result = {**sides[-1].evaluation, "trained_on": trained_on, "model": str(args.recipe), "provenance": provenance()}
    if args.before is not None:
        result["before"] = {**sides[0].evaluation, "model": str(args.before)}
    write_text(folder / "eval.json", json.dumps(result, indent=2))
    page = write_evaluation(folder / "report.html", f"Reward model: {args.recipe}", sides, trained_on=trained_on)
    if args.json:
        print((folder / "eval.json").read_text(encoding="utf-8"), end="")
        return
    print(_columns([["", *(side.name for side in sides)], *table([side.evaluation for side in sides])]))
    print(f"\nreport: {page}")


def pairs(args: argparse.Namespace) -> None:
    """Write what a run preferred, or people in it, as a file of pairs."""
    run = opening.to_read(args.recipe)
    if args.labels and args.rounds:
        raise UserError("--rounds: people's labels are taken of all rounds; leave it out.")
    preferences.demand_once(args.rounds, "--rounds")
    if args.labels and args.per_prompt:
        raise UserError("--per-prompt: of people's labels every pair that they compared is taken; leave it out.")
    every = (
        preferences.from_labels(run) if args.labels else preferences.from_rounds(run, args.rounds, args.per_prompt or 1)
    )
    found = preferences.answered(every)
    if not found:
        label = f"label some with: {command('label', run.path)}"
        hint = label if args.labels else "all answers of a prompt scored alike"
        raise UserError(f"{run.path}: there is not one pair of answers of which one is better; {hint}.")
    write_text(args.out, "".join(json.dumps(preferences.row(pair), ensure_ascii=False) + "\n" for pair in found))
    empty = f", {len(every) - len(found)} with an empty answer left out" if len(found) < len(every) else ""
    then = command("llm", "rm", "train", "RECIPE", _of_file(args.out))
    print(f"{args.out}: {len(found)} pairs{empty}\nnext: {then}")


def _of_file(file: Path) -> str:
    """The override that makes a file the pairs of any recipe, also of one that names a run.

    >>> _of_file(Path("a, b.jsonl"))
    "pairs={data: {file: 'a, b.jsonl'}}"
    """
    data = {"data": {"file": str(file)}}
    flow = yaml.safe_dump(data, default_flow_style=True, allow_unicode=True, width=float("inf"))
    return f"pairs={flow.strip()}"


def _asked(path: Path, file: str | None) -> tuple[list[Comparison], Limits]:
    """The pairs of a file, or those that a run held out, and what is done about those that are too long to read."""
    if file is not None:
        found_at = str(find_file(file, Path(), "--pairs"))
        data = DataConfig(file=found_at, broken="skip")  # as too long ones: no recipe is there to say otherwise
        return preferences.from_data(data, Path(), "--pairs"), Limits("--pairs", long="skip")
    if not (path / "run.json").is_file():
        raise UserError(f"{path}: this is a model without its run, so name the pairs to ask it of: --pairs FILE.")
    recipe = reward_recipe_of(Run.open(path))
    _, held_out = divided(recipe)
    if not held_out:
        raise UserError(f"{path}: this run held out no pairs; name others: --pairs FILE.")
    theirs, key = (recipe.held_out, "held_out.data") if recipe.held_out else (recipe.pairs, "pairs.data")
    return held_out, limits_of(theirs.data, key)


def _trained_on(path: Path, pairs: list[Comparison]) -> int:
    """How many of the pairs the run was trained on; 0 where only the model is there to ask."""
    if not (path / "run.json").is_file():
        return 0
    trained, _ = divided(reward_recipe_of(Run.open(path)))
    known = {(whole(pair.prompt), frozenset({pair.chosen, pair.rejected})) for pair in trained}
    return sum((whole(pair.prompt), frozenset({pair.chosen, pair.rejected})) in known for pair in pairs)


def _looked(path: Path, name: str, pairs: list[Comparison], limits: Limits) -> Side:
    """A model's view of the pairs; a run's is held as in its training, and reads as much at once."""
    folder, config, rows = str(reward_folder(path)), LMConfig(base=""), ROWS
    if (path / "run.json").is_file():
        recipe = reward_recipe_of(opening.to_read(path))
        config, rows = recipe.model, recipe.tuner.rows_per_pass
    held = LMConfig(base=folder, dtype=config.dtype, device=config.device)
    model = load_value_model(held, resolve)
    readable, bars = readable_pairs(model, pairs, limits), Bars()
    try:
        looked = look(model, readable, batch_size=rows, report=bars.stage(0, f"ask {name}"))
    finally:
        bars.close()
    return Side(name, looked, evaluation(looked))


def _names(paths: list[Path]) -> list[str]:
    """What the models are called on the page: the last part of their paths, or both whole where these are alike."""
    short = [path.resolve().name for path in paths]
    return short if len(set(short)) == len(short) else [str(path) for path in paths]


def _columns(rows: list[list[str]]) -> str:
    """A table for a terminal."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
