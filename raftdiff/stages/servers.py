"""The servers behind a run's sampler and rewards, asked before anything is drawn."""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from raftdiff.records.run import Run
from raftdiff.scoring import demand_servers
from raftdiff.stages.ending import ended
from raftdiff.stages.parts import Parts

Recipe = TypeVar("Recipe")


class _WithParts(Protocol):
    @property
    def parts(self) -> Parts[Any]: ...


Assembled = TypeVar("Assembled", bound=_WithParts)


def asking_first(
    run: Run, assemble: Callable[[Recipe], Assembled], *, scored: bool = True
) -> Callable[[Recipe], Assembled]:
    """``assemble``, which then asks whether the servers behind the next round's sampler and rewards are there, so that
    it is said before anything is drawn. Of a round that lies there in part nothing is asked, since what was replied is
    kept, nor where there is none to make. Without ``scored`` its candidates are drawn alone.

    Raises:
        UserError: within, a server is not there, or has no such model.
    """

    def assembled(recipe: Recipe) -> Assembled:
        assembly = assemble(recipe)
        t, parts = run.rounds_done(), assembly.parts
        if not ended(run, parts.loop) and not run.unfinished(t).rows():
            watching = [parts.held_out_ranker or parts.ranker] if parts.held_out and (scored or not t) else []
            rankers = [*watching, *([parts.ranker] if scored else ())]
            demand_servers([parts.sampler, *(reward for ranker in rankers for reward, _ in ranker.rewards)])
        return assembly

    return assembled
