"""``raftdiff train`` and ``raftdiff demo``: run the loop, show it, and say what to do next."""

import argparse
import contextlib
import time

from raftdiff.cli import either
from raftdiff.cli.either import at_work, going_on, guarding, loop, open_run, weights_of
from raftdiff.cli.evaluate import measure, show
from raftdiff.cli.opening import looking, tell_last, untold
from raftdiff.errors import command, counted
from raftdiff.recipes.config import plain
from raftdiff.recipes.files import medium_of
from raftdiff.records.disk import read_json
from raftdiff.records.run import Run, load_round
from raftdiff.reports.words import duration
from raftdiff.tracking import Tracker


def train(args: argparse.Namespace) -> None:
    """Run what is missing of a recipe's rounds, or of a reward model's training."""
    if medium_of(either.recipe_file(args.recipe)) == "preferences":
        from raftdiff.cli.llm.reward_models import train_model

        train_model(args)
        return
    run, recipe = going_on(args)
    if (planned := recipe.loop.rounds) <= run.rounds_done():
        run.bind(weights_of(recipe))
        if untold(run, "round"):
            with run.locked(recipe), contextlib.closing(Tracker(recipe.logging, run, plain(recipe))) as tracker:
                tell_last(run, tracker, "round")
        with run.locked(recipe):
            guarding(run, recipe.loop)
        more = command("train", run.path, f"loop.rounds={planned + 2}")
        done = "its only round is done" if planned == 1 else f"all {counted(planned, 'round')} are done"
        print(f"{run.path}: {done}. For two more: {more}")
    else:
        with at_work(run, recipe) as assembly:
            loop(run, assembly)
    print(f"\n{run.path}\nnext: {looking(run)}")


def demo(args: argparse.Namespace) -> None:
    """Train, evaluate, and show where the report lies."""
    began = time.monotonic()
    run, recipe = open_run(args)
    with at_work(run, recipe) as assembly:
        loop(run, assembly)
        shown = round_to_show(run)
        load_round(run, assembly.finetuner, shown)
        training = measure(run, assembly, prompts="training", name="training", round=shown).with_name("eval.json")
        report = measure(run, assembly, training=read_json(training), round=shown)
    print("\nThe prompts it was tuned on:")
    show(training)
    print("\nPrompts it never saw:")
    show(run.path / "eval" / "eval.json")
    print(f"\nall of it took {duration(time.monotonic() - began)}\nreport: {report}")
    print(f"next: {args.then}")


def round_to_show(run: Run) -> int | None:
    """Whose model is looked at after a run: None for the one that the run came to. Where the guard kept the base, which
    beside itself shows nothing, it is the last round's, and that is said."""
    last = run.rounds_done() - 1
    if last < 0 or run.origin(last + 1) is not None:
        return None
    print(f"The base model was kept. What follows is the base beside round {last}, which was not kept, to see why.")
    return last
