"""Where a model lies and in which precision: words of a recipe -> torch's own."""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, final

import torch

from raftdiff.errors import Need, UserError
from raftdiff.training import processes

DType = Literal["float32", "bfloat16", "float16"]
DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
ByMachine = Literal["auto"]
"""In place of a precision: bfloat16 where the device computes in it, else float32."""


def find_dtype(name: DType | ByMachine, device: torch.device) -> torch.dtype:
    """A recipe's precision as torch's. "auto" asks a CPU for x86's instructions for bfloat16: one without them takes
    several times as long in it as in float32. Other CPUs have float32."""
    if name != "auto":
        return DTYPES[name]
    if device.type == "cuda":
        quick = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        quick = torch.cpu._is_avx512_bf16_supported()  # torch has no public word for it
    return torch.bfloat16 if quick else torch.float32


def convolves_slowly(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether convolutions had better be held channels-last: those in bfloat16 on a CPU for which oneDNN has none.
    PyTorch's own routine took fourteen times as long in the usual order (docs/performance.md)."""
    return device.type == "cpu" and dtype == torch.bfloat16 and not onednn_takes_bfloat16()


def onednn_takes_bfloat16() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # torch has no public word for it


def find_device(name: str) -> torch.device:
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N`` as a device of this machine.

    Raises:
        UserError: another word, or a device that this machine does not have.
    """
    kind, _, number = name.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (number and not (kind == "cuda" and number.isdigit())):
        raise UserError(f"model.device: '{name}' is not a device. Known: auto, cpu, cuda, cuda:0, cuda:1, ...")
    if kind == "cpu" or (kind == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError(f"model.device: '{name}' asks for a GPU, and PyTorch sees none here; use device: auto.")
    # accelerate launch starts one process per GPU
    index = int(number) if number else processes.here().rank % torch.cuda.device_count()
    if index >= torch.cuda.device_count():
        raise UserError(f"model.device: there is no '{name}'; this machine has {torch.cuda.device_count()} GPU(s).")
    return torch.device("cuda", index)


def now(device: torch.device) -> float:
    """The clock, when what was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def device_needs(device: str, dtype: str, key: str = "device") -> Iterator[Need]:
    """What a recipe asks of this machine that it has not; ``key`` of the model is where it names the device."""
    try:
        found = find_device(device)
    except UserError as error:
        yield Need(key, str(error).removeprefix("model.device: "))
        return
    if dtype == "float16" and found.type == "cpu":
        yield Need("dtype", "float16 needs a GPU; use bfloat16 or float32 on the CPU.")


@final
class Idle:
    """Networks that wait in main memory, and are fetched to ``device`` while somebody asks them."""

    def __init__(self, modules: Iterable[torch.nn.Module], device: torch.device) -> None:
        self._modules, self._device = list(modules), device

    def fetches(self, *modules: torch.nn.Module) -> bool:
        """Whether any of these waits."""
        return any(module is one for module in modules for one in self._modules)

    @contextmanager
    def fetched(self, *modules: torch.nn.Module) -> Iterator[None]:
        """Within, those of ``modules`` that wait are on the device."""
        waiting = [module for module in modules if self.fetches(module)]
        for module in waiting:
            module.to(self._device)
        try:
            yield
        finally:
            for module in waiting:
                module.to("cpu")


@final
class InTurn:
    """Of several parts with networks only the one that is asked lies on ``device``; the others wait in main memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    @contextmanager
    def __call__(self, part: object) -> Iterator[None]:
        """Within, the networks of ``part`` are on the device."""
        try:
            self._move(part, self._device)
            yield
        finally:
            self.rest(part)

    def rest(self, part: object) -> None:
        """Let the networks of ``part`` wait."""
        self._move(part, torch.device("cpu"))

    def _move(self, part: object, device: torch.device) -> None:
        for module in networks(part):
            module.to(device)


def networks(part: object, depth: int = 3) -> list[torch.nn.Module]:
    """The networks that an object holds, itself or by what it holds."""
    if isinstance(part, torch.nn.Module):
        return [part]
    if depth == 0 or isinstance(part, str | bytes | int | float | torch.Tensor | type | None):
        return []
    if isinstance(part, Mapping):
        inside: Iterable[object] = part.values()
    elif isinstance(part, list | tuple):
        inside = part
    else:
        slots = [
            getattr(part, name)
            for kind in type(part).__mro__
            for name in getattr(kind, "__slots__", ())
            if hasattr(part, name)
        ]
        inside = [*getattr(part, "__dict__", {}).values(), *slots]
    found = [module for one in inside for module in networks(one, depth - 1)]
    return list({id(module): module for module in found}.values())


def flush_denormals() -> None:
    """Keep a CPU off its slow path for denormal numbers, which optimizers are full of."""
    torch.set_flush_denormal(True)
