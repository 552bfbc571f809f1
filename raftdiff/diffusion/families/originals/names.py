"""A transformer's weights under the names of the original code and under diffusers': one map for both ways."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]
BLOCK = re.compile(r"\w+\.(\d+)\.")
"""How a name in diffusers begins that is of a numbered block."""
ENDS = ("", ".weight", ".bias")


def numbered(original: str, own: str, layers: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """The layers of numbered blocks, which are called ``original`` in the original code and ``own`` in diffusers.

    >>> numbered("layers", "blocks", {"qkv": ("to_q", "to_k")})
    {'layers.{}.qkv': ('blocks.{}.to_q', 'blocks.{}.to_k')}
    """
    return {
        f"{original}.{{}}.{name}": tuple(f"{own}.{{}}.{one}" for one in several) for name, several in layers.items()
    }


@final
@dataclass(frozen=True, slots=True)
class Names:
    """How the original code calls a transformer's layers.

    ``{}`` stands for the number of a block, on both sides the same, ``{last}`` for that of the last.
    """

    layers: Mapping[str, tuple[str, ...]]
    """Layers of the original code, and weights that are of none, each with those of diffusers whose rows it holds, one
    after another. Of a map that knows more layers than a network has, the others are passed over."""
    swapped: frozenset[str] = frozenset()
    """Layers of the original code that hold a shift before a scale, where diffusers has the scale before."""
    unread: frozenset[str] = frozenset()
    """Weights of published files that no network of diffusers has."""

    def written_out(self, own: Collection[str]) -> dict[str, tuple[str, ...]]:
        """The original weights of a network whose weights are ``own`` in diffusers, with those that they hold."""
        found: dict[str, tuple[str, ...]] = {}
        blocks = _blocks(own)
        for original, several in self.layers.items():
            for block in range(blocks) if "{}" in original else (0,):
                for end in ENDS:
                    held = tuple(f"{one.format(block)}{end}" for one in several)
                    if all(one in own for one in held):
                        found[f"{original.format(block)}{end}"] = held
        return found

    def original(self, own: Weights) -> dict[str, Tensor]:
        """Weights in diffusers' names under those of the original code.

        Raises:
            ValueError: some of them have none.
        """
        names, swapped = self.written_out(own), self._swapped(own)
        if strange := own.keys() - {one for several in names.values() for one in several}:
            raise ValueError(f"the original code has no name for {min(strange)}")
        found = {}
        for name, several in names.items():
            weight = own[several[0]] if len(several) == 1 else torch.cat([own[one] for one in several])
            found[name] = _turned(weight) if name in swapped else weight
        return found

    def diffusers(self, weights: Weights, own: Weights) -> dict[str, Tensor]:
        """The other way; weights that have diffusers' names already keep them.

        Args:
            own: of the network that they are for, by diffusers' names; their shapes alone are asked.

        Raises:
            ValueError: some of them are of another network.
        """
        swapped, originals = self._swapped(own), self.written_out(own)
        found = {name: weights[name] for name in own.keys() - originals.keys() if name in weights}
        used = {*self.unread, *found}
        for name, several in originals.items():
            # ComfyUI writes norms with a weight where the original code has a scale
            held = name if name in weights else re.sub(r"\.scale$", ".weight", name)
            if held not in weights:
                continue
            used.add(held)
            weight = _turned(weights[held]) if name in swapped else weights[held]
            rows = [len(own[one]) for one in several]
            pieces = [weight] if len(several) == 1 else [piece.clone() for piece in torch.split(weight, rows)]
            found |= dict(zip(several, pieces, strict=True))
        if strange := weights.keys() - used:
            raise ValueError(f"it holds '{min(strange)}', which has no place in that model")
        return found

    def _swapped(self, own: Collection[str]) -> set[str]:
        last = _blocks(own) - 1
        return {f"{layer.format(last=last)}{end}" for layer in self.swapped for end in ENDS}


def _blocks(own: Collection[str]) -> int:
    return 1 + max((int(match[1]) for name in own if (match := BLOCK.match(name))), default=0)


def _turned(weight: Tensor) -> Tensor:
    return torch.cat(weight.chunk(2)[::-1])
