"""What goes with the picture models that ship: what they know, and their held-out judges, which never were rewards."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
from PIL.Image import Image

from raftdiff.embedded import folder
from raftdiff.embedded.scenes import world as scenes

JudgeName = Literal["scene-judge"]
PictureJudge = Callable[[Sequence[Image], Sequence[str]], Mapping[str, np.ndarray]]
"""Pictures and their captions -> of each aspect 1 right, 0 wrong, NaN where the caption does not ask."""

_PARSE: Mapping[JudgeName, Callable[[str], object]] = {"scene-judge": scenes.parse}


def understands(name: JudgeName, caption: str) -> bool:
    """Whether the judge knows what this caption asks for."""
    return _PARSE[name](caption) is not None


def open_judge(name: JudgeName) -> PictureJudge:
    """The judge, loaded.

    Raises:
        UserError: this installation lacks its files; or (judging) a caption is none of its world.
    """
    from raftdiff.embedded.scenes.judge import SceneJudge

    return SceneJudge(folder(name)).judge


def about(model: str) -> str | None:
    """What a model that ships can draw, in a few sentences; None for any other."""
    if model in ("scene-sd", "emoji-flow"):
        return (
            f"This small model draws scenes of one to {scenes.MOST} objects of one or two kinds, such as "
            f"“three foxes on a white background” or “a small red sketched crown left of a cartoon crab”. Objects: "
            f"{', '.join(scenes.OBJECTS)}. Between two kinds: and, {', '.join(scenes.RELATIONS)}. "
            f"Styles: {', '.join(scenes.STYLES)}; sketches in {', '.join(scenes.COLOURS)}. "
            f"Sizes: {', '.join(scenes.SIZES)}. Backgrounds: {', '.join(scenes.GROUNDS)}."
        )
    return None
