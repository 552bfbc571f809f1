"""A reward of your own: any Python function of pictures or answers, and of what else it asks for by name.

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

import copy
import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, final

import numpy as np
import torch
from jaxtyping import Float32
from PIL import Image
from pydantic import Field

from raftdiff.errors import UserError, nearest
from raftdiff.recipes.config import RewardConfig
from raftdiff.recipes.registry import resolve_function
from raftdiff.scoring import by_prompt, numbers
from raftdiff.types import Sample

Function = Callable[..., Any]
NEAR = 0.65
"""How like a known name a parameter's must be, 0 to 1, to be taken for a slip of it."""


class CallableConfig(RewardConfig):
    type: Literal["callable"] = "callable"
    name: str = "callable"
    """The column of this reward in tables and logs."""
    weight: float = Field(default=1.0, allow_inf_nan=False)
    """Factor in the total reward."""
    function: str
    """module:function, installed or in the current folder. It gets what its parameters are called: images or texts,
    prompts, metadata, latents, samples; and the options."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Passed to the function as keywords."""
    whole_prompts: bool = False
    """Call it once for each prompt, with all candidates of it: for what compares them."""

    def build(self, *, device: str = "cpu", resolve: Callable[[str], str] = str) -> "CallableReward":
        """The reward. A function that needs the device takes it from its own options."""
        del device, resolve
        return CallableReward(
            load_function(self.function),
            function=self.function,
            options=self.options,
            whole_prompts=self.whole_prompts,
            name=self.name,
        )


@final
class CallableReward:
    """What the function returns: a number for each picture or answer. Higher is better, NaN discards the sample.

    By the names of its parameters it gets lists, an entry a sample: ``images`` (PIL pictures) or ``texts``, ``prompts``
    (the captions), ``metadata`` (what else the prompt file says of the prompt, a dict), ``latents`` (a tensor each),
    ``samples``; and the options as keywords. A function that asks for no more than the media and the captions may call
    them as it likes, in this order. It returns a list, tensor or array of as many numbers. All that it gets are copies:
    drawing on them harms nobody. What it raises is raised here, with a note that says where from.
    """

    def __init__(
        self,
        call: Function,
        *,
        function: str,
        options: dict[str, Any] | None = None,
        whole_prompts: bool = False,
        name: str = "callable",
    ) -> None:
        self.name = name
        self.whole_prompts = whole_prompts
        self._call, self._function, self._options = call, function, dict(options or {})
        self._asked = _asked(call, function, self._options)

    @property
    def description(self) -> str:
        """What the function says of itself."""
        return inspect.getdoc(self._call) or ""

    def demand_sent(self, kind: Literal["picture", "text"]) -> None:
        """
        Raises:
            UserError: the function asks for more than is sent to a server of it, or scores the other medium.
        """
        self._refuse_other_medium(kind)
        if "latents" in self._asked.named.values():
            raise UserError(
                f"The reward function '{self._function}' asks for 'latents', which are not sent to a server; name it "
                "in the recipe that draws."
            )

    def score(self, samples: Sequence[Sample[Any]]) -> Float32[torch.Tensor, " samples"]:
        if not self.whole_prompts:
            return self._scored(samples)
        found = torch.full((len(samples),), torch.nan)
        for places in by_prompt((sample.prompt.id, sample.index) for sample in samples):
            found[places] = self._scored([samples[place] for place in places])
        return found

    def _scored(self, samples: Sequence[Sample[Any]]) -> Float32[torch.Tensor, " samples"]:
        kind = "text" if any(isinstance(sample.media, str) for sample in samples) else "picture"
        self._refuse_other(samples, kind)
        placed = [GIVEN[name](samples) for name in self._asked.placed]
        named = {parameter: GIVEN[name](samples) for parameter, name in self._asked.named.items()}
        try:
            returned = self._call(*placed, **named, **self._options)
        except Exception as error:
            error.add_note(f"This was raised by the reward function '{self._function}'.")
            raise
        found = numbers(returned, len(samples), f"The reward function '{self._function}'", kind=kind)
        with np.errstate(over="ignore"):  # infinity, which the ranker refuses
            return torch.from_numpy(found.astype(np.float32))

    def _refuse_other_medium(self, kind: str) -> None:
        if wrong := [name for name in self._asked.named if MEDIA.get(name, kind) != kind]:
            raise UserError(
                f"The reward function '{self._function}' asks for '{wrong[0]}', and what it is to score are {kind}s."
            )

    def _refuse_other(self, samples: Sequence[Sample[Any]], kind: str) -> None:
        who, named = f"The reward function '{self._function}'", self._asked.named
        self._refuse_other_medium(kind)
        bare = [one for one in samples if "latent" not in one.aux] if "latents" in named.values() else []
        if bare:
            raise UserError(
                f"{who} asks for 'latents', and {bare[0].prompt.id}-{bare[0].index:03d} has none: a picture has one "
                "where a run or its teacher drew it, and not where it comes from a file."
            )


def load_function(target: str) -> Function:
    """The function that ``module:function`` names; see ``registry.resolve_function``.

    Raises:
        UserError: no such module or name, or what it names cannot be called.
    """
    return resolve_function(target, "the reward 'callable'", noun="reward function")


def _media(samples: Sequence[Sample[Any]]) -> list[Any]:
    return [it.media.copy() if isinstance(it.media, Image.Image) else it.media for it in samples]


GIVEN: Mapping[str, Callable[[Sequence[Sample[Any]]], list[Any]]] = {
    "images": _media,
    "texts": _media,
    "prompts": lambda samples: [it.prompt.caption for it in samples],
    "metadata": lambda samples: [copy.deepcopy(dict(it.prompt.meta)) for it in samples],
    "latents": lambda samples: [it.aux["latent"].clone() for it in samples],
    "samples": lambda samples: copy.deepcopy(list(samples)),
}
"""What a parameter of this name gets."""
MEDIA = {"images": "picture", "texts": "text"}


class _Asked(NamedTuple):
    """What of ``GIVEN`` a function is called with."""

    placed: list[str]
    named: dict[str, str]
    """By parameter."""


def _asked(call: Function, function: str, options: Mapping[str, Any]) -> _Asked:
    """
    Raises:
        UserError: it is none that scores, a parameter's name says nothing, or the options are not its own.
    """
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
        return _Asked(["images", "prompts"], {})
    asked = _by_name(signature, function, options)
    try:
        if not (asked.placed or asked.named):
            raise TypeError("it takes neither")
        signature.bind(*asked.placed, **asked.named, **options)
    except TypeError as error:
        told = ["images or texts" if name in MEDIA else name for name in (*asked.placed, *asked.named.values())]
        given = "".join(f", {key}={value!r}" for key, value in options.items())
        raise UserError(
            f"The reward function '{function}' has the signature {signature} and cannot be called as "
            f"({', '.join(told) or 'images or texts, prompts'}{given}): {error}.{_made(signature)}"
        ) from None
    return asked


def _by_name(signature: inspect.Signature, function: str, options: Mapping[str, Any]) -> _Asked:
    """
    Raises:
        UserError: a parameter that must be given has a name that says nothing.
    """
    free = [it for it in signature.parameters.values() if it.name not in options]
    if any(it.kind is it.VAR_POSITIONAL for it in free):
        named = [it.name for it in free if it.kind is it.KEYWORD_ONLY and it.name in GIVEN]
        return _Asked(["images", "prompts"], dict(zip(named, named, strict=True)))
    plain = [it for it in free if it.kind is not it.VAR_KEYWORD]
    told = {it.name: it.name for it in plain if it.name in GIVEN}
    strangers = [it for it in plain if it.name not in GIVEN and it.default is it.empty]
    spare = [name for name in ("images", "prompts") if name not in told and not (name == "images" and "texts" in told)]
    if set(told) & {"metadata", "latents", "samples"}:  # it knows the names
        spare = []
    for place, stranger in enumerate(strangers):
        name = stranger.name
        gets = spare[place] if place < len(spare) and stranger.kind is not stranger.KEYWORD_ONLY else None
        close = difflib.get_close_matches(name, GIVEN, n=1, cutoff=NEAR)
        if gets is None or (close and GIVEN[close[0]] is not GIVEN[gets]):
            raise UserError(
                f"The reward function '{function}' asks for '{name}', which is neither among its options nor known. "
                f"{nearest(name, GIVEN)}"
            )
        told[name] = gets
    placed = [it.name for it in plain if it.kind is it.POSITIONAL_ONLY and it.name in told]
    return _Asked([told[name] for name in placed], {name: told[name] for name in told if name not in placed})


def _made(signature: inspect.Signature) -> str:
    needed = [it for it in signature.parameters.values() if it.default is it.empty]
    return "" if needed else " If it makes a reward, name what it makes, such as 'score = make()' in the module."
