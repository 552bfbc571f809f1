"""Figures and gradient norms that wait on their device until they are read."""

import pytest
import torch
from torch import nn

from raftdiff.errors import UserError
from raftdiff.training import course, optimizer
from raftdiff.training.course import Course, Tally
from raftdiff.training.trainable import Trainable


class Pace:
    learning_rate, lr_schedule, warmup_steps, max_grad_norm = 0.1, "constant", 0, 1.0


def training(kind="adamw"):
    trainable = Trainable("a model", {"net": nn.Linear(2, 1, bias=False)}, "full", dtype=torch.float32)
    adamw, parameters = kind == "adamw", trainable.parameters
    by = optimizer.adamw(parameters, 0.1, (0.9, 0.999), 0.0) if adamw else optimizer.rmsprop(parameters, 0.1, 0.0)
    trainable.wake(torch.float32)
    return Course(Pace(), trainable, by, total_rounds=1)


def steps(made, tally, gradients):
    for value in gradients:
        for parameter in made.trainable.parameters.values():
            parameter.grad = torch.full_like(parameter, value)
        tally.took(1, norm=made.step(0.1), rate=0.1)
        made.look(tally)


def test_a_step_whose_gradients_are_no_numbers_is_named_however_late_it_is_found(monkeypatch):
    monkeypatch.setattr(course, "READ_SECONDS", 1e9)
    made, tally = training(), Tally()
    steps(made, tally, [1.0])
    made.read(tally)
    steps(made, tally, [1.0, float("inf"), 1.0])
    with pytest.raises(UserError, match=r"the loss is no longer a number at step 3. Lower finetuner.learning_rate"):
        made.read(tally)


@pytest.mark.parametrize("kind", ["adamw", "rmsprop"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_gradients_that_are_no_numbers_do_not_act(kind, value):
    made, tally = training(kind), Tally()
    steps(made, tally, [1.0])
    before = {name: weight.clone() for name, weight in made.trainable.live.items()}
    state = optimizer.state_dict(made.optimizer, made.trainable.parameters)
    steps(made, tally, [value])
    assert all(torch.equal(made.trainable.live[name], weight) for name, weight in before.items())
    after = optimizer.state_dict(made.optimizer, made.trainable.parameters)
    assert all(torch.equal(after[name], kept) for name, kept in state.items())


def test_figures_are_read_when_they_have_waited_long_enough(monkeypatch):
    monkeypatch.setattr(course, "READ_SECONDS", 0.0)
    made, tally = training(), Tally()
    with pytest.raises(UserError, match="at step 2"):
        steps(made, tally, [1.0, float("nan"), 1.0])
    assert made.steps == 2


def test_sums_are_the_same_to_the_bit_whenever_they_are_read():
    values = torch.rand(9, generator=torch.Generator().manual_seed(0))
    straight, late, often = 0.0, Tally(), Tally()
    for value in values:
        straight += float(value) * 3
        for tally in (late, often):
            tally.add("loss", value, 3)
        assert often.read() == []
    assert late.read() == []
    assert straight == late.sums["loss"] == often.sums["loss"]
