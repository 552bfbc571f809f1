"""A network split over processes: what does not go with it is told. That it computes the same is shown with two
processes, in ``tests/e2e/test_processes.py``."""

import re
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from raftdiff.cli.llm import pipeline
from raftdiff.diffusion.learning.groups import passes
from raftdiff.errors import UserError
from raftdiff.llm import assembly
from raftdiff.training import processes, sharded

NETWORK = nn.Linear(2, 2)


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> None:
    """This is the second of two processes, and NETWORK is split over both."""
    monkeypatch.setattr(processes._here, "world", processes.World(1, 2))
    monkeypatch.setattr(sharded._here, "network", NETWORK)


@pytest.mark.usefixtures("beside")
def test_what_does_not_go_with_it_is_told(tmp_path) -> None:
    cpu, lower, wide = torch.device("cpu"), torch.bfloat16, torch.float32
    with pytest.raises(UserError, match="model.sharded: one network can be split .* Leave sharded out of the other"):
        sharded.split(nn.Linear(2, 2), [], cpu)
    with pytest.raises(UserError, match="finetuner.adapter: full trains every weight, and model.sharded splits"):
        sharded.demand_fit(NETWORK, "full", wide, wide)
    with pytest.raises(UserError, match="finetuner.precision: float32 holds all weights in float32"):
        sharded.demand_fit(NETWORK, "lora", lower, wide)
    sharded.demand_fit(NETWORK, "lora", wide, lower)
    sharded.demand_fit(nn.Linear(2, 2), "full", lower, wide)
    config = SimpleNamespace(loop=SimpleNamespace(rounds=1, seed=0), finetuner=None)
    with pytest.raises(UserError, match="finetuner.type: ppo asks a critic beside the policy"):
        assembly._finetuner(config, SimpleNamespace(model=NETWORK), None)
    recipe = pipeline.TextRecipe.model_construct(model=SimpleNamespace(sharded=True))
    stage = SimpleNamespace(id="sft", path=tmp_path, asked_for_model=True, recipe=lambda: recipe)
    pipeline.Run.at, at = lambda *_: None, pipeline.Run.at
    try:
        with pytest.raises(UserError, match="^model.sharded leaves no process with a whole model"):
            pipeline._tuned(stage)
    finally:
        pipeline.Run.at = at


def test_a_network_without_blocks_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharded._here, "network", None)
    with pytest.raises(UserError, match="model.sharded: this network has no blocks that could be split"):
        sharded.split(NETWORK, [], torch.device("cpu"))


def test_a_launcher_that_shards_wants_the_recipe_to_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert not sharded.wanted(False), "a single process holds all"
    assert not sharded.wanted(True)
    monkeypatch.setattr(processes._here, "world", processes.World(0, 2))
    with sharded.assembling():
        assert sharded.wanted(True)
        with pytest.raises(
            UserError, match=re.escape("(--use_fsdp, ACCELERATE_USE_FSDP), and the recipe was not: set")
        ):
            sharded.wanted(False)
        monkeypatch.setattr(sharded._here, "network", NETWORK)
        assert not sharded.wanted(False), "a teacher is whole"
    assert not sharded.wanted(True), "other commands load in one process"


def test_a_pass_that_asks_blocks_in_another_order_is_told_instead_of_waited_for() -> None:
    order = sharded.Order([1, 2, 3])
    with torch.no_grad():
        for place in (0, 1, 2, 0):
            order.asked(place)
        with pytest.raises(
            UserError, match="model.sharded: block 3 of the network was asked where block 2 was to come"
        ):
            order.asked(2)
    order.asked(2)  # with gradients all processes do the same


@pytest.mark.usefixtures("beside")
def test_whoever_has_fewer_items_of_a_step_makes_as_many_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    def taken() -> list[tuple[list[int], bool]]:
        return [(list(items), counts) for items, counts in passes(7, 2)]

    assert taken() == [([0, 1], True), ([2, 3], True), ([4, 5], True), ([6], True)], "alone"
    with processes.together():
        assert taken() == [([1, 3], True), ([5], True)]
        assert [len(list(passes(items, 1))) for items in (1, 2, 3)] == [1, 1, 2]
        assert not next(iter(passes(1, 1)))[1]
        monkeypatch.setattr(sharded._here, "network", None)
        assert list(passes(1, 1)) == []
