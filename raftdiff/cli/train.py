"""``raftdiff train`` and ``raftdiff demo``: run the loop, show it, and say what to do next."""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from raftdiff.cli import either
from raftdiff.cli.either import AnyAssembly, AnyRecipe, load_weights, parts_of, prepared
from raftdiff.cli.show import Bars, round_line
from raftdiff.config import differing, plain
from raftdiff.errors import UserError
from raftdiff.raft import raft, until_no_gain
from raftdiff.recipe import medium_of
from raftdiff.report import duration
from raftdiff.runs import NOT_IDENTITY, Run
from raftdiff.tracking import Tracker


def train(args: argparse.Namespace) -> None:
    """Run what is missing of a recipe's rounds, or of a reward model's training."""
    if medium_of(either.recipe_file(args.recipe)) == "preferences":
        from raftdiff.cli.rm import train_model

        train_model(args)
        return
    run, recipe = open_run(args)
    with run.locked(recipe):
        loop(run, prepared(run, recipe))
    print(f"\n{run.path}\nnext: raftdiff eval {run.path}")


def demo(args: argparse.Namespace) -> None:
    """Train, evaluate, and show where the report lies."""
    from raftdiff.cli.evaluate import measure, show

    began = time.monotonic()
    run, recipe = open_run(args)
    with run.locked(recipe):
        assembly = prepared(run, recipe)
        loop(run, assembly)
        load_weights(run, assembly, None)
        report = measure(run, assembly)
    show(run.path / "eval" / "eval.json")
    print(f"\nall of it took {duration(time.monotonic() - began)}\nreport: {report}")
    print(f"next: {args.then}")


def open_run(args: argparse.Namespace) -> tuple[Run, AnyRecipe]:
    """The run that the arguments name: one to continue, or a recipe's, begun where it does not exist yet.

    Raises:
        UserError: a run is continued with another recipe, or nothing is there.
    """
    if (Path(args.recipe) / "run.json").is_file():
        if args.out is not None:
            raise UserError(f"{args.recipe} is a run and stays where it is; leave out --out, or name a recipe.")
        return existing_run(args)
    recipe = either.read(args.recipe, args.overrides)
    path = args.out or Run.default_path(args.runs, recipe.name, recipe)
    return Run.create(path, recipe, seed=recipe.loop.seed), recipe


def existing_run(args: argparse.Namespace, *, free: Sequence[str] = ()) -> tuple[Run, AnyRecipe]:
    """A run and its recipe, in which the overrides may change where it runs, and the keys in ``free``.

    Raises:
        UserError: there is no such run, or the overrides change what the run is.
    """
    run = Run.open(Path(args.recipe))
    recipe = either.of(run)
    if not args.overrides:
        return run, recipe
    changed = either.read(str(run.path / "recipe.yaml"), args.overrides)
    if keys := differing(plain(recipe), plain(changed), (*NOT_IDENTITY, *free)):
        raise UserError(
            f"{run.path}: a run is continued with its own recipe; these keys would change: {', '.join(keys)}. "
            f"Begin a new run with: raftdiff train {run.path / 'recipe.yaml'} {' '.join(args.overrides)}"
        )
    return run, changed


def loop(run: Run, assembly: AnyAssembly) -> None:
    """Consume the rounds: show a line each, log, track, and stop when the held-out reward has stopped rising."""
    wanted, patience, done = assembly.parts.loop.rounds, assembly.parts.loop.patience, run.rounds_done()
    print(f"{run.path}: " + (f"continuing after round {done}" if done else f"{wanted} rounds"))
    bars, tracker = Bars(wanted), Tracker(assembly.recipe.logging.tracker, run, plain(assembly.recipe))
    began = time.monotonic()
    try:
        for finished in until_no_gain(raft(run, parts_of(assembly), bars), patience, run.metrics()):
            bars.close()
            spent = (time.monotonic() - began) / (finished.index + 1 - done)
            print(round_line(finished, wanted, spent * (wanted - finished.index - 1)), flush=True)
            run.log("round", round=finished.index)
            tracker.log(finished)
    finally:
        bars.close()
        tracker.close()
    if run.rounds_done() < wanted:
        print(f"stopped early: the held-out reward has not risen for {patience} rounds")
