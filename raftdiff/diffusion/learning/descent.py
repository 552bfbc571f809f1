"""How gradients act on the weights: scaled where they are float16, added up over processes, clipped, averaged."""

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor

from raftdiff.training import optimizer, processes
from raftdiff.training.course import Course
from raftdiff.training.trainable import on_cpu
from raftdiff.types import State

SCALING = ("scale", "_growth_tracker")
"""What a float16 gradient scaler's next step depends on."""


@final
class Descent:
    """The optimizer's steps of one training, which ``course`` counts.

    ``average`` holds a moving average of the weights where ``ema``, its decay, is given.
    """

    def __init__(self, course: Course, device: torch.device, precision: torch.dtype, ema: float | None) -> None:
        self.course, self.ema = course, ema
        live = course.trainable.live
        self.average = {name: weight.clone() for name, weight in live.items()} if ema is not None else None
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == torch.float16)

    @property
    def policy(self) -> Mapping[str, Tensor]:
        """The weights that sample: the average, or the live ones."""
        return self.course.trainable.live if self.average is None else self.average

    def backward(self, loss: Tensor) -> None:
        torch.autograd.backward(self.scaler.scale(loss))

    def step(self, rate: float) -> Tensor:
        """Let the gradients act, if they are numbers. Returns their norm before clipping, unread; 0 of a step that is
        left out because float16 overflowed in it."""
        course, by = self.course, self.course.optimizer
        processes.add_up(course.trainable.parameters.values())
        self.scaler.unscale_(by)
        norm = optimizer.clip(by, course.pace.max_grad_norm)
        if self.scaler.is_enabled():
            for group in by.param_groups:
                group["lr"] = rate
            self.scaler.step(by)
            self.scaler.update()
            by.zero_grad(set_to_none=True)
        else:
            optimizer.act(by, rate, norm)
        if self.average is not None and self.ema is not None:
            optimizer.update_average(self.average, course.trainable.live, self.ema, course.steps)
        course.steps += 1
        return norm.nan_to_num(0.0, 0.0, 0.0) if self.scaler.is_enabled() else norm

    def state_dict(self) -> State:
        """Everything that the next round depends on, on the CPU."""
        state, scaling = self.course.state_dict(), self.scaler.state_dict()
        scales = {name: torch.tensor(scaling[name]) for name in SCALING if self.scaler.is_enabled()}
        average = {"ema": on_cpu(self.average)} if self.average is not None else {}
        return {**state, "schedule": {**state["schedule"], **scales}, **average}

    def load_state_dict(self, state: State) -> None:
        """Continue from ``state``, to the bit on the CPU.

        Raises:
            UserError: the state is of another model or another fine-tuner.
        """
        self.course.load_state_dict(state)
        for name, shadow in (self.average or {}).items():
            shadow.copy_(state.get("ema", state[self.course.trainable.stem])[name])
        counts, scaler = state.get("schedule", {}), self.scaler
        if "scale" in counts and scaler.is_enabled():
            scaler.load_state_dict({**scaler.state_dict(), **{name: counts[name].item() for name in SCALING}})
