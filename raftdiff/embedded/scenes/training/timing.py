"""What the training scripts of scenes share: their options, a clock that ends them on time, and how they learn."""

import argparse
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import final

import torch
from torch import Tensor, nn

from raftdiff.embedded.scenes.networks import finished
from raftdiff.embedded.training import Average, arguments, update


def options(description: str | None, *, minutes: float, batch: int, rate: float) -> argparse.ArgumentParser:
    """Those of every script, and: a moment to stop at, batch, rate, and a share of the device."""
    parser = arguments((description or "").splitlines()[0], minutes=minutes)
    parser.set_defaults(out=Path("build/scenes"))
    parser.add_argument("--until", type=float, help="stop at this Unix time, whatever --minutes says")
    parser.add_argument("--batch", type=int, default=batch, help="pictures a step (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=rate, help="peak learning rate (default: %(default)s)")
    parser.add_argument("--duty", type=float, default=1.0, help="share of the time to work in (default: %(default)s)")
    parser.add_argument("--most", type=int, help="stop after so many steps, if the time is not over before")
    parser.add_argument("--attached", action="store_true", help="stop when the process that began this one has ended")
    return parser


@final
class Clock:
    """Counts steps until the time is over."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.began = time.time()
        self._given = given
        self._parent = os.getppid()

    @property
    def tell_every(self) -> int:
        """Steps between two lines of the log."""
        return 100 if self._given.device == "cuda" else 20

    @property
    def until(self) -> float:
        return float(self._given.until or self.began + 60 * self._given.minutes)

    def spent(self) -> float:
        """Seconds."""
        return time.time() - self.began

    def restart(self) -> None:
        """Training begins only now; its end stays, if it was given as a moment."""
        self.began = time.time()

    def wait_for(self, path: Path) -> None:
        """Until another training has finished this file.

        Raises:
            SystemExit: the time is over.
        """
        while not finished(path):
            self.check()
            if time.time() > self.until:
                raise SystemExit(f"no {path.name} was finished in time")
            time.sleep(0.5)

    def check(self) -> None:
        """End this process if it is attached to one that has ended."""
        if self._given.attached and os.getppid() != self._parent:
            raise SystemExit("the process that began this one has ended")

    def steps(self) -> Iterator[tuple[int, float]]:
        """(step, progress in 0..1) until the time is over, at rest between steps for the share that ``duty`` leaves."""
        step, cuda = 0, self._given.device == "cuda"
        while (now := time.time()) < self.until and (self._given.most is None or step < self._given.most):
            yield step, (now - self.began) / (self.until - self.began)
            step += 1
            if step % 10 == 0:
                self.check()
            if self._given.duty < 1:
                if cuda:
                    torch.cuda.synchronize()
                time.sleep(min(0.5, (time.time() - now) * (1 / self._given.duty - 1)))
            elif cuda and step % 20 == 0:
                torch.cuda.synchronize()  # or the clock would run ahead of the device


@final
class Guard:
    """Takes a training whose loss is no number any more back to where it was well."""

    def __init__(self, modules: Mapping[str, nn.Module], average: Average) -> None:
        self._modules, self._average = modules, average
        self._well = _copy(average.weights)

    def well(self, value: float) -> bool:
        """Whether ``value`` is a number; if not, weights and average are those of the last time that it was one."""
        if math.isfinite(value):
            self._well = _copy(self._average.weights)
            return True
        for name, tensor in self._well.items():
            self._average.weights[name].copy_(tensor)
        self._average.copy_to(self._modules)
        return False


def fall(progress: float, step: int, *, warmup: int) -> float:
    """Share of the peak rate: linear warm-up, then half a cosine to zero."""
    return min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


Begin = Callable[[Sequence[nn.Parameter], float, float, str], torch.optim.Optimizer]
"""Makes an optimizer of weights, the peak of its rate, its weight decay, and the device."""


def adamw(weights: Sequence[nn.Parameter], peak: float, weight_decay: float, device: str) -> torch.optim.Optimizer:
    """AdamW, on a GPU as one kernel."""
    return torch.optim.AdamW(list(weights), peak, betas=(0.9, 0.99), weight_decay=weight_decay, fused=device == "cuda")


@final
class Course:
    """How some modules learn: at a rate that rises, falls, and is halved where the loss is no number any more; and the
    average of their weights, which is what ships."""

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        weights: Iterable[nn.Parameter],
        clock: Clock,
        *,
        peak: float,
        weight_decay: float,
        averaged: float,
        warmup: int,
        device: str,
        begin: Begin = adamw,
    ) -> None:
        """``weights`` are those that learn; ``averaged`` is the share of the average that a step keeps, ``warmup``
        counts steps."""
        self.average = Average(modules, decay=averaged)
        self._guard = Guard(modules, self.average)
        self._weights, self._clock, self._peak, self._warmup = list(weights), clock, peak, warmup
        self._begin, self._weight_decay, self._device = begin, weight_decay, device
        self._optimizer = self._begun()
        self._saved = time.time()
        self._step, self._progress = 0, 0.0

    def steps(self) -> Iterator[int]:
        """Until the clock says stop."""
        for step, progress in self._clock.steps():
            self._step, self._progress = step, progress
            yield step

    def learn(self, loss: Tensor) -> None:
        """One step; what bounds the weights comes between it and ``average.update``."""
        rate = self._peak * fall(self._progress, self._step, warmup=self._warmup)
        update(self._optimizer, loss, rate, self._weights)

    @property
    def tells(self) -> bool:
        """Whether it is time for a line in the log."""
        return self._step % self._clock.tell_every == 0

    def tell(self, name: str, loss: Tensor, more: str = "") -> bool:
        """A line in the log; False where the modules were taken back to when the loss last was a number."""
        value = loss.item()
        print(f"{name}: step {self._step}, loss {value:.4f}{more}, {self._clock.spent():.0f} s", flush=True)
        if self._guard.well(value):
            return True
        self._peak /= 2
        self._optimizer = self._begun()
        return False

    def saves(self, seconds: float) -> bool:
        """Whether so long has passed since it last was time to save."""
        if time.time() - self._saved <= seconds:
            return False
        self._saved = time.time()
        return True

    def _begun(self) -> torch.optim.Optimizer:
        return self._begin(self._weights, self._peak, self._weight_decay, self._device)


def _copy(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in weights.items()}
