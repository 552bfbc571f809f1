"""What a reward is shown at once, and what it returned: one number a sample, or a sentence that says what to change."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from raftdiff.errors import UserError
from raftdiff.types import AsksServer, ChoosesPrompts, Media, Prompt, Reward, Sample

BYTES = (bytes, bytearray, memoryview)
SLIPS: tuple[tuple[Callable[[Any], bool], str], ...] = (
    (lambda it: it is None, "Does it end in 'return', whatever it is given? "),
    (inspect.isawaitable, "It is async: write it with 'def' alone. "),
    (lambda it: inspect.isgenerator(it) or inspect.isasyncgen(it), "It yields: return a list of the scores. "),
    (lambda it: isinstance(it, Mapping), "Return the scores alone, without names. "),
    (lambda it: isinstance(it, BYTES), "Bytes are no numbers: return a list of the scores. "),
    (
        lambda it: _is_masked(it) or (isinstance(it, Sequence) and any(map(_is_masked, it))),
        "It is masked: return 'scores.filled(np.nan)' of floats, where NaN discards what has no score. ",
    ),
    (callable, "It makes a reward and is none: name what it makes, such as 'score = make()' in the module. "),
)


def demand_prompts(rewards: Iterable[Reward[Any]], prompts: Sequence[Prompt]) -> None:
    """Every reward can say something of every prompt: asked before anything is drawn.

    Raises:
        UserError: whatever a reward that chooses its prompts (``types.ChoosesPrompts``) says of one.
    """
    for reward in rewards:
        if isinstance(reward, ChoosesPrompts):
            reward.check_prompts(prompts)


def demand_servers(parts: Iterable[Any]) -> None:
    """Every server that stands behind one of the parts, rewards or samplers, answers: asked before anything is drawn.

    Raises:
        UserError: whatever a part (``types.AsksServer``) says of its server.
    """
    for part in {id(part): part for part in parts}.values():
        if isinstance(part, AsksServer):
            part.check_server()


def numbers(returned: Any, count: int, who: str, *, kind: str = "sample") -> Float[np.ndarray, " samples"]:
    """``count`` numbers as float64, from a list, tensor or array of them, of whatever precision, in one dimension or as
    one column. NaN is kept: it discards a sample.

    Raises:
        UserError: it is something else, or a number is infinite. ``who`` begins the sentence, ``kind`` says in it what
            is scored.
    """
    try:
        values = _array(returned)
    except OverflowError:
        raise UserError(
            f"{who} returned a whole number that is too large for a score. Scores are finite; NaN discards a {kind}."
        ) from None
    except (TypeError, ValueError):
        values = None
    if values is not None and values.shape == (count, 1):
        values = values[:, 0]
    if values is None or values.shape != (count,):
        if inspect.iscoroutine(returned):
            returned.close()  # of one that is left alone Python says that it was never awaited
        raise UserError(
            f"{who} returned {_described(returned)}. {_advice(returned, count, kind)}It should return "
            f"{count} {'number' if count == 1 else 'numbers'}, one for each {kind}: a list, tensor or array of shape "
            f"({count},)."
        )
    if (infinite := np.flatnonzero(np.isinf(values))).size:
        raise UserError(
            f"{who} returned infinity for {infinite.size} of {count} {kind}s, {values[infinite[0]]} for number "
            f"{infinite[0]}. Scores are finite; NaN discards a {kind}."
        )
    return values


def demand_reward(reward: Any) -> None:
    """
    Raises:
        UserError: it has no name, or nothing that scores; a class in place of an object of it is told apart.
    """
    if isinstance(reward, type):
        raise UserError(f"The reward {reward.__name__} is a class; give an object of it: {reward.__name__}(...).")
    if not isinstance(getattr(reward, "name", None), str) or not callable(getattr(reward, "score", None)):
        what = "None" if reward is None else f"a {type(reward).__name__}"
        raise UserError(
            f"A reward should have a name, which is a text, and score(samples), but {what} was given or built. "
            "Does build() return the reward?"
        )


def called(reward: Any) -> str:
    """What sentences call a reward: by its name, and where another process has it (an attribute ``where``), by that."""
    where = getattr(reward, "where", None)
    return f"The reward '{reward.name}'" + (f", of the server at {where}," if where else "")


def described(reward: Any) -> str:
    """What a reward says of itself: its ``description``, where it has one (a function's own text, that of a reward
    which another process has), else its docstrings."""
    own = getattr(reward, "description", None)
    return own if isinstance(own, str) else " ".join(filter(None, [type(reward).__doc__, reward.score.__doc__]))


def sees_prompts(reward: Any) -> bool:
    """Whether a reward scores candidates beside the others of their prompt, and wants all of them at once."""
    return bool(getattr(reward, "whole_prompts", False))


def by_prompt(keys: Iterable[tuple[str, int]]) -> list[list[int]]:
    """The places of each prompt's candidates, given (prompt id, index) of all: prompts in the order in which they
    come, the candidates of one by their indices.

    >>> by_prompt([("b", 1), ("a", 0), ("b", 0)])
    [[2, 0], [1]]
    """
    held: dict[str, list[tuple[int, int]]] = {}
    for place, (prompt, index) in enumerate(keys):
        held.setdefault(prompt, []).append((index, place))
    return [[place for _, place in sorted(candidates)] for candidates in held.values()]


def in_order(samples: Iterable[Sample[Media]], prompts: Sequence[Prompt]) -> list[Sample[Media]]:
    """The samples prompt by prompt, in whatever order they were drawn."""
    at = {prompt.id: place for place, prompt in enumerate(prompts)}
    return sorted(samples, key=lambda sample: (at[sample.prompt.id], sample.index))


def in_batches(keys: Iterable[tuple[str, int]], size: int) -> Iterator[list[int]]:
    """The places of ``by_prompt`` in batches of whole prompts, of at most ``size`` where no prompt alone has more.

    >>> list(in_batches([("a", 0), ("a", 1), ("b", 0), ("b", 1), ("c", 0)], 3))
    [[0, 1], [2, 3, 4]]
    """
    batch: list[int] = []
    for candidates in by_prompt(keys):
        if batch and len(batch) + len(candidates) > size:
            yield batch
            batch = []
        batch = batch + candidates
    if batch:
        yield batch


def _array(returned: Any) -> np.ndarray:
    """Numbers as float64; texts, bytes, None, dates, complex numbers, masked arrays and ragged lists raise."""
    if isinstance(returned, (str, *BYTES, Mapping, set)) or returned is None or _is_masked(returned):
        raise TypeError
    if isinstance(returned, Sequence):  # a list of one-number tensors is a list of numbers
        returned = [_own(value) for value in returned]
        if any(isinstance(value, BYTES) or _is_masked(value) for value in returned):
            raise TypeError
    array = np.asarray(_own(returned))
    if array.dtype == object and not any(isinstance(value, (str, *BYTES)) for value in array.flat):
        array = np.array([float(value) for value in array.flat]).reshape(array.shape)  # None raises
    if array.dtype.kind not in "bfiu":
        raise TypeError
    return array.astype(np.float64)


def _own(value: Any) -> Any:
    """A tensor, wherever it is and whether or not it wants a gradient, as an array; all else as it is."""
    if not isinstance(value, torch.Tensor):
        return value
    return value.detach().cpu().numpy() if value.is_complex() else value.detach().to("cpu", torch.float64).numpy()


def _is_masked(value: Any) -> bool:
    """Of such arrays ``asarray`` would take what lies under the mask for scores."""
    return isinstance(value, np.ma.MaskedArray)


def _described(value: Any) -> str:
    shape = getattr(value, "shape", None)
    if shape is not None:
        kind = f" and type {value.dtype}" if hasattr(value, "dtype") else ""
        return f"{type(value).__name__} of shape {tuple(shape)}{kind}"
    if isinstance(value, Sequence) and not isinstance(value, (str, *BYTES)):
        kinds = sorted({type(item).__name__ for item in value})
        return f"a {type(value).__name__} of {len(value)} items" + (f" ({', '.join(kinds[:3])})" if kinds else "")
    return "None" if value is None else f"a {type(value).__name__}"


def _advice(returned: Any, count: int, kind: str) -> str:
    """What the usual slips want; '' for what is not one of them."""
    for is_one, advice in SLIPS:
        if is_one(returned):
            return advice
    if isinstance(returned, Sequence) and not isinstance(returned, str):
        if len(returned) == 2 and not isinstance(returned[0], str) and _length(returned[0]) == count:
            return "That is a pair: return its first part, the scores, alone. "
        if any(value is None for value in returned):
            return f"Return float('nan') instead of None, to discard a {kind}. "
    if len(shape := tuple(getattr(returned, "shape", ()))) == 2 and shape[0] == count:
        return "Of several columns return one, such as scores[:, 0]. "
    return ""


def _length(value: Any) -> int | None:
    try:
        return len(value)
    except TypeError:
        return None
