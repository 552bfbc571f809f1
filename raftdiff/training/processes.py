"""Processes of one machine that work together, as accelerate launch and torchrun start them: who they are, what they
tell each other, how they add up, and that none goes on where one is gone.

They speak over gloo, within the machine: what they exchange is small beside what they compute, and a process that dies
is noticed by the others at once.
"""

import _thread
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn

from raftdiff.errors import UserError

GRACE = 5.0
"""Seconds in which a process that lost another may put what it has on the disk."""
ENDING = (signal.SIGINT, signal.SIGTERM)
FINISHED, LEFT = b"!", b"."
"""What a process says last that ends when the work is done, or by itself before; one that is killed says nothing."""


class World(NamedTuple):
    """Which of how many processes this one is, from 0."""

    rank: int = 0
    size: int = 1


@final
@dataclass
class _Here:
    world: World = field(default_factory=World)
    sharing: bool = False
    done: bool = False
    """Whether the others may end."""
    lost: bool = False
    peers: list[socket.socket] = field(default_factory=list)
    meanwhile: Callable[[], None] = lambda: None
    """What the others need of this process while it waits for them."""


_here = _Here()


def here() -> World:
    """Which process this is; the only one where none was launched beside it."""
    return _here.world


def sharing() -> World:
    """Among how many processes a step is shared: within ``together`` all, else this one has all of it."""
    return _here.world if _here.sharing else World()


@contextmanager
def together() -> Iterator[None]:
    """Within, all processes take the same steps, and each its share of every one."""
    _here.sharing = True
    try:
        yield
    finally:
        _here.sharing = False


def join(rank: int, size: int) -> None:
    """Meet the others; from now on each watches whether the first is there, and the first all of them.

    Raises:
        UserError: this PyTorch has nothing that they could speak over.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
        raise UserError(
            "this PyTorch was built without gloo, over which processes share a run. Install one that has it, as the "
            "usual ones do (pip install torch), or start without accelerate launch or torchrun: one process does all "
            "of it."
        )
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    # waiting is no fault: the first process may evaluate for hours
    torch.distributed.init_process_group("gloo", rank=rank, world_size=size, timeout=timedelta(days=100))
    _here.world = World(rank, size)
    for one in ENDING:  # the others end when the first does
        signal.signal(one, signal.SIG_IGN if rank else _interrupt_once)
    _meet()


def tell(word: Any) -> None:
    """Tell the other processes what to do next; None: no more, they may end. Nothing where this is the only one."""
    if _here.world.size > 1:
        _here.meanwhile()
        _here.done = word is None
        torch.distributed.broadcast_object_list([word], src=0)


def told() -> Any:
    """What the first process tells."""
    _here.meanwhile()
    word = [None]
    torch.distributed.broadcast_object_list(word, src=0)
    _here.done = word[0] is None
    return word[0]


def gathered(mine: Any) -> list[Any]:
    """In the first process what each of them has, in their order; in the others nothing."""
    _here.meanwhile()
    rank, size = _here.world
    found = [None] * size if rank == 0 else None
    torch.distributed.gather_object(mine, found, dst=0)
    return found or []


def any_of(mine: bool) -> bool:
    """Whether any of all processes says so."""
    said = torch.tensor([int(mine)])
    torch.distributed.all_reduce(said)
    return bool(said.item())


def meanwhile(work: Callable[[], None]) -> None:
    """What a process does for the others that still compute, whenever it is to meet them: to tell, to be told, or to
    gather. All must be given it at one point of what they tell each other."""
    _here.meanwhile = work


def nothing() -> None:
    """The others need nobody."""


def add_up(parameters: Iterable[nn.Parameter]) -> None:
    """The gradients of all processes that share a step, added up in each of them, the same in all; nothing where one
    has it alone. A process without a share counts as zeros."""
    if sharing().size == 1:
        return
    held = list(parameters)
    for parameter in held:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients: list[Tensor] = [parameter.grad for parameter in held if parameter.grad is not None]
    flat = torch.cat([gradient.flatten().to("cpu", torch.float32) for gradient in gradients])
    torch.distributed.all_reduce(flat)
    for gradient, total in zip(gradients, torch.split(flat, [it.numel() for it in gradients]), strict=True):
        gradient.copy_(total.view_as(gradient))


def summed(numbers: dict[str, float]) -> dict[str, float]:
    """Numbers by name, added up over the processes that share a step; in all but the first only their own."""
    if sharing().size == 1:
        return numbers
    every = gathered(numbers)
    return {name: sum(one.get(name, 0.0) for one in every) for one in every for name in one} or numbers


def lost(within: float = 1.0) -> bool:
    """Whether this process, which is at its end, comes to it because another is gone: what could not be sent or
    received may come before that is known."""
    for one in ENDING:
        signal.signal(one, signal.SIG_IGN)
    until = time.monotonic() + within
    while _here.world.size > 1 and not _here.lost and time.monotonic() < until:
        time.sleep(0.05)
    return _here.lost


def leave() -> None:
    """Say to the others that this process ends, and heed their end no more."""
    last, _here.done = FINISHED if _here.done else LEFT, True
    for peer in _here.peers:
        with suppress(OSError):
            peer.sendall(last)


def _meet() -> None:
    """A connection between the first process and each other one, which breaks when either dies."""
    rank, size = _here.world
    if rank == 0:
        with socket.create_server(("127.0.0.1", 0)) as door:
            torch.distributed.broadcast_object_list([door.getsockname()], src=0)
            _here.peers = [door.accept()[0] for _ in range(size - 1)]
    else:
        place: list[Any] = [None]
        torch.distributed.broadcast_object_list(place, src=0)
        _here.peers = [socket.create_connection(place[0])]
    for peer in _here.peers:
        threading.Thread(target=_watch, args=(peer,), daemon=True).start()


def _watch(peer: socket.socket) -> None:
    """Wait for the end of another process, and end this one, if it was not to end."""
    try:
        said = peer.recv(1)
    except OSError:
        said = b""
    if said == FINISHED or _here.done or _here.lost:  # what it was told last may not be heard yet
        return
    _here.lost = True
    if _here.world.rank:
        if not said:
            _say("the first process was killed, so this one ends too.")
        os._exit(1)  # it has nothing to write
    _say(
        f"one of the {_here.world.size} processes has ended before the work was done, so the others end too. Nothing "
        "that was finished is lost; the same command continues."
    )
    _thread.interrupt_main()
    time.sleep(GRACE)
    os._exit(1)  # a computation or a library holds the main thread


def _say(sentence: str) -> None:
    sys.stderr.write(f"\nraftdiff: {sentence}\n")
    sys.stderr.flush()


def _interrupt_once(number: int, frame: object) -> None:
    """A launcher passes an interrupt on that the terminal has sent already, and ends by another signal."""
    del number, frame
    for one in ENDING:
        signal.signal(one, signal.SIG_IGN)
    raise KeyboardInterrupt
