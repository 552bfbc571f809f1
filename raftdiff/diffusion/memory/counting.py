"""The most memory that a computation holds, found by walking through it on PyTorch's meta device: shapes are computed
and numbers are not, so that a model of any size is counted in seconds on a laptop."""

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.checkpoint import checkpoint

NARROW = {
    *("linear", "matmul", "__matmul__", "bmm", "baddbmm", "addmm", "addbmm", "mm", "einsum"),
    *("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
}
WIDE = {
    *("layer_norm", "group_norm", "rms_norm", "softmax", "log_softmax", "pow", "__pow__", "rsqrt", "exp", "log", "sum"),
    *("cumsum", "interpolate", "mse_loss", "softplus"),
}
"""What autocast on a GPU computes in half precision, and what in float32, of what denoisers ask for; PyTorch's list:
https://docs.pytorch.org/docs/stable/amp.html#cuda-op-specific-behavior."""


def peak(work: Callable[[], object], held: Iterable[nn.Module] = ()) -> int:
    """Bytes that ``work`` holds at its fullest, beside the weights of the modules in ``held``.

    What autograd saves is counted, as is every intermediate result until it is freed. Not counted: what a kernel needs
    for itself, and what an allocator wastes between tensors of differing sizes. Attention is taken to be a fused
    kernel, as PyTorch's is on a GPU, which holds no matrix of all pairs.
    """
    follower = Follower()
    for module in held:
        for tensor in (*module.parameters(), *module.buffers()):
            follower.ignore(tensor)
    with _fused_attention(), follower:
        work()
    return follower.most


@final
class Autocast(TorchFunctionMode):
    """Within, results have the dtypes that they have on a GPU under autocast, which the meta device knows nothing of.
    Trained weights that were cast are kept until the region ends, as there. To be entered once."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype
        self._kept: dict[int, Tensor] = {}

    def __exit__(self, *error: Any) -> None:
        self._kept = {}
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def checkpointed(self, module: Any, *args: Any) -> Any:
        """What diffusers' networks are to checkpoint by, so that what is computed again has the same dtypes."""
        again = lambda: (nullcontext(), Autocast(self._dtype))  # noqa: E731
        return checkpoint(module.__call__, *args, use_reentrant=False, context_fn=again)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        name, wanted = getattr(func, "__name__", ""), None
        if name in NARROW:
            wanted = self._dtype
        elif name in WIDE:
            wanted = torch.float32
        if wanted is not None:
            args, kwargs = tree_map_only(Tensor, lambda it: self._cast(it, wanted), (args, kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _cast(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        if tensor.dtype == dtype or not tensor.is_floating_point():
            return tensor
        if not (tensor.is_leaf and tensor.requires_grad):
            return tensor.to(dtype)
        if id(tensor) not in self._kept:
            self._kept[id(tensor)] = tensor.to(dtype)
        return self._kept[id(tensor)]


@final
class Follower(TorchDispatchMode):  # type: ignore[no-untyped-call]
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
        # queries and keys are normed, in float32 under autocast, which then casts them; values come from a layer
        return _Attention.apply(query.to(value.dtype), key.to(value.dtype), value)

    functional.scaled_dot_product_attention = fused
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = plain
