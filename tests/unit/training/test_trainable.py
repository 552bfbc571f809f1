"""A module that is trained entirely beside a LoRA: what is trained, how it rests, and that its base comes back."""

import pytest
import torch
from torch import nn

from raftdiff.llm.model import tiny
from raftdiff.llm.model.loading import LMConfig, load
from raftdiff.training.trainable import Trainable, add_lora


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("lm") / "tiny", ("the", "film"))


def trainable(folder, adapter, dtype="float32"):
    lm = load(LMConfig(base=str(folder), device="cpu", dtype=dtype), str)
    if adapter == "lora":
        add_lora(lm.model, 2, 2.0, ("q_proj",), 0)
    head = nn.Linear(32, 1)
    return Trainable("tiny", {"model": lm.model, "head": head}, adapter, dtype=lm.dtype, whole=("head",))


def move(found):
    for weight in found.live.values():
        weight.add_(torch.arange(weight.numel()).view(weight.shape) * 1e-4 + 0.01)
    found.rest(None)


def test_a_whole_module_is_trained_beside_the_lora_and_nothing_else_is(folder):
    names = set(trainable(folder, "lora").parameters)
    assert {"head.weight", "head.bias"} < names
    assert all("lora_" in name for name in names - {"head.weight", "head.bias"})
    assert trainable(folder, "lora").count() == sum(p.numel() for p in trainable(folder, "lora").live.values())


def test_with_all_weights_a_whole_module_is_one_of_them(folder):
    names = set(trainable(folder, "full").parameters)
    assert {"head.weight", "head.bias", "model.model.norm.weight"} < names


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_a_whole_module_rests_in_float32_whatever_the_model_does(folder, adapter):
    found = trainable(folder, adapter, "bfloat16")
    move(found)
    head, model = found.modules["head"], found.modules["model"]
    assert head.weight.dtype == torch.float32
    torch.testing.assert_close(head.weight.data, found.live["head.weight"], rtol=0, atol=0)
    assert model.model.norm.weight.dtype == torch.bfloat16
    found.wake(torch.bfloat16)
    assert head.weight.requires_grad
    assert head.weight.data_ptr() == found.live["head.weight"].data_ptr()


@pytest.mark.parametrize("adapter", ["lora", "full"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_base_of_a_whole_module_comes_back_and_goes_again(folder, adapter, dtype):
    found = trainable(folder, adapter, dtype)
    head, model = found.modules["head"], found.modules["model"]
    ids = torch.tensor([[1, 4, 5]])
    base, said = head.weight.detach().clone(), model(ids).logits
    move(found)
    moved, after = head.weight.detach().clone(), model(ids).logits
    assert not torch.equal(base, moved)
    assert not torch.equal(said, after)
    with found.base_weights():
        assert torch.equal(head.weight, base)
        torch.testing.assert_close(model(ids).logits, said, rtol=0, atol=0)
    assert torch.equal(head.weight, moved)
    torch.testing.assert_close(model(ids).logits, after, rtol=0, atol=0)
    found.wake(torch.float32)
    found.enable(False)
    assert torch.equal(head.weight, base)
    found.enable(True)
    assert torch.equal(head.weight, moved)
