"""Begin a run or take one up, and follow its rounds: the same for recipes of every kind."""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from raftdiff.cli.show import Bars
from raftdiff.errors import UserError, command
from raftdiff.recipes.config import plain
from raftdiff.records.changes import as_begun, go_on_with
from raftdiff.records.disk import read_appended
from raftdiff.records.run import Run, finished
from raftdiff.tracking import Tracker
from raftdiff.types import Round


class Kind(NamedTuple):
    """What sets recipes of one kind apart on the command line."""

    read: Callable[[str, list[str]], Any]
    """A recipe's name or file, with overrides, as a recipe."""
    of: Callable[[Run], Any]
    """What a run was begun with."""
    command: str
    """What begins a run, after ``raftdiff``."""
    ready: Callable[[Any], list[str]]
    """A recipe's ``recipes.needs.ready``: what will be fetched; a UserError where more is missing."""


def checked(recipe: Any, kind: Kind) -> Any:
    """The recipe, when nothing that it needs is missing; what will be fetched is said."""
    for sentence in kind.ready(recipe):
        print(sentence, file=sys.stderr)
    return recipe


def open_run(args: argparse.Namespace, kind: Kind) -> tuple[Run, Any]:
    """The run that the arguments name: one to continue, or a recipe's, which begins when its parts are there
    (``beginning.at_work``) and not before.

    Raises:
        UserError: a run is continued with another recipe, or nothing is there.
    """
    if (Path(args.recipe) / "run.json").is_file():
        if args.out is not None:
            raise UserError(f"{args.recipe} is a run and stays where it is; leave out --out, or name a recipe.")
        run, recipe = existing_run(args, kind)
        return run, _at_hand(run, recipe, kind)
    recipe = checked(kind.read(args.recipe, args.overrides), kind)
    path = args.out or Run.default_path(args.runs, recipe.name, recipe)
    recipe = as_begun(Run(path), recipe)
    return Run.at(path, recipe), recipe


def _at_hand(run: Run, recipe: Any, kind: Kind) -> Any:
    """As ``checked``; what a run had and is gone may lie elsewhere."""
    try:
        return checked(recipe, kind)
    except UserError as error:
        begin = command(*kind.command.split(), run.path, "KEY=PLACE")
        raise UserError(
            f"{error}\nWhere it lies elsewhere now, say so: {begin}. The run knows what is the same."
        ) from None


def to_read(path: Path) -> Run:
    """A run that is looked at; that its recipe was changed by hand is told, and is no reason not to.

    Raises:
        UserError: there is no such run.
    """
    run = Run.open(path)
    if edited := run.edited():
        print(f"raftdiff: {edited}", file=sys.stderr)
    return run


def chosen_round(run: Run, round: int | None) -> int:
    """The round whose model is looked at, as ``records.run.finished``; that it is not the last is told.

    Raises:
        UserError: there is no such round.
    """
    found = finished(run, round).index
    if round is None and found != (last := run.rounds_done() - 1):
        print(f"raftdiff: {run.path}: round {found}, to which the guard went back after round {last}", file=sys.stderr)
    return found


def looking(run: Run) -> str:
    """The command that looks at a run; with a round where the guard went back to the base, which would be refused."""
    last = run.rounds_done() - 1
    named = ("--round", last) if last >= 0 and run.origin(last + 1) is None else ()
    return command("eval", run.path, *named)


def run_to_read(args: argparse.Namespace, kind: Kind, *, free: Sequence[str]) -> tuple[Run, Any]:
    """A run to look at, and its recipe, in which the overrides may change where it runs, and the keys in ``free``.

    Raises:
        UserError: there is no such run, or the overrides change what the run is.
    """
    return _with_overrides(to_read(Path(args.recipe)), args, kind, free)


def existing_run(args: argparse.Namespace, kind: Kind) -> tuple[Run, Any]:
    """A run that goes on, and its recipe, in which the overrides may change where it runs.

    Raises:
        UserError: there is no such run, its recipe was changed by hand, or the overrides change what the run is.
    """
    run = Run.open(Path(args.recipe))
    run.demand_recipe()
    return _with_overrides(run, args, kind, ())


def _with_overrides(run: Run, args: argparse.Namespace, kind: Kind, free: Sequence[str]) -> tuple[Run, Any]:
    recipe = kind.of(run)
    if not args.overrides:
        return run, recipe
    changed = as_begun(run, kind.read(str(run.path / "recipe.yaml"), args.overrides))
    if keys := run.differing(changed, free):
        raise UserError(
            f"{run.path}: a run is continued with its own recipe; these keys would change: {run.told(keys, changed)}. "
            f"Begin a new run with: {command(*kind.command.split(), run.path / 'recipe.yaml', *args.overrides)}"
        )
    if run.moves(plain(changed)):
        with run.locked():
            run.settle(changed)
    return run, changed


def going_on(args: argparse.Namespace, kind: Kind) -> tuple[Run, Any]:
    """As ``open_run``, but the overrides may also change the rounds to come of a run that is there.

    Raises:
        UserError: as ``open_run``, and where a change would be one of the rounds that are done.
    """
    path = Path(args.recipe)
    if not (path / "run.json").is_file() or not args.overrides or args.out is not None:
        return open_run(args, kind)
    run = Run.open(path)
    run.demand_recipe()
    recipe = as_begun(run, checked(kind.read(str(path / "recipe.yaml"), args.overrides), kind))
    with run.locked():
        changed = go_on_with(run, recipe)
    if changed:
        print(f"{run.path}: from round {run.rounds_done()} on with another {', '.join(changed)}")
    return run, recipe


def follow(
    run: Run,
    recipe: Any,
    rounds: Callable[[Bars], Iterator[Round]],
    line: Callable[[Round, int, float], str],
    *,
    event: str,
) -> None:
    """Consume the rounds: show a ``line`` each (of the round, of how many, and of the seconds left), log, track."""
    wanted, done = recipe.loop.rounds, run.rounds_done()
    bars, tracker = Bars(wanted, event), Tracker(recipe.logging, run, plain(recipe))
    began = time.monotonic()
    try:
        tell_last(run, tracker, event)
        for finished in rounds(bars):
            bars.close()
            spent = (time.monotonic() - began) / (finished.index + 1 - done)
            print(line(finished, wanted, spent * (wanted - finished.index - 1)), flush=True)
            tell_last(run, tracker, event)
    finally:
        bars.close()
        tracker.close()


def tell_last(run: Run, tracker: Tracker, event: str) -> None:
    """Tell tracker and log of the last finished round, where the log does not yet name it: a process may be killed
    between finishing a round and saying so."""
    if untold(run, event):
        last = run.rounds_done() - 1
        tracker.log(Round(last, run.round_path(last), run.round(last).metrics()))
        run.log(event, round=last)


def untold(run: Run, event: str) -> bool:
    """Whether the log does not name the last finished round, as one of this run or of the one that it was forked
    from."""
    last = run.rounds_done() - 1
    told = read_appended(run.path / "log.jsonl")
    return last >= 0 and not any(line.get("event") in (event, "forked") and line.get("round") == last for line in told)
