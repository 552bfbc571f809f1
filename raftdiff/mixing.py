"""Candidates from several samplers: the policy beside teachers, data sets and people."""

from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from functools import partial
from itertools import accumulate
from typing import Any, Generic, Literal, final

from pydantic import Field

from raftdiff.errors import UserError
from raftdiff.recipes.config import Config, check, plain
from raftdiff.scoring import demand_servers
from raftdiff.seeds import fold
from raftdiff.types import Media, Preview, Prompt, Prunes, Sample, Sampler, Source


class MixPartConfig(Config):
    """One sampler of a mixture."""

    share: int = Field(ge=1)
    """How many of a prompt's candidates come from it."""
    sampler: dict[str, Any]
    """Its own keys, with its type."""


class MixSamplerConfig(Config):
    """Candidates from several samplers; the shares add up to the loop's candidates."""

    type: Literal["mix"] = "mix"
    parts: list[MixPartConfig] = Field(min_length=1)
    """In the order of the candidates' numbers; their order and shares are part of what is drawn."""

    @property
    def candidates(self) -> int:
        """Candidates of a prompt, of all parts."""
        return sum(part.share for part in self.parts)

    def fit(self, candidates: int) -> None:
        """
        Raises:
            UserError: the loop asks for another number of candidates.
        """
        if self.candidates != candidates:
            raise UserError(
                f"sampler.parts: the shares add up to {self.candidates} candidates, and loop.candidates is "
                f"{candidates}; make them equal."
            )

    def of(self, known: Sequence[Config]) -> "MixSamplerConfig":
        """The same shares of other samplers."""
        parts = [part.model_copy(update={"sampler": plain(one)}) for part, one in zip(self.parts, known, strict=True)]
        return self.model_copy(update={"parts": parts})

    def build(self, samplers: Sequence[Sampler[Media]]) -> "MixSampler[Media]":
        """``samplers``: one for each of the ``parts``, built from its config."""
        return MixSampler([(part.share, sampler) for part, sampler in zip(self.parts, samplers, strict=True)])


def parts(sampler: Config, part: type[Config]) -> list[Any]:
    """The configs of a mixture's parts, of which ``part`` says under ``sampler`` what they may be; of another sampler
    that one alone.

    Raises:
        UserError: one is not a sampler's.
    """
    if not isinstance(sampler, MixSamplerConfig):
        return [sampler]
    held = [check(part, {"sampler": one.sampler}, f"sampler.parts.{place}") for place, one in enumerate(sampler.parts)]
    return [vars(one)["sampler"] for one in held]


@final
class MixSampler(Generic[Media]):
    """The first ``share`` candidates of a prompt come from the first part, the next from the second, and so on.

    With three parts of shares 2, 1 and 3, candidates 0-1, 2 and 3-5. Each sample keeps the source, the aux and the
    seed of the part that made it. The first part draws with the seed that it would have alone, so that the same policy
    with the same seeds draws the same with and without the others; part i > 0 draws with ``fold(seed, "part", i)``.
    A part that has fewer answers than its share (data, people) leaves its other numbers free.
    """

    def __init__(self, parts: Sequence[tuple[int, Sampler[Media]]]) -> None:
        """``parts``: (share, sampler), in the order of the candidates' numbers.

        Raises:
            UserError: there is no part, or a share is less than one.
        """
        if not parts or any(share < 1 for share, _ in parts):
            raise UserError("sampler.parts: a mixture needs a part, and each part a share of 1 or more.")
        self.parts = tuple(parts)
        self._starts = tuple(accumulate((share for share, _ in parts), initial=0))

    @property
    def source(self) -> Source:
        """The parts' own where all have the same, else that of the first part that is not the policy."""
        sources = [sampler.source for _, sampler in self.parts]
        return next((source for source in sources if source != "policy"), "policy")

    @property
    def provides(self) -> tuple[str, ...]:
        """What every sample carries; those of one part may carry more."""
        first, *others = (sampler.provides for _, sampler in self.parts)
        return tuple(name for name in first if all(name in other for other in others))

    def sample(
        self, prompts: Sequence[Prompt], *, per_prompt: int, seed: int, round: int, done: AbstractSet[tuple[str, int]]
    ) -> Iterator[Sample[Media]]:
        """Part by part. With fewer candidates than the shares add up to, the last ones are left out.

        Raises:
            UserError: more candidates are asked for than the shares add up to.
        """
        if per_prompt > self._starts[-1]:
            raise UserError(
                f"sampler.parts: the shares add up to {self._starts[-1]} candidates, and {per_prompt} are asked for."
            )
        for place, ((share, sampler), start) in enumerate(zip(self.parts, self._starts, strict=False)):
            count = min(share, per_prompt - start)
            if count < 1:
                return
            own = {(prompt, index - start) for prompt, index in done if start <= index < start + count}
            part_seed = seed if place == 0 else fold(seed, "part", place)
            drawn = sampler.sample(prompts, per_prompt=count, seed=part_seed, round=round, done=own)
            yield from (replace(sample, index=start + sample.index) for sample in drawn)

    def check_server(self) -> None:
        """
        Raises:
            UserError: the server of a part is not there.
        """
        demand_servers(sampler for _, sampler in self.parts)

    def kept(self, per_prompt: int) -> int:
        counts = [min(share, per_prompt - start) for (share, _), start in zip(self.parts, self._starts, strict=False)]
        each = zip(counts, self.parts, strict=True)
        return sum(one.kept(count) if isinstance(one, Prunes) else count for count, (_, one) in each if count > 0)

    def on_previews(self, told: Callable[[Sequence[Preview]], object]) -> None:
        for (_, sampler), start in zip(self.parts, self._starts, strict=False):
            if isinstance(sampler, Prunes):
                sampler.on_previews(partial(_shifted, told, start))

    def network_evaluations(self) -> int:
        """Of all parts together."""
        return sum(sampler.network_evaluations() for _, sampler in self.parts)


def _shifted(told: Callable[[Sequence[Preview]], object], by: int, seen: Sequence[Preview]) -> None:
    told([one._replace(index=one.index + by) for one in seen])
