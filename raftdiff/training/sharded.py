"""A frozen network whose blocks are split over the processes of one machine (FSDP2): each holds its part of every
block's weights, and the whole of one while that computes. What is trained, a LoRA, all of them hold whole.

To compute, a block's weights are gathered from all processes, so that none can ask a block by itself. Each pass through
the network therefore begins with a vote: whoever has none to make, having drawn its share or waiting for the first
process, lends its parts to those who have. So no process has to make as many passes as another, but where gradients
are wanted: there all must take the same steps.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, final

import torch
from torch import nn

from raftdiff.errors import UserError
from raftdiff.training import processes

LAUNCHER = "ACCELERATE_USE_FSDP"
"""By which accelerate tells its processes that they are to shard."""


@final
@dataclass
class _Here:
    begun: bool = False
    """Whether all processes load a model now."""
    network: Any = None
    """The one that is split."""


_here = _Here()


@final
@dataclass
class Order:
    """Of some blocks: that a pass asks each once, one after the other, as whoever lends its parts goes through them."""

    blocks: Sequence[Any]
    next: int = field(default=0, init=False)

    def asked(self, place: int) -> None:
        """
        Raises:
            UserError: another block was to come.
        """
        if torch.is_grad_enabled():  # all processes make this pass
            return
        if place != self.next:
            raise UserError(
                f"model.sharded: block {place + 1} of the network was asked where block {self.next + 1} was to come: "
                "a pass was left half made, or its blocks are not asked one after the other. Leave model.sharded out."
            )
        self.next = (place + 1) % len(self.blocks)


@contextmanager
def assembling() -> Iterator[None]:
    """Within, all processes load the same models; what another one before was split is so no more."""
    processes.meanwhile(processes.nothing)
    _here.begun, _here.network = processes.here().size > 1, None
    try:
        yield
    finally:
        _here.begun = False


def wanted(asked: bool) -> bool:
    """Whether a model that is being loaded is to be split; ``asked`` by its recipe. By itself a process holds all.

    Raises:
        UserError: the launcher says so, and the recipe does not.
    """
    if _here.begun and not asked and not splits() and os.environ.get(LAUNCHER, "").lower() in ("true", "1"):
        raise UserError(
            f"accelerate launch was told to shard the model (--use_fsdp, {LAUNCHER}), and the recipe was not: set "
            "model.sharded=true, which is all that is needed, or launch without it. Its other settings are not read."
        )
    return asked and _here.begun


def splits() -> bool:
    """Whether this process holds a part of a network."""
    return _here.network is not None


def is_split(network: object) -> bool:
    """Whether other processes hold parts of this one."""
    return network is not None and network is _here.network


def split(network: nn.Module, blocks: Sequence[Any], device: torch.device) -> None:
    """Split a frozen network over all processes, in place, and put it on ``device``. What is outside of its ``blocks``,
    which are in the order in which they are asked, stays whole in each.

    Raises:
        UserError: it has no such blocks, or another network is split already.
    """
    if splits():
        raise UserError(
            "model.sharded: one network can be split over the processes, the one that is tuned. Leave sharded out of "
            "the other models of the recipe."
        )
    if not blocks:
        raise UserError("model.sharded: this network has no blocks that could be split. Leave it out.")
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import fully_shard

    mesh = DeviceMesh.from_group(_group(device), device.type)
    for block in blocks:
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    inside = {id(it) for block in blocks for it in (*block.parameters(), *block.buffers())}
    for weight in (*network.parameters(), *network.buffers()):
        if id(weight) not in inside:
            weight.data = weight.data.to(device)
    order = Order(blocks)
    blocks[0].register_forward_pre_hook(lambda *_: _begin(), prepend=True)
    for place, block in enumerate(blocks):
        # the later is prepended, the earlier it comes: a pass that was left half made is told before anybody waits
        block.register_forward_pre_hook(lambda *_, place=place: order.asked(place), prepend=True)
        block.register_forward_hook(_let_go)
    _here.network = network
    processes.meanwhile(lambda: _lend(blocks))


def is_part(weight: object) -> bool:
    """Whether a weight is this process's part of one, which is to be left as it is."""
    return hasattr(weight, "device_mesh")


def held_bytes(network: nn.Module) -> int:
    """Of its weights in this process."""
    held: list[Any] = [it.to_local() if is_part(it) else it for it in network.parameters()]  # type: ignore[attr-defined]
    return sum(it.numel() * it.element_size() for it in held)


def demand_fit(network: object, adapter: str, dtype: torch.dtype, precision: torch.dtype) -> None:
    """Of how a network is trained, which is held in ``dtype`` and computes in ``precision``.

    Raises:
        UserError: it is split, and would change weights of which there is a part here.
    """
    if not is_split(network):
        return
    if adapter != "lora":
        raise UserError(
            "finetuner.adapter: full trains every weight, and model.sharded splits those that stay as they are. Use "
            "adapter: lora, or leave model.sharded out."
        )
    if precision == torch.float32 != dtype:
        raise UserError(
            "finetuner.precision: float32 holds all weights in float32 while it trains, and model.sharded leaves them "
            "in model.dtype. Make them equal."
        )


def _let_go(block: Any, *_: Any) -> None:
    """Drop what was gathered. torch 2.7 keeps it in a block that stands by itself; on the way back, where checkpointed
    blocks are computed again, it is still needed."""
    if torch._C._current_graph_task_id() == -1:
        block.reshard()


def _begin() -> None:
    """Say that a pass begins here."""
    processes.any_of(True)


def _lend(blocks: Sequence[Any]) -> None:
    """Take part in the passes of others, until none makes any."""
    while processes.any_of(False):
        for block in blocks:
            block.unshard()
            block.reshard()


def _group(device: torch.device) -> Any:
    """What weights are gathered over: on GPUs, each process with one of its own, not through main memory."""
    own = device.type == "cuda" and processes.here().size <= torch.cuda.device_count()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return torch.distributed.new_group(backend="nccl" if own else "gloo", timeout=timedelta(days=100))
