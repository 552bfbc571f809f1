"""The pages: compare, watch, label."""

import argparse
import socket
import sys
from pathlib import Path
from typing import Any

from raftdiff.apps import page
from raftdiff.apps.door import Door, serve
from raftdiff.cli.opening import to_read
from raftdiff.diffusion.recipe import refuse_other
from raftdiff.errors import UserError, counted
from raftdiff.recipes.files import refuse_preferences
from raftdiff.records.labels import RATER, candidate_pairs, evaluation_pairs
from raftdiff.records.run import Run


def compare(args: argparse.Namespace) -> None:
    from raftdiff.apps import compare as app

    door = _door(args)
    with door.listen() as listening:  # mistakes in flags are told before anything loads
        page.gradio()
        runs = [to_read(path) for path in (Path(args.recipe), args.other) if path]
        for run in runs:
            refuse_other(run)
        from raftdiff.diffusion.bench import Bench

        bench = Bench(runs, file=args.prompts)
        bench.warm()
        _serve(app.build(bench), door, listening, "runs this machine's GPU, and shows what the run made")


def watch(args: argparse.Namespace) -> None:
    from raftdiff.apps import watch as app

    door = _door(args)
    with door.listen() as listening:
        page.gradio()
        _serve(app.build(_samples(args)), door, listening, "shows what the run made")


def label(args: argparse.Namespace) -> None:
    from raftdiff.apps import label as app

    door = _door(args)
    if not RATER.fullmatch(args.rater):
        raise UserError(f"--rater '{args.rater}': use letters, digits, '_' and '-', at most 64; it names a file.")
    with door.listen() as listening:
        page.gradio()
        run = _samples(args)
        if args.eval is not None:
            pairs = evaluation_pairs(run, args.eval or None, seed=0)
        else:
            chosen = max(0, run.rounds_done() - 1) if args.round is None else args.round
            pairs = candidate_pairs(run, chosen, per_prompt=args.per_prompt, seed=0)
            print(f"{counted(len(pairs), 'pair')} of round {chosen}'s candidates", flush=True)
        shows = "shows what the run made, and takes anybody's choices"
        _serve(app.build(run, pairs, rater=args.rater), door, listening, shows)


def _samples(args: argparse.Namespace) -> Run:
    """
    Raises:
        UserError: there is no such run, or it is one of a reward model, which draws nothing.
    """
    run = to_read(Path(args.recipe))
    refuse_preferences(run.path / "recipe.yaml", run.path)
    return run


def _door(args: argparse.Namespace) -> Door:
    """
    Raises:
        UserError: half a login.
    """
    door = Door(args.host, args.port, args.share, args.auth, browser=not args.no_browser)
    door.login()
    return door


def _serve(blocks: Any, door: Door, listening: socket.socket, shows: str) -> None:
    """Until Ctrl-C; ``shows`` says what whoever comes in gets."""
    if warning := door.warning(shows):
        print(warning, file=sys.stderr)
    served = serve(blocks, door, listening)
    elsewhere = f"\n{served.elsewhere} from other machines" if served.elsewhere else ""
    print(f"{served.address}{elsewhere}\nCtrl-C ends it.", flush=True)
    served.wait()
