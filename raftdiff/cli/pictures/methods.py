"""``raftdiff methods``: learning rules side by side on one recipe, at equal cost."""

import argparse
import sys
from pathlib import Path

from raftdiff.cli.either import begin
from raftdiff.cli.parsers.options import strengths
from raftdiff.cli.show import Bars
from raftdiff.diffusion.assembly import settled
from raftdiff.diffusion.methods.changes import ALIKE, Trial, planned
from raftdiff.diffusion.methods.standings import summary, written
from raftdiff.diffusion.methods.trials import Outcome, Yardstick, baselines, run_trial
from raftdiff.diffusion.recipe_files import load_recipe
from raftdiff.embedded import resolve
from raftdiff.errors import UserError, counted
from raftdiff.recipes.config import digest, flat, plain
from raftdiff.recipes.needs import ready
from raftdiff.records.changes import left_open
from raftdiff.records.disk import demand_writable
from raftdiff.records.run import NOT_IDENTITY

RECIPE = "scene_align"


def methods(args: argparse.Namespace) -> None:
    """Every method with every seed, seed by seed; the table and the plot are written after each run."""
    file, overrides = args.recipe, args.overrides
    if "=" in file and not Path(file).is_file():
        file, overrides = RECIPE, [file, *overrides]
    names = list(ALIKE) if args.methods is None else [name.strip() for name in args.methods.split(",")]
    recipe = load_recipe(file, overrides)
    if keys := left_open(recipe):  # once for all methods
        values = flat(plain(settled(recipe)))
        overrides = [*overrides, *(f"{key}={values[key]}" for key in keys)]
        recipe = load_recipe(file, overrides)
    trials = planned(names, recipe, file, overrides, evaluations=args.evaluations)
    yardstick = Yardstick(recipe, strengths(args.guidance), training=args.training)
    for sentence in dict.fromkeys(told for trial in trials for told in ready(trial.recipe, resolve)):
        print(sentence, file=sys.stderr)
    key = digest({"recipe": plain(recipe), "evaluations": args.evaluations}, [f"recipe.{one}" for one in NOT_IDENTITY])
    root = args.out or args.runs / f"methods-{recipe.name}-{key}"
    demand_writable(root)
    print(f"{root}: {counted(len(trials), 'method')} with {counted(args.seeds, 'seed')} each")
    print("\n".join(f"  {_planned(trial)}" for trial in trials), flush=True)
    outcomes, failed, text = list[Outcome](), list[str](), ""
    for seed in range(recipe.loop.seed, recipe.loop.seed + args.seeds):
        for trial in trials:
            bars = Bars(trial.recipe.loop.rounds)
            try:  # what is to be told of the prompts is told of the first
                found = run_trial(trial, seed, root, yardstick, progress=bars, begin=None if outcomes else begin)
            except UserError as error:
                failed.append(f"{trial.name} with seed {seed}: {error}")
                print(f"raftdiff: {failed[-1]}", file=sys.stderr, flush=True)
                continue
            finally:
                bars.close()
            outcomes.append(found)
            print(summary(yardstick, found), flush=True)
            text = written(root, yardstick, trials, baselines(root, yardstick), outcomes)
    if outcomes:
        print(f"\n{text}\n{root}: table.md, methods.svg, methods.json, and each run")
    if failed:
        raise UserError("\n".join(["Not all runs came to their end:", *failed]))


def _planned(trial: Trial) -> str:
    steps, rounds, cost = trial.recipe.finetuner.steps, trial.recipe.loop.rounds, trial.cost
    each = f"{counted(rounds, 'round')} of {counted(steps, 'step')}"
    return f"{trial.name}: {each}; {cost.total:,} network evaluations, {cost.sampling:,} of them to draw"
