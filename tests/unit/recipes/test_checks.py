"""What a reward's config says of what it makes, before it is made."""

from typing import Any, final

import pytest

from raftdiff.recipes.checks import lacks_gradient
from raftdiff.rewards.clip import ClipConfig
from raftdiff.rewards.jpeg import JpegConfig


@final
class Flat:
    """A reward that cannot be another."""

    def score(self, samples: Any) -> Any: ...


class Open:
    """A reward of which there may be a kind with a gradient."""

    def score(self, samples: Any) -> Any: ...


class SaysFlat:
    def build(self) -> Flat: ...


class SaysOpen:
    def build(self) -> Open: ...


class SaysNothing:
    def build(self): ...  # type: ignore[no-untyped-def]


class SaysAnything:
    def build(self) -> Any: ...


class SaysWhatIsNotThere:
    def build(self) -> "OfTypeCheckers": ...  # type: ignore[name-defined]


@pytest.mark.parametrize(
    ("config", "flat"),
    [
        (JpegConfig(), True),
        (ClipConfig(model="scene-clip"), False),
        (SaysFlat(), True),
        (SaysOpen(), False),
        (SaysNothing(), False),
        (SaysAnything(), False),
        (SaysWhatIsNotThere(), False),
        (object(), False),
    ],
)
def test_a_gradient_is_denied_only_where_what_is_made_is_final(config: Any, flat: bool) -> None:
    assert lacks_gradient(config) is flat
