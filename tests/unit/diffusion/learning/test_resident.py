"""What a round learns from lies on the device while there is room."""

import pytest
import torch

from raftdiff.diffusion.learning.resident import Resident
from raftdiff.diffusion.models.loading import ModelConfig, load

ELSEWHERE = torch.device("meta")
HELD = [torch.zeros(3), torch.zeros(2, 2)]
"""28 bytes."""


@pytest.mark.parametrize(("most", "there"), [(28, "meta"), (27, "cpu")])
def test_pictures_go_to_the_device_all_or_none(most, there):
    assert {one.device.type for one in Resident(ELSEWHERE, most).tensors(HELD)} == {there}


def test_what_came_first_leaves_less_room():
    near = Resident(ELSEWHERE, 40)
    near.tensors(HELD)
    assert {one.device.type for one in near.tensors(HELD)} == {"cpu"}


@pytest.mark.parametrize("short", [0, 1])
def test_texts_are_asked_for_once_a_round_or_each_time_where_they_do_not_fit(models, monkeypatch, short):
    prompts = load(ModelConfig(base=str(models["sd15"]))).prompts
    texts = ["a cat", "", "a dog"]
    said = prompts(texts)
    near = Resident(said.device, said.nbytes - short)
    near.take(prompts, [*texts, "a cat"])
    asked = []
    monkeypatch.setattr(type(prompts), "__call__", lambda self, texts: (asked.append(texts), said[:2])[1])
    found = near.texts(prompts, texts[:2])
    assert torch.equal(found.tokens, said.tokens[:2])
    assert asked == [texts[:2]] * short
