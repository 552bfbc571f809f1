"""The most memory that a computation holds, found by walking through it on PyTorch's meta device: shapes are computed
and numbers are not, so that a model of any size is counted in seconds on a laptop."""

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def peak(work: Callable[[], object], held: Iterable[nn.Module] = ()) -> int:
    """Bytes that ``work`` holds at its fullest, beside the weights of the modules in ``held``.

    What autograd saves is counted, as is every intermediate result until it is freed. Not counted: what a kernel needs
    for itself, and what an allocator wastes between tensors of differing sizes. Attention is taken to be a fused
    kernel, as PyTorch's is on a GPU, which holds no matrix of all pairs.
    """
    follower = _Follower()
    for module in held:
        for tensor in (*module.parameters(), *module.buffers()):
            follower.ignore(tensor)
    with _fused_attention(), follower:
        work()
    return follower.most


@final
class _Follower(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up storages as they come, and takes them off as they go."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._held: dict[int, int] = {}
        self._now = self.most = 0

    def ignore(self, tensor: Tensor) -> None:
        self._held[tensor.untyped_storage()._cdata] = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, Tensor):
                self._hold(tensor)
        return found

    def _hold(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata in self._held:
            return
        self._held[storage._cdata] = storage.nbytes()
        self._now += storage.nbytes()
        self.most = max(self.most, self._now)
        weakref.finalize(storage, self._drop, storage._cdata)

    def _drop(self, place: int) -> None:
        self._now -= self._held.pop(place)


@final
class _Attention(torch.autograd.Function):
    """What a fused kernel holds: queries, keys, values, its result, and a number for each query."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        found = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, found, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return found

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


@contextmanager
def _fused_attention() -> Iterator[None]:
    """On the meta device PyTorch takes the plain way, by a matrix of all pairs. Replaced for every thread: autograd
    computes again in another one what was checkpointed."""
    plain = functional.scaled_dot_product_attention

    def fused(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Any:
        return _Attention.apply(query, key, value)

    functional.scaled_dot_product_attention = fused
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = plain
