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
from raftdiff.scoring import numbers
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

    @property
    def function_doc(self) -> str:
        """What the function says of itself."""
        return inspect.getdoc(self._call) or ""

    def score(self, samples: Sequence[Sample[Any]]) -> Float32[torch.Tensor, " samples"]:
        media = [_copy(sample.media) for sample in samples]
        kind = "text" if any(isinstance(text, str) for text in media) else "picture"
        try:
            returned = self._call(media, [sample.prompt.caption for sample in samples], **self._options)
        except Exception as error:
            error.add_note(f"This was raised by the reward function '{self._function}'.")
            raise
        found = numbers(returned, len(samples), f"The reward function '{self._function}'", kind=kind)
        with np.errstate(over="ignore"):  # infinity, which the ranker refuses
            return torch.from_numpy(found.astype(np.float32))


def load_function(target: str) -> Function:
    """The function that ``module:function`` names; see ``registry.resolve_function``.

    Raises:
        UserError: no such module or name, or what it names cannot be called.
    """
    return resolve_function(target, "the reward 'callable'", noun="reward function")


def _copy(media: Any) -> Any:
    return media.copy() if isinstance(media, Image.Image) else media


def _check_signature(call: Function, function: str, options: dict[str, Any]) -> None:
    if inspect.isclass(call):
        raise UserError(
            f"The reward function '{function}' is a class, which makes objects and no scores. Name a function, or an "
            f"object of it that can be called, such as 'score = {call.__name__}()' in the module."
        )
    if inspect.iscoroutinefunction(call) or inspect.iscoroutinefunction(type(call).__call__):
        raise UserError(f"The reward function '{function}' is async; write it with 'def' alone.")
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
            f"(images or texts, prompts{given}): {error}.{_made(signature)}"
        ) from None


def _made(signature: inspect.Signature) -> str:
    needed = [it for it in signature.parameters.values() if it.default is it.empty]
    return "" if needed else " If it makes a reward, name what it makes, such as 'score = make()' in the module."
