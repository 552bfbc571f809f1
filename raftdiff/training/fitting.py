"""As many rows at once as memory holds: where it does not suffice, half of them."""

import gc
import warnings
from collections.abc import Callable
from typing import TypeVar, final

import torch

from raftdiff.console import out_of_memory
from raftdiff.errors import UserError, counted
from raftdiff.training import sharded

T = TypeVar("T")
SMALLER = (
    "Take smaller pictures (sampler.height, sampler.width), decode in tiles (model.vae_tiling=true), or hold less on "
    "the device (model.dtype=bfloat16, model.offload=true): 'raftdiff plan RECIPE --card 12GB' names what fits."
)


@final
class Fitting:
    """How many rows at once there is memory for, as far as this process has come to know.

    ``key`` of a recipe says how many there would be, ``verb`` what is done to pictures; ``halved`` is called with how
    many are left whenever memory did not suffice.
    """

    def __init__(self, key: str, verb: str) -> None:
        self.halved: Callable[[int], object] = lambda most: None
        self._key, self._verb = key, verb
        self._most: int | None = None

    def width(self, rows: int) -> int:
        """Of so many the most that is known to be tried at once."""
        return rows if self._most is None else min(rows, self._most)

    def __call__(self, rows: int, work: Callable[[int], T]) -> T:
        """What ``work`` makes when it takes at most so many rows at once; where memory does not suffice it begins anew
        with half. That is said once it went. Where a network is split over processes nothing is tried again.

        Raises:
            UserError: memory does not suffice for a single row.
        """
        if sharded.splits():  # a pass that is left half made cannot be made again, as all its processes would have to
            return work(rows)
        tried = self.width(rows)
        while not (made := attempted(lambda: work(self.width(rows)))):
            width = self.width(rows)
            if width == 1:
                raise UserError(f"{self._key}: memory does not suffice to {self._verb} a single picture. {SMALLER}")
            self._most = width // 2
            self.halved(self._most)
        if self.width(rows) < tried:
            warnings.warn(
                f"{self._key}: memory does not suffice to {self._verb} {counted(tried, 'picture')} at once; from here "
                f"on {self.width(rows)} at most, and none is lost.",
                stacklevel=2,
            )
        return made[0]


def attempted(work: Callable[[], T]) -> tuple[T] | None:
    """What ``work`` makes; None where memory did not suffice for it, which is free again then."""
    try:
        return (work(),)
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, torch.OutOfMemoryError) and out_of_memory(error) is None:
            raise
    # past the clause, whose traceback holds all that was being computed
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None
