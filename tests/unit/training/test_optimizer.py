"""The learning rate, who sees what when, the moving average, and AdamW's state as named tensors."""

import math
from collections import Counter

import pytest
import torch
from torch import nn

from raftdiff.errors import UserError
from raftdiff.training import optimizer


@pytest.mark.parametrize(
    ("kind", "progress", "expected"),
    [
        ("constant", 0.9, 1.0),
        ("linear", 0.25, 0.75),
        ("cosine", 0.5, 0.5),
        ("cosine", 1.0, 0.0),
        ("linear", 1.5, 0.0),
    ],
)
def test_learning_rate_closed_form(kind, progress, expected):
    assert optimizer.learning_rate(1.0, kind, progress, 1000, 10) == pytest.approx(expected)


def test_warmup_rises_over_its_steps():
    rates = [optimizer.learning_rate(2.0, "constant", 0.0, step, 4) for step in range(5)]
    assert rates == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])


def test_each_item_is_seen_evenly_and_no_more_than_allowed():
    plan = optimizer.exposure_plan(10, 1000, 4, 3.0, seed=1)
    seen = Counter(item for rows in plan for item in rows)
    assert set(seen.values()) == {3}
    assert len(seen) == 10
    first, second = [item for rows in plan for item in rows][:10], [item for rows in plan for item in rows][10:20]
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second


def test_steps_limit_what_is_seen():
    assert [len(rows) for rows in optimizer.exposure_plan(10, 2, 4, None, seed=1)] == [4, 4]
    assert optimizer.exposure_plan(0, 2, 4, None, seed=1) == []
    assert optimizer.exposure_plan(5, 0, 4, None, seed=1) == []


def test_half_an_exposure_shows_half_the_items():
    assert sum(len(rows) for rows in optimizer.exposure_plan(10, 100, 4, 0.5, seed=1)) == 5


def test_the_average_follows_and_forgets_its_start():
    shadow, live = {"w": torch.zeros(1)}, {"w": torch.ones(1)}
    optimizer.update_average(shadow, live, 0.9, 0)
    assert shadow["w"].item() == pytest.approx(0.9)  # the decay is held at 1/10 at first
    optimizer.update_average(shadow, live, 0.9, 10_000)
    assert shadow["w"].item() == pytest.approx(0.91)


def test_adamw_continues_to_the_bit():
    def run(adam, parameters, steps):
        for step in range(steps):
            for parameter in parameters.values():
                parameter.grad = torch.full_like(parameter, 0.1 * (step + 1))
            adam.step()

    def fresh():
        torch.manual_seed(0)
        parameters = {"a": nn.Parameter(torch.randn(3)), "b": nn.Parameter(torch.randn(2, 2))}
        return parameters, optimizer.adamw(parameters, 0.1, (0.9, 0.99), 0.01)

    one, adam = fresh()
    assert optimizer.state_dict(adam, one) == {}
    run(adam, one, 3)
    state = optimizer.state_dict(adam, one)
    assert set(state) == {f"{name}/{key}" for name in "ab" for key in ("step", "exp_avg", "exp_avg_sq")}
    other, twin = fresh()
    for name, parameter in other.items():
        parameter.data.copy_(one[name].data)
    optimizer.load_state_dict(twin, other, other, state)
    run(adam, one, 2)
    run(twin, other, 2)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_rmsprop_divides_by_the_root_of_the_mean_square(weight_decay):
    """v = 0.99 v + 0.01 g^2, w -= rate g / (sqrt(v) + 1e-8), with decay in the gradient; by hand for three steps."""
    parameters = {"a": nn.Parameter(torch.tensor([0.5]))}
    prop = optimizer.rmsprop(parameters, 0.1, weight_decay)
    weight, square = 0.5, 0.0
    for gradient in (0.3, -0.2, 0.7):
        parameters["a"].grad = torch.tensor([gradient])
        prop.step()
        whole = gradient + weight_decay * weight
        square = 0.99 * square + 0.01 * whole**2
        weight -= 0.1 * whole / (square**0.5 + 1e-8)
        assert parameters["a"].item() == pytest.approx(weight, abs=2e-6)


@pytest.mark.parametrize("kind", ["adamw", "rmsprop"])
def test_either_optimizer_continues_to_the_bit_and_starts_anew_without_a_state(kind):
    def make():
        torch.manual_seed(0)
        parameters = {"a.x": nn.Parameter(torch.randn(3)), "b": nn.Parameter(torch.randn(2, 2))}
        built = (
            optimizer.adamw(parameters, 0.1, (0.9, 0.99), 0.01)
            if kind == "adamw"
            else optimizer.rmsprop(parameters, 0.1, 0.01)
        )
        return parameters, built

    def run(parameters, built, steps):
        for step in range(steps):
            for parameter in parameters.values():
                parameter.grad = torch.full_like(parameter, 0.1 * (step + 1))
            built.step()

    one, first = make()
    run(one, first, 3)
    state = optimizer.state_dict(first, one)
    quantities = ("step", "square_avg") if kind == "rmsprop" else ("step", "exp_avg", "exp_avg_sq")
    assert set(state) == {f"{name}/{key}" for name in ("a.x", "b") for key in quantities}
    other, second = make()
    run(other, second, 1)  # a state of its own, which is to be forgotten
    for name, parameter in other.items():
        parameter.data.copy_(one[name].data)
    optimizer.load_state_dict(second, other, other, state)
    run(one, first, 2)
    run(other, second, 2)
    assert all(torch.equal(one[name], other[name]) for name in one)
    optimizer.load_state_dict(second, other, other, {})
    assert optimizer.state_dict(second, other) == {}


@pytest.mark.parametrize("value", [1e20, -1e20, math.inf, math.nan])
def test_weights_that_nothing_can_be_computed_with_are_told_with_the_part_that_made_them(value):
    """A single step may make them, after a gradient that was a number."""
    weights = {"w": nn.Parameter(torch.tensor([1.0, value])), "none": nn.Parameter(torch.empty(0))}
    by = optimizer.adamw(weights, 1e20, (0.9, 0.999), 0.0)
    told = r"finetuner.critic: the steps of this round made weights of .*'w'.* Lower finetuner.critic.learning_rate"
    with pytest.raises(UserError, match=told):
        optimizer.check_weights(weights, by, where="finetuner.critic")
    optimizer.check_weights({"w": torch.tensor([1e4])}, by)
