"""Where a training stands between its rounds: the weights, their optimizer, and how far both have come.

What a step's loss and gradients come to stays on their device, and is read about once a second: to read a number is to
wait for a GPU, which could have been given the next step meanwhile.
"""

import math
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Protocol, final, runtime_checkable

import torch
from torch import Tensor

from raftdiff.errors import UserError
from raftdiff.training import optimizer, processes
from raftdiff.training.trainable import Trainable, on_cpu
from raftdiff.types import State

READ_SECONDS = 1.0
"""How long figures may wait to be read, and gradients that are no numbers to be found out."""


@runtime_checkable
class Pace(Protocol):
    """What a fine-tuner's config says of its steps."""

    @property
    def learning_rate(self) -> float: ...
    @property
    def lr_schedule(self) -> str: ...
    @property
    def warmup_steps(self) -> int: ...
    @property
    def max_grad_norm(self) -> float | None: ...


@dataclass(slots=True)
class Tally:
    """Sums over the steps of a round, from which its figures are made."""

    items: int = 0
    """What was learnt from: pictures, items of a selection, pairs; as often as it was seen."""
    steps: int = 0
    evaluations: int = 0
    """Of the network: pictures, or tokens."""
    norm: float = 0.0
    """Of the gradients, before clipping."""
    rate: float = 0.0
    """The last learning rate."""
    sums: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Of whatever else is told, each over the items."""
    waiting: list[tuple[str, Tensor, float]] = field(default_factory=list)
    """Figures that are not read yet, with what they count for; the norms of gradients have no name."""
    read_at: float = field(default_factory=time.monotonic)

    def add(self, name: str, value: Tensor | float, times: float = 1.0) -> None:
        """Add ``value``, so many times, to the sum of this name; a tensor of one number when it is read."""
        if isinstance(value, Tensor):
            self.waiting.append((name, value.detach(), times))
        else:
            self.sums[name] += value * times

    def took(self, items: int, *, norm: Tensor | float, rate: float) -> None:
        """Count a step."""
        self.items, self.steps, self.rate = self.items + items, self.steps + 1, rate
        if isinstance(norm, Tensor):
            self.waiting.append(("", norm, 1.0))
        else:
            self.norm += norm

    def read(self) -> list[float]:
        """Read what waits, at once; returns the norms that did."""
        waiting, self.waiting, self.read_at = self.waiting, [], time.monotonic()
        values = torch.stack([value.double() for _, value, _ in waiting]).tolist() if waiting else []
        norms = []
        for (name, _, times), value in zip(waiting, values, strict=True):
            if name:
                self.sums[name] += value * times
            else:
                norms.append(value)
                self.norm += value
        return norms

    def gather(self) -> None:
        """Take in what the other processes that shared the steps have summed up, in the first of them."""
        told = processes.summed({**self.sums, "evaluations": float(self.evaluations)})
        self.evaluations = int(told.pop("evaluations"))
        self.sums.update(told)

    def figures(self) -> dict[str, float]:
        """Means over the items and over the steps."""
        return {
            **{name: value / max(1, self.items) for name, value in self.sums.items()},
            "steps": float(self.steps),
            "network_evaluations": float(self.evaluations),
            "grad_norm": self.norm / max(1, self.steps),
            "learning_rate": self.rate,
        }


@final
class Course:
    """One network's training, round after round.

    - `trainable`, `optimizer`: what is trained, and by what.
    - `rounds`, `steps`: how many are done; `total_rounds`: what the learning-rate schedule spans.
    """

    def __init__(self, pace: Pace, trainable: Trainable, by: torch.optim.Optimizer, *, total_rounds: int) -> None:
        self.pace, self.trainable, self.optimizer, self.total_rounds = pace, trainable, by, max(1, total_rounds)
        self.rounds = 0
        self.steps = 0

    def progress(self, through: float) -> float:
        """How far through all rounds, 0 to 1; ``through``: how far through this one."""
        return (self.rounds + through) / self.total_rounds

    def rate(self, progress: float) -> float:
        """The learning rate of the next step, so far through the whole training, 0 to 1."""
        pace = self.pace
        return optimizer.learning_rate(pace.learning_rate, pace.lr_schedule, progress, self.steps, pace.warmup_steps)

    def step(self, rate: float) -> Tensor:
        """Let the gradients act, if they are numbers. Returns their norm before clipping, unread."""
        norm = optimizer.clip(self.optimizer, self.pace.max_grad_norm)
        optimizer.act(self.optimizer, rate, norm)
        self.steps += 1
        return norm

    def read(self, tally: Tally) -> None:
        """Read what waits in ``tally``, of which the last step is the last that was made.

        Raises:
            UserError: the gradients of a step were no numbers; it was left out.
        """
        norms = tally.read()
        for step, norm in enumerate(norms, self.steps - len(norms) + 1):
            optimizer.check_norm(norm, self.optimizer, step=step)

    def look(self, tally: Tally) -> None:
        """``read``, where that is not just done. Processes that share steps, and wait for each other in every one, read
        each: so all find out in the same."""
        if processes.sharing().size > 1 or time.monotonic() - tally.read_at >= READ_SECONDS:
            self.read(tally)

    def finish(self, *, loss: float = 0.0) -> None:
        """Close a round, whose mean loss is ``loss``.

        Raises:
            UserError: the round made weights or a loss that nothing can be computed with.
        """
        if not math.isfinite(loss):
            raise UserError(f"finetuner: the loss of this round is {loss:g}, though its gradients are numbers.")
        optimizer.check_weights(self.trainable.live, self.optimizer)
        self.rounds += 1

    def state_dict(self) -> State:
        """Everything that the next round depends on, on the CPU."""
        return {
            self.trainable.stem: on_cpu(self.trainable.live),
            "optimizer": optimizer.state_dict(self.optimizer, self.trainable.parameters),
            "schedule": {"rounds": torch.tensor(self.rounds), "steps": torch.tensor(self.steps)},
        }

    def load_state_dict(self, state: State) -> None:
        """Continue from ``state``, to the bit on the CPU; the network comes to rest when the caller lets it.

        Raises:
            UserError: the state is of another model or another fine-tuner.
        """
        self.trainable.take(state)
        live, known = self.trainable.live, state.get("optimizer", {})
        optimizer.load_state_dict(self.optimizer, self.trainable.parameters, live, known)
        counts = state.get("schedule", {})
        self.rounds, self.steps = (int(counts[name]) if name in counts else 0 for name in ("rounds", "steps"))
