"""A run's work shared by the processes of one machine.

The first process does what it does alone, and is the only one that writes; where it draws or tunes, it tells the
others, which hold the same parts, and all of them take their share. What is drawn is the same to the bit, for batches
and seeds are; what is learnt is the same but for the order in which gradients are added up.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from typing import Any, Generic, NamedTuple, final

from raftdiff.spread.shards import batches_of, prunes
from raftdiff.stages.parts import Parts
from raftdiff.training import processes, sharded
from raftdiff.types import (
    CutsBatches,
    FineTuner,
    Key,
    Media,
    Prompt,
    Report,
    Requires,
    Sample,
    Sampler,
    Selection,
    Source,
    State,
    silent,
)

AHEAD = 4
"""Batches that each process draws before they are put together, and are on the disk."""


class Drawing(NamedTuple):
    """What is to be drawn."""

    sampler: str
    """Which sampler of the parts."""
    prompts: Sequence[Prompt]
    per_prompt: int
    seed: int
    round: int
    done: frozenset[tuple[str, int]]


def shared(parts: Parts[Media], *, learns_together: bool) -> Parts[Media]:
    """The parts of the first process. Without ``learns_together`` it tunes alone, or, where the network is split over
    them, all take the same steps, and the others take over what came of it; what is pruned it draws alone. As they are
    where no other process is there."""
    if processes.here().size == 1:
        return parts
    held_out, pruned = parts.held_out_sampler or parts.sampler, prunes(parts.sampler, parts.loop.candidates)
    return replace(
        parts,
        sampler=parts.sampler if pruned else SharedSampler(parts.sampler, "sampler"),
        held_out_sampler=SharedSampler(held_out, "held_out"),
        finetuner=SharedTuner(parts.finetuner, learns_together),
    )


def follow(assemble: Callable[[Any], Parts[Any]]) -> None:
    """Do in another than the first process what that tells, until it tells no more. ``assemble``: a recipe's parts."""
    parts: Any = None
    while (word := processes.told()) is not None:
        match word:
            case "begin", recipe:
                parts = None  # of a pipeline's last stage
                with sharded.assembling():
                    parts = assemble(recipe)
            case "load", state:
                parts.finetuner.load_state_dict(state)
            case "draw", drawing:
                held_out = parts.held_out_sampler or parts.sampler
                deque(_drawn({"sampler": parts.sampler, "held_out": held_out}[drawing.sampler], drawing, []), maxlen=0)
            case "fit", (selection, samples, seed):
                with processes.together():
                    parts.finetuner.fit(selection, samples, seed=seed, report=silent)
            case "repeat", (selection, samples, seed):
                parts.finetuner.fit(selection, samples, seed=seed, report=silent)


@final
class SharedSampler(Generic[Media]):
    """A sampler whose batches all processes draw, in turn."""

    def __init__(self, sampler: Sampler[Media], name: str) -> None:
        self.sampler, self._name = sampler, name
        self._others: list[int] = []

    @property
    def source(self) -> Source:
        return self.sampler.source

    @property
    def provides(self) -> tuple[str, ...]:
        return self.sampler.provides

    def sample(
        self, prompts: Sequence[Prompt], *, per_prompt: int, seed: int, round: int, done: Set[tuple[str, int]]
    ) -> Iterator[Sample[Media]]:
        """As the sampler alone, in the same order."""
        drawing = Drawing(self._name, prompts, per_prompt, seed, round, frozenset(done))
        processes.tell(("draw", drawing))
        yield from _drawn(self.sampler, drawing, self._others)

    def network_evaluations(self) -> int:
        """Of all processes."""
        return self.sampler.network_evaluations() + sum(self._others)


def _drawn(sampler: Sampler[Media], asked: Drawing, others: list[int]) -> Iterator[Sample[Media]]:
    """What all processes draw, in the first; the others draw their share and have nothing. ``others`` takes the network
    evaluations of those."""
    rank, size = processes.here()
    batches = batches_of(sampler, asked.prompts, asked.per_prompt, asked.round)
    every, share = {key for batch in batches for key in batch}, -(-len(batches) // size)
    if isinstance(sampler, CutsBatches):
        share = min(AHEAD, max(1, len(batches) // size))
    for start in range(0, len(batches), share * size):
        if asked.done.issuperset(key for batch in batches[start : start + share * size] for key in batch):
            continue
        own = {key for batch in batches[start + rank * share :][:share] for key in batch} - asked.done
        before, drawn = sampler.network_evaluations(), []
        if own:
            stream = sampler.sample(
                asked.prompts,
                per_prompt=asked.per_prompt,
                seed=asked.seed,
                round=asked.round,
                done=every - own,
            )
            drawn = list(stream)
        for place, (samples, evaluations) in enumerate(
            processes.gathered((drawn, sampler.network_evaluations() - before))
        ):
            yield from samples
            if place:
                others.append(evaluations)


@final
class SharedTuner(Generic[Media]):
    """A fine-tuner whose state all processes have, and whose steps they share where it can."""

    def __init__(self, tuner: FineTuner[Media], learns_together: bool) -> None:
        self._tuner, self._together = tuner, learns_together

    @property
    def requires(self) -> Requires:
        return self._tuner.requires

    def fit(
        self, selection: Selection, samples: Mapping[Key, Sample[Media]], *, seed: int, report: Report
    ) -> Mapping[str, float]:
        if self._together:
            processes.tell(("fit", (selection, dict(samples), seed)))
            with processes.together():
                return self._tuner.fit(selection, samples, seed=seed, report=report)
        if sharded.splits():
            processes.tell(("repeat", (selection, dict(samples), seed)))
        found = self._tuner.fit(selection, samples, seed=seed, report=report)
        processes.tell(("load", self._tuner.state_dict()))
        return found

    def state_dict(self) -> State:
        return self._tuner.state_dict()

    def load_state_dict(self, state: State) -> None:
        processes.tell(("load", state))
        self._tuner.load_state_dict(state)
