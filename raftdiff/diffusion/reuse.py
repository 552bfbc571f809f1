"""``sampler.reuse``: which steps of a drawing ask the whole network."""

from collections.abc import Callable
from typing import Any

from pydantic import Field

from raftdiff.diffusion.families.shared.deepcache import Reusing
from raftdiff.diffusion.models.loaded import Parts
from raftdiff.errors import UserError
from raftdiff.recipes.config import Config


class ReuseConfig(Config):
    """Cheaper steps for a U-Net: at some of them its outer layers alone are asked, with what the deep ones said before
    (DeepCache, arXiv:2312.00858). Other pictures come of it."""

    every: int = Field(ge=1, le=1000)
    """The whole U-Net is asked at the first step and every so many after it; 1 is at each."""
    skips: int = Field(default=2, ge=1)
    """How many of its skip connections, counted from the outside, are asked at every step: with fewer a step is cheaper
    and further from a whole one. 1 is the first convolution's."""

    def network(self, parts: Parts) -> Callable[..., Any]:
        """To be asked in place of the model's, for one drawing.

        Raises:
            UserError: the model has no layers that could be asked alone.
        """
        family = parts.family
        if not isinstance(family, Reusing):
            raise UserError(
                f"sampler.reuse: what is used again are deep layers of a U-Net, and {family.told} has none. Leave it "
                "out; fewer sampler.steps are cheaper too."
            )
        try:
            return family.reusing(parts.network, self.every, self.skips)
        except ValueError as error:
            raise UserError(f"sampler.reuse: of {parts.name} {error}. Leave reuse out, or take fewer skips.") from None
