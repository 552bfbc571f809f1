"""Weights that are published as one file of PyTorch: read without running what such a file may hold, and compared by
name and shape with what the network has, before a number of them is loaded."""

import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from raftdiff.errors import UserError
from raftdiff.recipes.needs import near
from raftdiff.training.weights import demand_all, reading

Shapes = Mapping[str, tuple[int, ...]]
SUFFIXES = (".pt", ".pth", ".bin", ".safetensors")


def no_file(what: str, path: Path, key: str, where: str) -> str:
    """What to say of a path that is no file: that it is a folder, or that nothing is there.

    Args:
        what: what the file would be, such as "HPS checkpoint".
        key: the recipe's key that names it.
        where: where to get it.
    """
    if path.is_dir():
        held = sorted(file.name for file in path.iterdir() if file.suffix in SUFFIXES)
        some = f", such as {path / held[0]}" if held else ""
        return f"'{path}' is a folder, and '{key}' names the {what} itself, a file{some}. {where}."
    hint = f" {found}" if (found := near(str(path))) else ""
    return f"There is no {what} '{path}'.{hint} {where}; give the path of the file as '{key}'."


def tensors(
    what: str, path: Path, *, device: Literal["meta", "cpu"] = "cpu", advice: str = ""
) -> dict[str, torch.Tensor]:
    """The weights of a .pt, .pth, .bin or .safetensors file, out of a ``state_dict`` where they lie in one.

    Args:
        what: begins each sentence, and says whose file it is.
        device: with ``meta`` names and shapes alone, which takes no time.
        advice: what else to fetch, where the file holds more than tensors.

    Raises:
        UserError: there is no such file, it is none of PyTorch, or it holds other things than plain tensors.
    """
    if path.suffix == ".safetensors":
        found: Any = _safetensors(what, path, device)
    else:
        found = _unpickled(what, path, device, advice)
    while isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]
    if not isinstance(found, Mapping) or not found:
        raise UserError(f"{what} '{path}' holds a {type(found).__name__} where weights with their names are expected.")
    if strange := [name for name, value in found.items() if not isinstance(value, torch.Tensor)]:
        raise UserError(f"{what} '{path}' holds '{strange[0]}', which is no tensor, where weights are expected.")
    return {str(name): value for name, value in found.items()}


def _safetensors(what: str, path: Path, device: str) -> dict[str, torch.Tensor]:
    from safetensors import safe_open

    with reading(f"{what} '{path}' is no readable safetensors file"), safe_open(path, framework="pt") as file:
        if device == "meta":
            sizes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
            return {name: torch.empty(size, device="meta") for name, size in sizes.items()}
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _unpickled(what: str, path: Path, device: str, advice: str) -> Any:
    with reading(f"{what} '{path}' cannot be read"):
        try:
            return torch.load(path, map_location=device, weights_only=True)
        except pickle.UnpicklingError as error:
            # PyTorch's words on what it would not unpickle end in advice to unpickle it all the same.
            named = re.search(r"GLOBAL ([\w.]+)", str(error))
            held = f"holds more than tensors ({named[1]})" if named else "is no file of PyTorch, or more than tensors"
            code = "Such a file may run code, and is never opened here."
            raise UserError(" ".join(filter(None, [f"{what} '{path}' {held}.", code, advice]))) from None


def demand_layout(what: str, found: Mapping[str, torch.Tensor], wanted: Shapes, *, spare: Sequence[str] = ()) -> None:
    """
    Args:
        wanted: the network's own names and shapes.
        spare: parts of names that a file may hold beside them.

    Raises:
        UserError: a weight is lacking, of another shape, or one too many.
    """
    more = sorted(name for name in set(found) - set(wanted) if not any(part in name for part in spare))
    demand_all(what, set(wanted) - set(found), more)
    for name, shape in wanted.items():
        if tuple(found[name].shape) != shape:
            raise UserError(
                f"{what}: {name} has the shape {tuple(found[name].shape)}, where {shape} is expected. It is another "
                "model's."
            )
    if more:
        raise UserError(f"{what}: it holds '{more[0]}', which the model has not. Is it another model's?")


def shapes(network: torch.nn.Module) -> Shapes:
    """Names and shapes of what a network would save; it may lie on the meta device."""
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}
