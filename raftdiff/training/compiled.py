"""A network that PyTorch compiles when it is first asked."""

import sys
import time
from collections.abc import Callable
from typing import Any, Literal, final

import torch
from torch.utils._pytree import tree_map_only

from raftdiff.errors import UserError
from raftdiff.training.weights import first_line

LACKING = (
    "It needs a C++ compiler (g++, clang or MSVC), on a GPU Triton too: install what is missing, or set "
    "model.compile=false, which draws the same pictures."
)


@final
class Compiled:
    """Asked like the network itself, whose weights it shares: who swaps them there, in tensors of the same shape, dtype
    and layout, is heard without compiling again. Another size of the rows is compiled for, another batch too."""

    def __init__(
        self,
        network: torch.nn.Module,
        backend: str | Callable[..., Any] = "inductor",
        mode: Literal["reduce-overhead"] | None = None,
    ) -> None:
        """``mode``: of torch.compile; reduce-overhead is with CUDA graphs."""
        self._network, self._backend, self._mode = network, backend, mode
        self._compiled: Callable[..., Any] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)

    def __call__(self, *args: Any, **options: Any) -> Any:
        """
        Raises:
            UserError: PyTorch cannot compile here.
        """
        if self._compiled is not None:
            return self._compiled(*args, **options)
        sys.stderr.write("raftdiff: model.compile: compiling the network, which may take minutes; then it is fast\n")
        began = time.monotonic()
        try:
            compiled: Callable[..., Any] = torch.compile(self._network, backend=self._backend, mode=self._mode)
            compiled = compiled if self._mode is None else _kept(compiled)
            made = compiled(*args, **options)
        except Exception as error:
            if "torch._" not in type(error).__module__ and "torch.compile" not in str(error):
                raise
            raise UserError(f"model.compile: PyTorch cannot compile here: {first_line(error)} {LACKING}") from error
        sys.stderr.write(f"raftdiff: model.compile: compiled in {time.monotonic() - began:.0f} s\n")
        self._compiled = compiled
        return made


def _kept(asked: Callable[..., Any]) -> Callable[..., Any]:
    """With CUDA graphs an answer lies where the next one will: it is copied."""

    def ask(*args: Any, **options: Any) -> Any:
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        return tree_map_only(torch.Tensor, torch.Tensor.clone, asked(*args, **options))

    return ask
