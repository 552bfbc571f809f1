"""What the training scripts of the shipped models share: time as the budget, a schedule, an average, checkpoints."""

import argparse
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, final

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from raftdiff.training.devices import flush_denormals


def arguments(description: str, *, minutes: float) -> argparse.ArgumentParser:
    """The options that every script has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--minutes", type=float, default=minutes, help="how long to train (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--cache", type=Path, default=Path("build/embedded"), help="art and checkpoints (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "models", help="where the models go")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s")
    return parser


def prepare(seed: int) -> None:
    """Seeded, and a CPU kept off its slow path."""
    torch.manual_seed(seed)
    flush_denormals()


def steps(minutes: float, *, begun: float = 0.0, report_every: float = 30.0) -> Iterator[tuple[int, float]]:
    """(step, progress in 0..1) until the minutes are spent, of which ``begun`` already were; prints now and then."""
    start, told, index = time.monotonic() - 60 * begun, time.monotonic(), 0
    while (progress := (time.monotonic() - start) / (60 * minutes)) < 1:
        yield index, progress
        index += 1
        if time.monotonic() - told > report_every:
            told = time.monotonic()
            print(f"{progress:.0%} step {index}, {minutes * (1 - progress):.1f} min left", flush=True)


def rate(peak: float, progress: float, step: int, *, warmup: int = 200) -> float:
    """Linear warm-up over ``warmup`` steps, then half a cosine down to a hundredth of the peak."""
    return peak * min(1.0, (step + 1) / warmup) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def update(optimizer: torch.optim.Optimizer, loss: Tensor, learning_rate: float, weights: Iterable[Tensor]) -> None:
    """One step at this learning rate, gradients clipped to length 1."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(list(weights), 1.0)
    optimizer.step()


@final
class Average:
    """A moving average of the weights of some modules, which is what ships."""

    def __init__(self, modules: Mapping[str, nn.Module], decay: float) -> None:
        self._modules, self._decay, self.updates = modules, decay, 0
        self.weights = {name: tensor.detach().clone() for name, tensor in _named(modules).items()}

    @torch.no_grad()
    def update(self) -> None:
        self.updates += 1
        decay = min(self._decay, (1 + self.updates) / (10 + self.updates))
        live = _named(self._modules)
        floats = [name for name in live if live[name].is_floating_point()]
        torch._foreach_lerp_([self.weights[n] for n in floats], [live[n] for n in floats], 1 - decay)

    def copy_to(self, modules: Mapping[str, nn.Module]) -> None:
        for prefix, module in modules.items():
            cut = len(prefix) + 1
            module.load_state_dict({n[cut:]: t for n, t in self.weights.items() if n.startswith(f"{prefix}.")})


def _named(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": t for prefix, module in modules.items() for name, t in module.state_dict().items()}


def save_checkpoint(path: Path, modules: Mapping[str, nn.Module], average: Average, minutes: float) -> None:
    """Weights, their average and the minutes spent. The optimizer starts afresh on resume: its memory is short."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {f"live.{name}": tensor for name, tensor in _named(modules).items()}
    tensors |= {f"average.{name}": tensor for name, tensor in average.weights.items()}
    aside = path.with_suffix(".tmp")
    spent = {"minutes": str(minutes)}
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, aside, metadata=spent)
    aside.replace(path)


def load_checkpoint(path: Path, modules: Mapping[str, nn.Module], average: Average) -> float:
    """Take up a checkpoint where there is one; returns the minutes that went into it."""
    if not path.is_file():
        return 0.0
    from safetensors import safe_open

    tensors: dict[str, Any] = load_file(path)
    for prefix, module in modules.items():
        start = f"live.{prefix}."
        module.load_state_dict({n[len(start) :]: t for n, t in tensors.items() if n.startswith(start)})
    for name, tensor in average.weights.items():
        tensor.copy_(tensors[f"average.{name}"])
    with safe_open(path, framework="pt") as file:
        return float(file.metadata()["minutes"])


def half(module: nn.Module) -> nn.Module:
    """The module in float16 and contiguous, as it is stored."""
    return module.to(torch.float16).to(memory_format=torch.contiguous_format)
