"""A reward of your own: any Python function of pictures and captions, or of answers and prompts.

```python
# my_rewards.py, in the folder that raftdiff is started from
def redness(images, prompts, channel=0):
    return [image.resize((1, 1)).getpixel((0, 0))[channel] / 255 for image in images]
```

```yaml
rewards: [{type: callable, function: "my_rewards:redness", options: {channel: 0}}]
```

On text it gets the answers: ``def politeness(texts, prompts): return ["please" in text for text in texts]``.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal, final

import numpy as np
import torch
from jaxtyping import Float32
from PIL import Image
from pydantic import Field

from raftdiff.errors import UserError
from raftdiff.recipes.config import Config
from raftdiff.recipes.registry import resolve_function
from raftdiff.types import Sample

Function = Callable[..., Any]


class CallableConfig(Config):
    type: Literal["callable"] = "callable"
    name: str = "callable"
    """The column of this reward in tables and logs."""
    weight: float = Field(default=1.0, allow_inf_nan=False)
    """Factor in the total reward."""
    function: str
    """module:function, installed or in the current folder; called as function(images, prompts, **options), or with the
    answers in place of the pictures."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Passed to the function as keywords."""

    def build(self, *, device: str = "cpu", resolve: Callable[[str], str] = str) -> "CallableReward":
        """The reward. A function that needs the device takes it from its own options."""
        del device, resolve
        return CallableReward(
            load_function(self.function), function=self.function, options=self.options, name=self.name
        )


@final
class CallableReward:
    """What the function returns: a number for each picture or answer. Higher is better, NaN discards the sample.

    The function gets ``images: list[PIL.Image.Image]``, or ``texts: list[str]``, then ``prompts: list[str]`` (the
    captions), both by position, and the options as keywords; it returns a list, tensor or array of as many numbers. The
    pictures are copies: drawing on them harms nobody. What it raises is raised here, with a note that says where from.
    """

    def __init__(
        self, call: Function, *, function: str, options: dict[str, Any] | None = None, name: str = "callable"
    ) -> None:
        self.name = name
        self._call, self._function, self._options = call, function, dict(options or {})
        _check_signature(call, function, self._options)

    def score(self, samples: Sequence[Sample[Any]]) -> Float32[torch.Tensor, " samples"]:
        media = [_copy(sample.media) for sample in samples]
        kind = "text" if any(isinstance(text, str) for text in media) else "picture"
        try:
            returned = self._call(media, [sample.prompt.caption for sample in samples], **self._options)
        except Exception as error:
            error.add_note(f"This was raised by the reward function '{self._function}'.")
            raise
        return as_scores(returned, len(samples), self._function, kind=kind)


def load_function(target: str) -> Function:
    """The function that ``module:function`` names; see ``registry.resolve_function``.

    Raises:
        UserError: no such module or name, or what it names cannot be called.
    """
    return resolve_function(target, "the reward 'callable'", noun="reward function")


def as_scores(returned: Any, count: int, function: str, *, kind: str = "picture") -> Float32[torch.Tensor, " samples"]:
    """What a reward function returned, as float32 on the CPU; ``kind`` says in errors what it was given.

    Raises:
        UserError: not ``count`` numbers in one dimension, or an infinite one.
    """
    expected = f"It should return {count} numbers, one for each {kind}: a list, tensor or array of shape ({count},)."
    try:
        tensor = returned if isinstance(returned, torch.Tensor) else torch.from_numpy(_array(returned))
    except (TypeError, ValueError):
        tensor = None
    if tensor is None or tensor.is_complex() or tuple(tensor.shape) != (count,):
        raise UserError(f"The reward function '{function}' returned {_describe(returned)}. {expected}")
    scores = tensor.detach().to("cpu", torch.float32)
    if torch.isinf(scores).any():
        where = int(torch.isinf(scores).nonzero()[0, 0])
        raise UserError(
            f"The reward function '{function}' returned {float(scores[where])} for {kind} {where}. Scores are finite; "
            f"NaN discards a {kind}."
        )
    return scores.clone()


def _copy(media: Any) -> Any:
    return media.copy() if isinstance(media, Image.Image) else media


def _array(returned: Any) -> np.ndarray:
    """Numbers as float64; text, None and ragged lists raise."""
    if isinstance(returned, str | bytes | dict | set) or returned is None:
        raise TypeError
    if isinstance(returned, Sequence):  # a list of one-number tensors is a list of numbers
        returned = [value.item() if hasattr(value, "item") and np.ndim(value) == 0 else value for value in returned]
    array = np.asarray(returned)
    if array.dtype.kind not in "bfiu":
        raise TypeError
    return array.astype(np.float64)


def _describe(value: Any) -> str:
    shape = getattr(value, "shape", None)
    if shape is not None:
        return f"{type(value).__name__} of shape {tuple(shape)} and type {value.dtype}"
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        kinds = sorted({type(item).__name__ for item in value})
        return f"a {type(value).__name__} of {len(value)} items" + (f" ({', '.join(kinds[:3])})" if kinds else "")
    return "None" if value is None else f"a {type(value).__name__}"


def _check_signature(call: Function, function: str, options: dict[str, Any]) -> None:
    try:
        signature = inspect.signature(call)
    except (TypeError, ValueError):  # some builtins have none
        return
    try:
        signature.bind([], [], **options)
    except TypeError as error:
        given = "".join(f", {key}={value!r}" for key, value in options.items())
        raise UserError(
            f"The reward function '{function}' has the signature {signature} and cannot be called as "
            f"(images or texts, prompts{given}): {error}."
        ) from None
