"""Weights: whether those that somebody else wrote are all there, under the names that the model knows, and are numbers;
and how they are rounded without losing what is small."""

import errno
import pickle
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raftdiff.errors import UserError

WRAPPERS: Mapping[str, str] = {
    "_orig_mod.": "torch.compile puts it there; save the model inside, model._orig_mod",
    "module.": "DataParallel puts it there; save the model inside, model.module",
    "base_layer.": "PEFT puts it there while an adapter is attached; save after merge_and_unload() or unload()",
}
"""What a training leaves in the names of weights, and who puts it there."""
PICKLED = (".ckpt", ".pth")
"""How files of PyTorch's own form end, of which plain weights are read and nothing else."""
NOT_PLAIN = "It is cut short or damaged, or holds Python code, which raftdiff never runs"
HOLDERS = ("state_dict", "model", "module")
"""Under which names trainings keep a model's weights beside their own state, the likelier first."""
DEEPEST = 4
"""Wrappings within each other that are opened; a file may refer to itself."""
EVENLY = (0.7548776662466927, 0.5698402909980532)
"""Of rows and of columns: sums of these times the place, less their whole parts, fall evenly on 0 to 1 along rows and
columns and in every block; 1/g and 1/g^2, where g^3 = g + 1."""
EXPONENT = 0x7F800000
"""The bits of a float32 that are its exponent."""
AT_ONCE = 2**24
"""Numbers rounded at once: of a layer of 66 million that takes less memory."""
HEADING = 60
"""A first line of an error that is shorter says little without the second."""
ADVICE = " If you want to instead overwrite"
"""How diffusers goes on where a weight is of another size: with arguments of its own, for random weights."""


@contextmanager
def reading(what: str, advice: str = "") -> Iterator[None]:
    """Within, whatever a library raises over somebody's files becomes a sentence that begins with ``what``.

    Libraries raise nearly anything over a malformed file: KeyError, TypeError, a bare Exception. A full disk stays what
    it is.

    Raises:
        UserError: something was raised.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(f"{what}: {first_line(error)}{f' {advice}' if advice else ''}") from error


def first_line(error: Exception) -> str:
    """What an error of a library says first, as a sentence; with its second line where the first is a heading."""
    if isinstance(error, pickle.UnpicklingError):  # PyTorch's words end in advice to unpickle it all the same
        return f"{NOT_PLAIN}."
    lines = [line.strip() for line in str(error).strip().splitlines()]
    said = " ".join(lines[: 1 if lines and len(lines[0]) > HEADING else 2])
    said = said.partition(ADVICE)[0].rstrip(".: ")
    return f"{said or type(error).__name__}{f' ({type(error).__name__})' if isinstance(error, KeyError) else ''}."


def pickled_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Of a file in PyTorch's own form, without its numbers. No code in it is run.

    Raises:
        UserError: it cannot be read as plain weights.
    """
    try:
        found = torch.load(path, map_location="meta", weights_only=True)
    except Exception as error:  # of a text PyTorch raises nearly anything
        # PyTorch's words on what it would not unpickle end in advice to unpickle it all the same.
        reason = "" if isinstance(error, pickle.UnpicklingError) else f" ({first_line(error).rstrip('.')})"
        if _is_safetensors(path):
            raise UserError(f"{path}: this is a safetensors file; name it so, with .safetensors at its end.") from None
        raise UserError(
            f"{path}: this file cannot be read as plain weights{reason}. {NOT_PLAIN}: fetch it again, or use the "
            "model's .safetensors."
        ) from None
    return {name: tuple(weight.shape) for name, weight in unwrapped(path, found).items()}


def unwrapped(path: Path, found: Any) -> dict[str, Tensor]:
    """The tensors, by name, of what PyTorch read from a file, out of whatever a training wrapped them in.

    Raises:
        UserError: there is no table of names.
    """
    for _ in range(DEEPEST):
        if not isinstance(found, dict) or _has_tensors(found):
            break
        held = [found[name] for name in HOLDERS if isinstance(found.get(name), dict)]
        found = next(filter(_has_tensors, held), held[0] if held else found)
    if not isinstance(found, dict):
        raise UserError(f"{path}: this file holds a {type(found).__name__}, not a model's weights.")
    named = {name: weight for name, weight in found.items() if isinstance(name, str)}
    return {name: weight for name, weight in named.items() if isinstance(weight, torch.Tensor)}


def _has_tensors(table: Mapping[Any, Any]) -> bool:
    return any(isinstance(one, Tensor) for one in table.values())


def _is_safetensors(path: Path) -> bool:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt"):
            return True
    except (SafetensorError, OSError):
        return False


def demand_all(what: str, missing: Iterable[str], unexpected: Iterable[str]) -> None:
    """``what`` names the weights; ``missing`` are those that the model has and its files lack, ``unexpected`` those
    that the files have and the model does not. Missing weights would be random ones, others at each start.

    Raises:
        UserError: something is missing.
    """
    lacking = sorted(missing)
    if not lacking:
        return
    sentence = f"{what}: its files lack {_count(lacking)}"
    if wrapped := wrapper(unexpected):
        name, mark = wrapped
        raise UserError(f"{sentence}, but hold '{name}': the '{mark}' is not the model's, {WRAPPERS[mark]}.")
    raise UserError(f"{sentence}, which would be random. Are they damaged, or another model's?")


def wrapper(names: Iterable[str]) -> tuple[str, str] | None:
    """A name that a training left a mark in, and the mark; None where all are plain."""
    ordered = sorted(names)
    marked = ((name, mark) for mark in WRAPPERS for name in ordered if f".{mark}" in f".{name}")
    return next(marked, None)


def demand_finite(what: str, module: torch.nn.Module) -> None:
    """
    Raises:
        UserError: a weight is NaN or infinite, so that whatever the model makes is none.
    """
    for name, weight in module.named_parameters():
        if weight.is_floating_point() and not bool(torch.isfinite(weight).all()):
            bad = int((~torch.isfinite(weight)).sum())
            raise UserError(
                f"{what}: {bad} of the {weight.numel()} numbers of {name} are NaN or infinite. The file is damaged, "
                "its training diverged, or the dtype is too small for it: try bfloat16 or float32."
            )


def without_data(module: torch.nn.Module) -> list[str]:
    """The names of weights that a library announced and never filled."""
    return [name for name, weight in module.named_parameters() if weight.is_meta]


def loaded(what: str, kind: Any, where: Any, **options: Any) -> Any:
    """A model of a diffusers or transformers class ``kind`` from ``where``, all of whose weights were there.

    Raises:
        UserError: it cannot be read, lacks weights, or holds some that are no numbers.
    """
    with reading(f"{what} cannot be read"):
        model, told = kind.from_pretrained(where, output_loading_info=True, **options)
    demand_all(what, told["missing_keys"], told["unexpected_keys"])
    demand_finite(what, model)
    return model


def rounded_evenly(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """A weight in half precision, up or down by a pattern that is the same every time, so that what lies a tenth of the
    way between two numbers goes up in a tenth of the places. Rounded to the nearest, a change of less than half of that
    way would be lost wherever it is added to a number of ``dtype``. Such numbers themselves stay as they are, but for
    those of bfloat16 below 1e-36.

    Args:
        weight: float32, of two dimensions or more.
        dtype: bfloat16 or float16; in float32 it stays as it is.
    """
    if dtype == torch.float32:
        return weight
    rows, fine, device = weight.flatten(1), torch.finfo(dtype), weight.device
    least = max(fine.smallest_normal * fine.eps, torch.finfo(torch.float32).tiny)  # a CPU may hold less for 0
    found = torch.empty_like(rows, dtype=dtype)
    down, across = (EVENLY[at] * torch.arange(rows.shape[at], device=device) for at in (0, 1))
    count = max(1, AT_ONCE // rows.shape[1])
    for start in range(0, len(rows), count):
        part = rows[start : start + count]
        power = (part.view(torch.int32) & EXPONENT).view(torch.float32)  # of two, below the number and exactly
        apart = power.mul_(fine.eps).clamp_min_(least)
        pattern = (down[start : start + count, None] + across).remainder_(1).mul_(0.998)  # whole numbers stay
        found[start : start + count] = pattern.add_(part / apart).floor_().mul_(apart)
    return found.view_as(weight)


def _count(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def laid_out(weight: Tensor, channels_last: bool) -> Tensor:
    """A convolution's weight in one of the two memory formats; any other as it is."""
    if weight.ndim != 4:
        return weight
    return weight.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
