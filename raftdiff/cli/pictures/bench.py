"""``raftdiff bench``: how fast this machine draws and tunes."""

import argparse
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

from raftdiff.cli.either import tell
from raftdiff.diffusion.assembly import Assembly, assemble
from raftdiff.diffusion.probe import forget, memory, model_parameters
from raftdiff.diffusion.recipe import Recipe, drawing_of, work
from raftdiff.diffusion.recipe_files import load_recipe
from raftdiff.diffusion.sampling import batches
from raftdiff.diffusion.sizes import told
from raftdiff.diffusion.speed import holding, known, tables
from raftdiff.diffusion.speed.repeats import Figure, Timed, Way, figures, in_turn
from raftdiff.diffusion.speed.ways import DECODING, OTHERWISE, PARTS, SAMPLING, TUNING, asked, everything, otherwise
from raftdiff.embedded import resolve
from raftdiff.errors import UserError, counted
from raftdiff.recipes.needs import ready
from raftdiff.records.changes import left_open
from raftdiff.records.disk import demand_writable
from raftdiff.records.provenance import hardware, provenance
from raftdiff.reports.words import duration
from raftdiff.training.fitting import attempted

RECIPE = "demo"
LINE_EVERY = 15.0
"""Seconds between two lines in a log file."""
FIRST = 0.75
"""Of the minutes, what the first phase may take where there is a second."""


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
    phases = _phases(assembly, compiled=args.compile)
    total = sum(len(phase.ways) for phase in phases)
    head = f"{recipe.name}: {told(size)}, {recipe.model.dtype}, batches of {batch}, on {hardware()}"
    print(f"{head}\n{counted(total, 'thing')} to time, {counted(args.repeats, 'time')} each", flush=True)
    timing = _Timing()
    timing.run(phases, assembly, args, began)
    found = [figure for phase in phases for figure in figures(phase.ways, phase.calls)]
    failed, left = list(_failed(phases)), _left(phases, args.repeats)
    if not found:
        if timing.stopped:
            raise KeyboardInterrupt
        nothing = (
            f"--minutes {args.minutes:g}: nothing could be measured in that time, of which loading and counting took "
            f"{duration(timing.loading)}; give it more."
        )
        raise UserError("\n".join(failed) or nothing)
    sizes = {"trained": tuner.parameter_count(), "parameters": model_parameters(tuner)}
    probe = tables.probed(found, **sizes, memory=timing.memory)
    facts = {"recipe": recipe.name, "batch_size": batch, "key": key, "repeats": args.repeats, "finished": not left}
    print(f"\n{tables.written(root, found, timing.operations, counts, {**facts, 'provenance': provenance()})}")
    print("\n".join([f"\n{root}: table.md, bench.svg, bench.json", *failed]))
    if left and not timing.stopped:
        print(f"The minutes were over before {counted(left, 'measurement')}; --minutes gives it more.")
    warm = {phase.ways[call.place].name for phase in phases for call in phase.calls if call.warm}
    if probe is not None and warm >= {SAMPLING, DECODING, TUNING}:
        known.keep(key, probe, _best_known(key, found))
        print("raftdiff plan goes by this from now on, for this machine, model, size and dtype")
    else:
        print(
            "raftdiff plan does not go by this: it needs sampling, decoding and tuning timed again, after their first"
        )
    if timing.stopped:
        raise KeyboardInterrupt


COMPILED = holding.told({"compile": True})


def _best_known(key: str, found: Sequence[Figure]) -> str:
    """How the network had better be held: as was found now, but what an earlier bench found compiled to be faster stays
    where nothing compiled was timed again."""
    again = any(COMPILED in it.name and len(it.seconds) > 1 for it in found if it.table == OTHERWISE)
    before = None if again else known.find(key)
    return before.faster if before and COMPILED in before.faster else tables.faster(found)


@final
@dataclass(frozen=True, slots=True)
class _Phase:
    """What is timed in turn with each other."""

    ways: list[Way]
    until: float
    """The share of the minutes at which it ends."""
    calls: list[Timed] = field(default_factory=list)


@final
class _Timing:
    """What is known beside the calls once all phases were timed, as far as time and memory went."""

    def __init__(self) -> None:
        self.operations: dict[str, float] = {}
        self.memory = 0
        """The most bytes held while what a plan goes by was timed."""
        self.loading = 0.0
        """Seconds until the first call."""
        self.stopped = False

    def run(self, phases: Sequence[_Phase], assembly: Assembly, args: argparse.Namespace, began: float) -> None:
        """The calls go into the phases. Without time for what comes first nothing else is begun."""
        device, show = assembly.model.device, _Shown(sum(len(it.ways) for it in phases), args.repeats)
        try:
            (self.operations,) = attempted(lambda: asked(assembly)) or ({},)
            forget(device)  # counting holds more than computing does
            self.loading = time.monotonic() - began
            for phase in phases:
                budget = 60 * args.minutes * phase.until - (time.monotonic() - began)
                for call in in_turn(phase.ways, repeats=args.repeats, budget=budget):
                    phase.calls.append(call)
                    way = phase.ways[call.place]
                    if not call.warm and way.table == PARTS:  # larger batches come after, and copies of the network
                        self.memory = memory(device)
                    show(way, call)
                if not phase.calls:
                    break
        except KeyboardInterrupt:
            self.stopped = True


def _phases(assembly: Assembly, *, compiled: bool) -> list[_Phase]:
    """What a plan goes by first, with nothing beside it in memory; then copies of the network, held otherwise."""
    others = otherwise(assembly, compiled=compiled)
    return [_Phase(everything(assembly), FIRST if others else 1.0), _Phase(others, 1.0)]


def _failed(phases: Sequence[_Phase]) -> Iterator[str]:
    """A sentence for each thing that could not be measured."""
    for phase in phases:
        for way, why in ((phase.ways[call.place], call.failed) for call in phase.calls if call.failed):
            yield f"not measured: {way.table}: {way.name}: {why}"


def _left(phases: Sequence[_Phase], repeats: int) -> int:
    """How many calls were not made, of what did not fail."""
    left = 0
    for phase in phases:
        failed = {call.place for call in phase.calls if call.failed}
        made = sum(call.place not in failed for call in phase.calls)
        left += (len(phase.ways) - len(failed)) * (repeats + 1) - made
    return left


def _assembled(recipe: Recipe) -> Assembly:
    """What ``batch_size: auto`` found before may have been found beside other work: it is measured anew."""
    if left_open(recipe):
        batches.forget(recipe.model, drawing_of(recipe))
    assembly = assemble(recipe)
    tell(assembly.first_notes())
    return assembly


class _Shown:
    """The time left, on standard error: in a terminal in one line, in a log file now and then."""

    def __init__(self, things: int, repeats: int) -> None:
        self._total, self._repeats = things * (repeats + 1), repeats
        self._done, self._latest = 0, time.monotonic()

    def __call__(self, way: Way, call: Timed) -> None:
        self._done += 1
        self._total -= self._repeats if call.failed and not call.warm else 0  # it is not called again
        line = f"bench: {self._done} of {self._total}, {way.table}: {way.name}; about {duration(call.left)} left"
        if sys.stderr.isatty():
            print(f"\r\x1b[K{line}", end="" if self._done < self._total else "\n", file=sys.stderr, flush=True)
        elif time.monotonic() - self._latest >= LINE_EVERY:
            self._latest = time.monotonic()
            print(line, file=sys.stderr, flush=True)
