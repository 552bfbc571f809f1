"""Candidates of which only the promising are drawn to the end: pruned best of K."""

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor

from raftdiff.diffusion.process import Process, level_at, to_x0
from raftdiff.diffusion.sampler import DiffusionSampler, Job, Step
from raftdiff.diffusion.sizes import Size, size_of_prompt
from raftdiff.ranking import Ranker
from raftdiff.scoring import in_batches
from raftdiff.seeds import fold
from raftdiff.selection.pruning import Look, PruneConfig, fitting, going_on
from raftdiff.types import Preview, Prompt, Sample, Source

SCORING_BATCH = 256
"""Previews that rewards are shown at once, about."""


class Together(NamedTuple):
    """Prompts whose candidates are drawn side by side."""

    size: Size
    prompts: Sequence[Prompt]
    width: int
    """Rows in a batch."""


@final
@dataclass(frozen=True)
class Flight:
    """Candidates on their way, a row each, all after the same number of steps."""

    jobs: Sequence[Job]
    latents: Float[Tensor, "jobs channels height width"]
    generators: Sequence[torch.Generator]
    solver: Any
    """With what it remembers of the rows."""

    def rows(self, places: Sequence[int]) -> "Flight":
        index = torch.tensor(places)
        return Flight(
            [self.jobs[place] for place in places],
            self.latents[index.to(self.latents.device)],
            [self.generators[place] for place in places],
            picked(self.solver, index, self.latents.shape[1:]),
        )


@final
class PrunedSampler:
    """What a ``DiffusionSampler`` draws, less the candidates whose previews are worst.

    A candidate that is left is, to the bit, the one that the sampler draws of the same seed by itself: the network sees
    it in batches of as many rows at every step. Such batches are filled with the survivors of several prompts, as many
    as fill them whole; what is left over at the end of a round is filled up with repeated rows, which are counted as
    network evaluations. Apart by rounding are only those that the sampler itself would draw in a last batch that is
    not full, and texts that one family or another makes as long as the longest beside them.
    """

    source: Source = "policy"
    provides: tuple[str, ...] = ("latent",)

    def __init__(self, drawing: DiffusionSampler, prune: PruneConfig, ranker: Ranker[Image.Image]) -> None:
        """``ranker``: whose total says which previews are better."""
        self.drawing, self.prune, self.ranker = drawing, prune, ranker
        self.sizes, self.height, self.width = drawing.sizes, drawing.height, drawing.width
        self._told: Callable[[Sequence[Preview]], object] = lambda seen: None

    def on_previews(self, told: Callable[[Sequence[Preview]], object]) -> None:
        self._told = told

    def kept(self, per_prompt: int) -> int:
        return self.looks(per_prompt)[-1].kept

    def looks(self, per_prompt: int) -> list[Look]:
        return self.prune.looks(self.drawing.config.steps, per_prompt)

    def network_evaluations(self) -> int:
        return self.drawing.network_evaluations()

    def sample(
        self, prompts: Sequence[Prompt], *, per_prompt: int, seed: int, round: int, done: AbstractSet[tuple[str, int]]
    ) -> Iterator[Sample[Image.Image]]:
        """Yield ``kept(per_prompt)`` pictures for each prompt, in order, as the ``DiffusionSampler`` does; what is
        seen of all candidates is told first.

        Prompts are drawn some together, of one size; where any has a picture left to draw, all are drawn again.
        """
        kept, held = self.kept(per_prompt), Counter(prompt for prompt, _ in done)
        parts = self._parts(prompts, per_prompt, round)
        wanted = [part for part in parts if any(held[prompt.id] < kept for prompt in part.prompts)]
        self.drawing.remember([prompt for part in wanted for prompt in part.prompts])
        for part in wanted:
            seen, drawn = self._fitted(part, per_prompt, seed=seed, round=round)
            self._told(seen)
            yield from (sample for sample in drawn if (sample.prompt.id, sample.index) not in done)

    def _fitted(
        self, part: Together, per_prompt: int, *, seed: int, round: int
    ) -> tuple[list[Preview], list[Sample[Image.Image]]]:
        """``_draw``, in narrower batches where memory does not suffice; all of them are drawn again then."""
        return self.drawing.fits(
            part.width, lambda width: self._draw(part._replace(width=width), per_prompt, seed=seed, round=round)
        )

    def _parts(self, prompts: Sequence[Prompt], per_prompt: int, round: int) -> list[Together]:
        """The prompts in parts of one size, each of as many as fill their batches whole."""
        sized: dict[Size, list[Prompt]] = {}
        for prompt in prompts:
            sized.setdefault(size_of_prompt(self.sizes, prompt.id, round), []).append(prompt)
        counts, found = [per_prompt, *(look.kept for look in self.looks(per_prompt))], list[Together]()
        for size, own in sized.items():
            width = min(self.drawing.config.at_once, counts[-1] * len(own))
            count = fitting(width, counts)
            found += [Together(size, own[start : start + count], width) for start in range(0, len(own), count)]
        return found

    def _draw(
        self, part: Together, per_prompt: int, *, seed: int, round: int
    ) -> tuple[list[Preview], list[Sample[Image.Image]]]:
        """What was seen of all candidates of some prompts, and the pictures of those that are left."""
        size, prompts, width = part
        drawing, seen = self.drawing, list[Preview]()
        jobs = [(prompt, index) for prompt in prompts for index in range(per_prompt)]
        noise, generators = drawing.noise(jobs, seed, size)
        solver, behind = drawing.solver(size), 0
        flight = Flight(jobs, drawing.begun(noise, solver), generators, solver)

        def sample(job: Job, media: Image.Image, **aux: Tensor) -> Sample[Image.Image]:
            return Sample(round, *job, fold(seed, job[0].id, job[1]), self.source, media, aux)

        for look in self.looks(per_prompt):
            flight, foretold = self._onward(flight, width, slice(behind, look.steps))
            previews = [sample(*one) for one in zip(flight.jobs, drawing.decoded(foretold), strict=True)]
            totals, there = self._totals(previews, prompts, per_prompt)
            chosen = going_on(totals, there, look.kept)
            cells = list(zip(*np.nonzero(there), strict=True))  # in the order of the jobs, as flights keep it
            seen += [
                Preview(prompt.id, index, look.steps, float(totals[cell]), bool(chosen[cell]))
                for (prompt, index), cell in zip(flight.jobs, cells, strict=True)
            ]
            flight = flight.rows([place for place, cell in enumerate(cells) if chosen[cell]])
            behind = look.steps
        flight, _ = self._onward(flight, width, slice(behind, None))
        latents, pictures = flight.latents.cpu(), list[Image.Image]()
        for own, filled in _batches(len(flight.jobs), width):
            pictures += drawing.decoded(flight.latents[filled])[: len(own)]
        rows = zip(flight.jobs, pictures, latents, strict=True)
        return seen, [sample(job, picture, latent=latent.clone()) for job, picture, latent in rows]

    def _onward(
        self, flight: Flight, width: int, steps: slice
    ) -> tuple[Flight, Float[Tensor, "jobs channels height width"]]:
        """All candidates so many steps further, and the latents that the last prediction meant."""
        shape, moved, foretold = flight.latents.shape[1:], list[Flight](), list[Tensor]()
        for own, filled in _batches(len(flight.jobs), width):
            batch = flight.rows(filled)
            # a repeated row must not draw from a candidate's own generator
            generators = [*batch.generators[: len(own)], *(torch.Generator() for _ in filled[len(own) :])]
            texts, solver = self.drawing.texts(batch.jobs), batch.solver
            *_, last = self.drawing.steps(solver, solver.timesteps[steps], batch.latents, texts, generators)
            kept = torch.arange(len(own))
            moved.append(replace(flight, latents=last.following[: len(own)], solver=picked(solver, kept, shape)))
            foretold.append(meant(self.drawing.parts.process, last)[: len(own)])
        solver = side_by_side([it.solver for it in moved], shape)
        return replace(flight, latents=torch.cat([it.latents for it in moved]), solver=solver), torch.cat(foretold)

    def _totals(
        self, previews: Sequence[Sample[Image.Image]], prompts: Sequence[Prompt], per_prompt: int
    ) -> tuple[Float[np.ndarray, "prompts candidates"], Bool[np.ndarray, "prompts candidates"]]:
        """What the ranker says of previews, and where there is one."""
        row = {prompt.id: place for place, prompt in enumerate(prompts)}
        raw = {reward.name: np.full((len(prompts), per_prompt), np.nan) for reward, _ in self.ranker.rewards}
        there = np.zeros((len(prompts), per_prompt), dtype=bool)
        for places in in_batches(((it.prompt.id, it.index) for it in previews), SCORING_BATCH):
            batch = [previews[place] for place in places]
            cells = tuple(np.array([(row[it.prompt.id], it.index) for it in batch]).T)
            there[cells] = True
            for name, values in self.ranker.raw(batch).items():
                raw[name][cells] = values
        return self.ranker.total(raw), there


def meant(process: Process, step: Step) -> Float[Tensor, "batch channels height width"]:
    """The latents that the prediction of a step means."""
    level = level_at(process, step.timestep).to(step.seen.device)
    every = torch.zeros(len(step.seen), dtype=torch.long, device=step.seen.device)
    return to_x0(process.predicts, step.predicted, step.seen, level[every])


def _batches(count: int, width: int) -> Iterator[tuple[list[int], list[int]]]:
    """Places in batches, and the same filled up to ``width`` with the first of them."""
    for start in range(0, count, width):
        own = list(range(start, min(start + width, count)))
        yield own, own + [start] * (width - len(own))


def picked(solver: Any, rows: Int[Tensor, " some"], latent: torch.Size) -> Any:
    """A copy of a solver of diffusers, where it stands, that remembers these rows of its batch alone.

    Args:
        latent: (channels, height, width) of the latents that it steps on.
    """
    return _remembering([solver], lambda held: held[0][rows.to(held[0].device)], latent)


def side_by_side(solvers: Sequence[Any], latent: torch.Size) -> Any:
    """One solver in place of several that stand at the same step, with the rows of all, one behind the other."""
    return _remembering(solvers, torch.cat, latent)


def _remembering(solvers: Sequence[Any], of: Callable[[list[Tensor]], Tensor], latent: torch.Size) -> Any:
    """A copy of the first solver, with what it remembers of rows made ``of`` what all of them do.

    Multistep solvers keep predictions and states of earlier steps, in attributes and in lists of them that they change
    in place; all else that solvers keep is the same for every row.
    """
    made = copy.copy(solvers[0])
    for name, held in vars(solvers[0]).items():
        others = [getattr(solver, name) for solver in solvers]
        if _is_of_rows(held, latent):
            setattr(made, name, of(others))
        elif isinstance(held, list):
            columns = [list(column) for column in zip(*others, strict=True)]
            setattr(made, name, [of(it) if _is_of_rows(it[0], latent) else it[0] for it in columns])
    return made


def _is_of_rows(held: Any, latent: torch.Size) -> bool:
    return isinstance(held, Tensor) and held.shape[1:] == latent
