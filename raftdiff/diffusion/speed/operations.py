"""Arithmetic: how many operations some work asks for, and how many a second this machine does at its best."""

from collections.abc import Callable

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from raftdiff.training.devices import convolves_slowly


def operations(work: Callable[[], object]) -> int:
    """Multiplications and additions of the matrix products and convolutions that ``work`` asks for, backward passes
    included; element-wise operations are not counted. Attention is computed in its plain form meanwhile, in which
    every one of its products is seen."""
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        work()
    return int(counter.get_total_flops())


def product(device: torch.device, dtype: torch.dtype) -> tuple[Callable[[], object], int]:
    """A product of two large square matrices, and its operations: as near to the peak as a machine comes."""
    side = 8192 if device.type == "cuda" else 512 if convolves_slowly(dtype, device) else 2048
    one, other = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return lambda: one @ other, 2 * side**3
