"""A transformer whose blocks wait in main memory, each on the device only while it computes.

Not diffusers' group offloading: that moves what is trained with the rest, so that an optimizer would go on with weights
that nobody sees, and it leaves the blocks on the device that a backward pass has computed again.
"""

from collections.abc import Collection, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from raftdiff.errors import UserError

Held = tuple[tuple[Tensor, Tensor], ...]
"""A block's weights, each with what waits of it in main memory."""


@final
class Blocks:
    """Of some blocks that are asked one after the other only one lies on ``device``: the last that was asked.

    What is moved are the weights that the blocks have now, which must stay as they are; a LoRA that is put on them
    later stays where it is. A backward pass finds a block's weights there, if the block was checkpointed: computing it
    again asks for it, and autograd is done with it before the next one is asked.
    """

    def __init__(self, blocks: Sequence[nn.Module], device: torch.device) -> None:
        self._device = device
        self._here: Held = ()
        for block in blocks:
            held = tuple((weight, self._waiting(weight.data)) for weight in (*block.parameters(), *block.buffers()))
            self._away(held)
            block.register_forward_pre_hook(lambda *_, held=held: self._fetch(held))

    def _waiting(self, weight: Tensor) -> Tensor:
        """In main memory, from where a GPU can read it itself."""
        here = weight.cpu()
        return here.pin_memory() if self._device.type == "cuda" else here

    def _fetch(self, held: Held) -> None:
        if self._here is not held:
            self._away(self._here)
            for weight, waiting in held:
                weight.data = waiting.to(self._device)
            self._here = held

    def _away(self, held: Held) -> None:
        """Nothing is copied back: nobody has changed them."""
        for weight, waiting in held:
            weight.data = waiting


def blocks_of(network: nn.Module) -> list[Any]:
    """The blocks of a transformer: its lists, which diffusers checkpoints one by one."""
    return [block for part in network.children() if isinstance(part, nn.ModuleList) for block in part]


def is_transformer(network: nn.Module) -> bool:
    """Whether its blocks are of one kind and asked one after the other, so that they may wait; else it is a U-Net."""
    return not hasattr(network, "mid_block")


def in_turn(network: Any) -> list[Any]:
    """The blocks of a denoiser in the order in which they are asked: a transformer's, or a U-Net's larger ones."""
    if is_transformer(network):
        return blocks_of(network)
    return [*network.down_blocks, network.mid_block, *network.up_blocks]


def demand_blocks(network: nn.Module, told: str) -> list[Any]:
    """``blocks_of`` a network whose family is called ``told``.

    Raises:
        UserError: it has no blocks of the kind.
    """
    blocks = blocks_of(network)
    if not blocks or type(network).__name__.startswith("UNet"):
        raise UserError(
            f"model.offload: blocks is for transformers, whose blocks are asked one after the other; {told} draws with "
            "a U-Net. Use model.offload: true."
        )
    return blocks


def let_wait(network: nn.Module, device: torch.device, told: str) -> None:
    """Let a transformer's blocks wait, and put the rest of it on ``device``; ``told`` names its family.

    Raises:
        UserError: it has no blocks of the kind.
    """
    blocks = demand_blocks(network, told)
    waiting = {id(it) for block in blocks for it in (*block.parameters(), *block.buffers())}
    for weight in (*network.parameters(), *network.buffers()):
        if id(weight) not in waiting:
            weight.data = weight.data.to(device)
    network.blocks_wait = Blocks(blocks, device)  # type: ignore[assignment]


def blocks_wait(network: Any) -> bool:
    """Whether ``let_wait`` was here."""
    return hasattr(network, "blocks_wait")


def demand_fit(adapter: str, checkpointed: bool, dtypes: Collection[torch.dtype]) -> None:
    """Of how a network is trained whose blocks wait. ``dtypes``: in which it is held and computes; in half precision a
    LoRA stays beside the weights.

    Raises:
        UserError: it would need, or change, weights that have left.
    """
    needed = {
        "finetuner.adapter: lora": adapter == "lora",
        "finetuner.gradient_checkpointing: true": checkpointed,
        "model.dtype: bfloat16, in which it is trained too": torch.float32 not in dtypes,
    }
    if lacking := [setting for setting, there in needed.items() if not there]:
        raise UserError(
            "model.offload: blocks leave the GPU once they have computed, and are fetched again for the way back. That "
            f"goes with {' and '.join(lacking)}."
        )
