"""``raftdiff bench``: how fast this machine draws and tunes."""

import argparse
import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from raftdiff.cli.either import tell
from raftdiff.diffusion.assembly import Assembly, assemble
from raftdiff.diffusion.probe import forget, memory, model_parameters
from raftdiff.diffusion.recipe import Recipe, drawing_of, work
from raftdiff.diffusion.recipe_files import load_recipe
from raftdiff.diffusion.sampling import batches
from raftdiff.diffusion.sizes import told
from raftdiff.diffusion.speed import known, tables
from raftdiff.diffusion.speed.repeats import Timed, Way, figures, in_turn
from raftdiff.diffusion.speed.ways import PARTS, asked, everything
from raftdiff.embedded import resolve
from raftdiff.errors import UserError, counted
from raftdiff.recipes.needs import ready
from raftdiff.records.changes import left_open
from raftdiff.records.disk import demand_writable
from raftdiff.records.provenance import hardware, provenance
from raftdiff.reports.words import duration

RECIPE = "demo"
LINE_EVERY = 15.0
"""Seconds between two lines in a log file."""


def bench(args: argparse.Namespace) -> None:
    """Everything once, then all of it again and again, in turn, until the repeats or the minutes are over. What was
    measured is written also where it is stopped."""
    file, overrides = args.recipe, args.overrides
    if "=" in file and not Path(file).is_file():
        file, overrides = RECIPE, [file, *overrides]
    began = time.monotonic()
    recipe = load_recipe(file, overrides)
    for sentence in ready(recipe, resolve):
        print(sentence, file=sys.stderr)
    root = args.out or args.runs / f"bench-{recipe.name}"
    demand_writable(root)
    assembly = _assembled(recipe)
    sampler, tuner = assembly.sampler, assembly.finetuner
    batch, size = sampler.config.at_once, max(sampler.sizes, key=math.prod)
    counts, key = work(recipe), known.key(sampler, tuner, recipe.model)
    ways, calls = everything(assembly, compiled=args.compile), list[Timed]()
    head = f"{recipe.name}: {told(size)}, {recipe.model.dtype}, batches of {batch}, on {hardware()}"
    print(f"{head}\n{counted(len(ways), 'thing')} to time, {counted(args.repeats, 'time')} each", flush=True)
    stopped, operations, most = False, dict[str, float](), 0
    try:
        operations = asked(assembly)
        forget(assembly.model.device)  # counting holds more than computing does
        budget = 60 * args.minutes - (time.monotonic() - began)
        show = _Shown(ways, args.repeats)
        for call in in_turn(ways, repeats=args.repeats, budget=budget):
            calls.append(call)
            if not call.warm and ways[call.place].table == PARTS:  # larger batches come after
                most = memory(assembly.model.device)
            show(call)
    except KeyboardInterrupt:
        stopped = True
    found = figures(ways, calls)
    if not found:
        if stopped:
            raise KeyboardInterrupt
        raise UserError(f"--minutes {args.minutes:g}: nothing could be measured in that time; give it more.")
    sizes = {"trained": tuner.parameter_count(), "parameters": model_parameters(tuner)}
    probe = tables.probed(found, **sizes, memory=most)
    facts = {"recipe": recipe.name, "batch_size": batch, "key": key, "repeats": args.repeats, "finished": not stopped}
    print(f"\n{tables.written(root, found, operations, counts, {**facts, 'provenance': provenance()})}")
    print(f"\n{root}: table.md, bench.svg, bench.json")
    for sentence in _unmeasured(ways, calls, repeats=args.repeats, stopped=stopped):
        print(sentence)
    warm = {call.place for call in calls if call.warm}
    if probe is not None and all(place in warm for place, way in enumerate(ways) if way.table == PARTS):
        known.keep(key, probe, tables.faster(found))
        print("raftdiff plan goes by this from now on, for this machine, model, size and dtype")
    else:
        print("raftdiff plan does not go by this: first calls, which warm up, are all that there is of some part")
    if stopped:
        raise KeyboardInterrupt


def _unmeasured(ways: Sequence[Way], calls: Sequence[Timed], *, repeats: int, stopped: bool) -> Iterator[str]:
    """Sentences on what memory, or the time, did not suffice for."""
    large = {call.place for call in calls if call.took is None}
    for place in sorted(large):
        yield f"Memory does not suffice for {ways[place].table}: {ways[place].name}"
    left = (len(ways) - len(large)) * (repeats + 1) - sum(call.place not in large for call in calls)
    if left > 0 and not stopped:
        yield f"The minutes were over before {counted(left, 'measurement')}; --minutes gives it more."


def _assembled(recipe: Recipe) -> Assembly:
    """What ``batch_size: auto`` found before may have been found beside other work: it is measured anew."""
    if left_open(recipe):
        batches.forget(recipe.model, drawing_of(recipe))
    assembly = assemble(recipe)
    tell(assembly.first_notes())
    return assembly


class _Shown:
    """The time left, on standard error: in a terminal in one line, in a log file now and then."""

    def __init__(self, ways: list[Way], repeats: int) -> None:
        self._ways, self._total, self._done, self._latest = ways, len(ways) * (repeats + 1), 0, time.monotonic()

    def __call__(self, call: Timed) -> None:
        self._done += 1
        way = self._ways[call.place]
        line = f"bench: {self._done} of {self._total}, {way.table}: {way.name}; about {duration(call.left)} left"
        if sys.stderr.isatty():
            print(f"\r\x1b[K{line}", end="" if self._done < self._total else "\n", file=sys.stderr, flush=True)
        elif time.monotonic() - self._latest >= LINE_EVERY:
            self._latest = time.monotonic()
            print(line, file=sys.stderr, flush=True)
