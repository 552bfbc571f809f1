"""The pages: compare, watch, label."""

import argparse
import sys
from pathlib import Path
from typing import Any

from raftdiff.apps.page import Door, serve
from raftdiff.diffusion.recipe import refuse_other
from raftdiff.errors import UserError
from raftdiff.recipes.files import refuse_preferences
from raftdiff.records.labels import RATER, candidate_pairs, evaluation_pairs
from raftdiff.records.run import Run


def compare(args: argparse.Namespace) -> None:
    from raftdiff.apps import compare as app
    from raftdiff.diffusion.bench import Bench

    runs = [Run(Path(args.recipe)), *([Run(args.other)] if args.other else [])]
    for run in runs:
        refuse_other(run)
    bench = Bench(runs)
    bench.warm()
    _open(app.build(bench), args)


def watch(args: argparse.Namespace) -> None:
    from raftdiff.apps import watch as app

    _open(app.build(_samples(args)), args)


def label(args: argparse.Namespace) -> None:
    from raftdiff.apps import label as app

    run = _samples(args)
    if not RATER.fullmatch(args.rater):
        raise UserError(f"--rater '{args.rater}': use letters, digits, '_' and '-', at most 64; it names a file.")
    if args.eval is not None:
        pairs = evaluation_pairs(run, args.eval or None, seed=0)
    else:
        last = max(0, run.rounds_done() - 1)
        pairs = candidate_pairs(run, last if args.round is None else args.round, per_prompt=args.per_prompt, seed=0)
    _open(app.build(run, pairs, rater=args.rater), args)


def _samples(args: argparse.Namespace) -> Run:
    """
    Raises:
        UserError: there is no such run, or it is one of a reward model, which draws nothing.
    """
    run = Run.open(Path(args.recipe))
    refuse_preferences(run.path / "recipe.yaml", run.path)
    return run


def _open(page: Any, args: argparse.Namespace) -> None:
    door = Door(args.host, args.port, args.share, args.auth, browser=not args.no_browser)
    if warning := door.warning():
        print(warning, file=sys.stderr)
    address = serve(page, door)
    print(f"{address}\nCtrl-C ends it.", flush=True)
    page.block_thread()
