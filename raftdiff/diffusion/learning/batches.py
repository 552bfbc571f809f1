"""Some items of a step as networks are shown them, and the networks that a rule compares."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor

from raftdiff.diffusion.families.texts import Texts
from raftdiff.diffusion.learning.groups import Group, rows_of
from raftdiff.diffusion.learning.lessons import Part
from raftdiff.diffusion.learning.losses import Networks
from raftdiff.diffusion.learning.resident import onto
from raftdiff.diffusion.models.loaded import Parts
from raftdiff.training.trainable import Trainable


def part_of(group: Group, items: Sequence[int], pictures: int, embed: Callable[[Sequence[str]], Texts]) -> Part[Any]:
    """Some items of a group, of so many pictures each, with their texts embedded."""
    rows = rows_of(items, pictures)
    prompts = [group.prompts[row] for row in rows]
    captions, against = embed([prompt.learning for prompt in prompts]), None
    texts = [text for prompt in prompts if (text := group.lesson.against(prompt)) is not None]
    if texts:
        each = list(dict.fromkeys(texts))
        places = torch.tensor([each.index(text) for text in texts])
        with torch.no_grad():
            against = embed(each)[onto(places, captions.device)]
    if group.frame is not None:
        frame = onto(group.frame[rows], captions.device)
        captions = replace(captions, frame=frame)
        against = None if against is None else replace(against, frame=frame)
    drawn = group.drawn.rows(torch.tensor(items).repeat_interleave(pictures))
    shown = torch.stack([group.shown[row] for row in rows])
    return Part(shown, drawn, captions, against, group.weights[rows], prompts)


@final
class Policies:
    """The network as it is tuned, as it was before any tuning, and as it was before this round's.

    ``before``: the trained weights of the last, by name.
    """

    def __init__(self, parts: Parts, trainable: Trainable, precision: torch.dtype) -> None:
        self.before: Mapping[str, Tensor] = {}
        self._parts, self._trainable, self._precision = parts, trainable, precision

    def networks(self) -> Networks:
        return Networks(self.tuned, self.base, self.old)

    def tuned(self, xt: Tensor, timesteps: Tensor, texts: Texts) -> Tensor:
        return self._parts.predict(xt, timesteps, texts, self._precision)

    def base(self, xt: Tensor, timesteps: Tensor, texts: Texts) -> Tensor:
        """What the base says. The caption is embedded by the text encoder as it is now."""
        with self._trainable.passed_by():
            return self.tuned(xt, timesteps, texts)

    def old(self, xt: Tensor, timesteps: Tensor, texts: Texts) -> Tensor:
        """What the policy said before this round's tuning."""
        with self._trainable.holding(self.before):
            return self.tuned(xt, timesteps, texts)
