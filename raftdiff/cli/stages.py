"""The stages alone: each works on the round that is being made, and leaves its result in the run directory."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from raftdiff.cli.either import (
    AnyAssembly,
    AnyRecipe,
    alarming,
    assembled,
    at_work,
    begin,
    begin_scoring,
    existing_run,
    guarding,
    measured,
    open_run,
    parts_of,
    ranker_of,
    read,
    weights_of,
)
from raftdiff.cli.opening import looking, tell_last
from raftdiff.cli.show import Bars
from raftdiff.errors import UserError, command, counted
from raftdiff.ranking import Ranker
from raftdiff.recipes.config import flat, plain
from raftdiff.records.beginning import fork, in_turn
from raftdiff.records.changes import as_begun, left_open
from raftdiff.records.rounds import Draft, RoundFolder
from raftdiff.records.run import Run
from raftdiff.records.watching import unfit_told
from raftdiff.reports.tables import rewards_told
from raftdiff.spread import shards
from raftdiff.stages import verbs
from raftdiff.stages.parts import LoopConfig
from raftdiff.tracking import Tracker
from raftdiff.types import Prompt


def sample(args: argparse.Namespace) -> None:
    """The candidates of the next round, or with ``--shard`` a part of them."""
    run, recipe = open_run(args)
    if args.shard is not None:
        _sample_shard(run, recipe, shards.Part(*args.shard))
        return
    with at_work(run, recipe, scored=False) as assembly:
        draft, bars = _taken_up(run, assembly)
        begin(run, assembly)
        verbs.sample(draft, run, parts_of(assembly), bars)
        bars.close()
    print(f"{draft.path / 'samples'}: {draft.metrics()['candidates']} candidates\nnext: {command('score', run.path)}")


def _sample_shard(run: Run, recipe: AnyRecipe, part: shards.Part) -> None:
    """A part of the next round's candidates, as one of several processes."""
    if (here := measured(recipe)) is not recipe:
        (key, count), *_ = ((key, flat(plain(here))[key]) for key in left_open(recipe))
        raise UserError(
            f"{key}: auto would be another on each machine, and shards fit together only where all draw alike. Say a "
            f"number for all of them; here it would be {key}={count}"
        )
    marks, assembly = weights_of(recipe), assembled(recipe)
    with in_turn(run, recipe, marks):
        draft, bars = _taken_up(run, assembly)
        if part.number == 1:
            begin(run, assembly)
    folder = shards.sample(run, part, parts_of(assembly), bars)
    bars.close()
    print(
        f"{folder}: shard {part} of round {draft.index}\nnext, when all are drawn: {command('merge', run.path)}"
        if folder
        else f"{run.path}: nothing is left to draw for shard {part} of round {draft.index}: it has fewer batches"
    )


def merge(args: argparse.Namespace) -> None:
    """The shards of the next round, put into it."""
    run, recipe = existing_run(args)
    with run.locked():
        draft, bars = next_draft(run, recipe.loop), Bars(recipe.loop.rounds)
        count = shards.join(run, draft, bars)
        bars.close()
    print(
        f"{draft.path / 'samples'}: {draft.metrics()['candidates']} candidates of {counted(count, 'shard')}, which can "
        f"be removed ({run.path / 'shards'})\nnext: {command('score', run.path)}"
    )


def score(args: argparse.Namespace) -> None:
    """The scores of the round that was sampled; with ``--round``, of a finished one, in a new run."""
    labelled: dict[str, str] = {}
    if args.round is not None:
        run, recipe, ranker, prompts, labelled = _fork(args)
    elif args.out is not None:
        raise UserError("--out goes with --round: it names the new run in which a finished round is scored again.")
    else:
        run, recipe = existing_run(args)
        ranker, prompts = _ranker(run, recipe)
    with run.locked():
        begin_scoring(run, recipe, ranker, prompts)
        draft = next_draft(run, recipe.loop)
        labelled = labelled or _labelled(ranker, draft.folder)
        bars = Bars(recipe.loop.rounds)
        verbs.score(draft, ranker, prompts, recipe.loop, bars)
        bars.close()
    for name, table in draft.folder.scores().raw.items():
        mean = f"mean {np.nanmean(table):.3f} over {np.isfinite(table).sum()} candidates"
        print(f"{name}: {labelled.get(name) or mean}")
    if told := unfit_told(draft.metrics()):
        print(told)
    print(f"next: {command('select', run.path)}")


def select(args: argparse.Namespace) -> None:
    """What to learn from."""
    run, recipe = existing_run(args)
    with run.locked():
        draft = next_draft(run, recipe.loop)
        verbs.select(draft, run, ranker_of(recipe, None)[0])
    metrics = draft.metrics()
    print(f"{metrics['selected']} selected, reward {metrics['selected_mean']:.3f} (all: {metrics['mean']:.3f})")
    for line in rewards_told(metrics):
        print(line)
    print(f"next: {command('tune', run.path)}")


def tune(args: argparse.Namespace) -> None:
    """Fine-tune on the selection, and complete the round."""
    run, recipe = existing_run(args)
    with at_work(run, recipe) as assembly:
        draft, bars = _taken_up(run, assembly)
        verbs.tune(draft, run, parts_of(assembly), bars)
        finished = verbs.commit(draft, run, parts_of(assembly))
        bars.close()
        tracker = Tracker(recipe.logging, run, plain(recipe))
        tell_last(run, tracker, "round")
        tracker.close()
        for told in alarming(run):
            print(told)
        guarding(run, recipe.loop)
    print(f"{finished.path}: complete\nnext: {command('sample', run.path)}, or {looking(run)}")


def _taken_up(run: Run, assembly: AnyAssembly) -> tuple[Draft, Bars]:
    """The round that is being made, with the parts as the last finished round left them."""
    verbs.heed(run, assembly.recipe.loop, run.metrics())
    if state := run.state():
        parts_of(assembly).finetuner.load_state_dict(state)
    loop = assembly.recipe.loop
    return next_draft(run, loop), Bars(loop.rounds)


def next_draft(run: Run, loop: LoopConfig) -> Draft:
    """The round that is being made.

    Raises:
        UserError: all rounds are complete.
    """
    done = run.rounds_done()
    if done >= loop.rounds:
        raise UserError(f"{run.path}: all {loop.rounds} rounds are complete; there is no further round to make.")
    return run.draft(done)


def _ranker(run: Run, recipe: AnyRecipe) -> tuple[Ranker[Any], list[Prompt]]:
    """The rewards that a run was begun with, the policy as its last round left it, and the prompts."""
    run.bind(weights_of(recipe))
    return ranker_of(recipe, run.state())


def _labelled(ranker: Ranker[Any], folder: RoundFolder) -> dict[str, str]:
    """What people said of a round's candidates, by the reward that counts it.

    Raises:
        UserError: such a reward knows none of them, and would give 0 to all.
    """
    from raftdiff.rewards.labels import LabelsReward

    counting = [reward for reward, _ in ranker.rewards if isinstance(reward, LabelsReward)]
    seeds = {row["seed"] for row in folder.rows()} if counting else set()
    return {reward.name: reward.about(seeds) for reward in counting}


def _fork(args: argparse.Namespace) -> tuple[Run, AnyRecipe, Ranker[Any], list[Prompt], dict[str, str]]:
    """A new run for a finished round, made when its rewards are known to load."""
    if args.out is None:
        raise UserError("A finished round is never changed: name a folder for the new run with --out.")
    parent = Run.open(Path(args.recipe))
    parent.demand_recipe()
    recipe = as_begun(parent, read(str(parent.path / "recipe.yaml"), args.overrides))
    first = next(parent.round(args.round).batches(1), [])
    if lacking := [name for name in recipe.finetuner.requires.aux if first and name not in first[0].aux]:
        raise UserError(
            f"{parent.path}: round {args.round} was drawn without its {' and '.join(lacking)}, which this recipe's "
            "fine-tuner learns from; begin a new run."
        )
    before = parent.state(args.round)
    ranker, prompts = ranker_of(recipe, before)
    labelled = _labelled(ranker, parent.round(args.round))
    return fork(parent, recipe, args.out, round=args.round, seed=recipe.loop.seed), recipe, ranker, prompts, labelled
