"""What is trained, how it rests, that its base comes back, and what merging holds."""

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from raftdiff.diffusion.memory.counting import peak
from raftdiff.llm.model import tiny
from raftdiff.llm.model.loading import LMConfig, load
from raftdiff.training.trainable import Trainable, add_lora, merged
from raftdiff.training.weights import rounded_evenly


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
        with found.base_weights():
            assert torch.equal(head.weight, base)
        assert torch.equal(head.weight, base), "who leaves the inner one is still within"
        torch.testing.assert_close(model(ids).logits, said, rtol=0, atol=0)
    assert torch.equal(head.weight, moved)
    torch.testing.assert_close(model(ids).logits, after, rtol=0, atol=0)
    found.wake(torch.float32)
    found.enable(False)
    assert torch.equal(head.weight, base)
    found.enable(True)
    assert torch.equal(head.weight, moved)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_merging_copies_no_more_than_the_lora_changes_and_one_weight_in_float32(folder, dtype):
    found = trainable(folder, "lora", dtype)
    move(found)
    model, made = found.modules["model"], []
    before = {name: weight.detach().clone() for name, weight in model.state_dict().items()}
    most = peak(lambda: made.append(merged(model)), held=[model])
    whole, own = made[0].state_dict(), model.state_dict()
    layers = [name.removesuffix(".base_layer.weight") for name in own if name.endswith("q_proj.base_layer.weight")]
    changed = [whole[f"{layer}.weight"] for layer in layers]
    if dtype == "float32":  # it rests merged
        assert most == 0
    else:
        largest = max(weight.numel() for weight in changed)
        halves = sum(2 * 4 * own[f"{layer}.lora_{half}.default.weight"].numel() for layer in layers for half in "AB")
        assert most <= sum(2 * weight.numel() for weight in changed) + 10 * 4 * largest + halves
        for layer in layers:
            up, down = (own[f"{layer}.lora_{half}.default.weight"].float() for half in "BA")
            total = own[f"{layer}.base_layer.weight"].float() + up @ down
            assert torch.equal(whole[f"{layer}.weight"], rounded_evenly(total, torch.bfloat16))
    others = whole.keys() - {f"{layer}.weight" for layer in layers}
    assert others
    assert all(whole[name].data_ptr() == own[name].data_ptr() for name in others if name in own)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_a_small_lora_is_merged_whole_and_the_base_comes_back_to_the_bit(dtype):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(128, 128)).to(dtype)
    own = network[0].weight.detach().clone()
    network = inject_adapter_in_model(LoraConfig(r=2, lora_alpha=2, target_modules=["0"]), network)
    found = Trainable("small", {"small": network}, "lora", dtype=dtype, merge_half=True)
    layer = network[0].get_base_layer()
    assert torch.equal(layer.weight, own), "nothing was learnt yet"
    found.live["small.0.lora_B.default.weight"].normal_()
    up, down = (found.live[f"small.0.lora_{half}.default.weight"] for half in "BA")
    up *= 0.05 * torch.finfo(dtype).eps * own.float().norm() / (up @ down).norm()  # of what two numbers lie apart
    for _ in range(2):
        found.rest(None)
        moved, wanted = layer.weight.float() - own.float(), up @ down
        assert float((moved * wanted).sum() / wanted.square().sum()) == pytest.approx(1.0, abs=0.15)
        nearest = (own.float() + wanted).to(dtype).float() - own.float()
        assert float((nearest * wanted).sum() / wanted.square().sum()) < 0.5, "as it would have been lost"
        with found.base_weights():
            assert torch.equal(layer.weight, own)
        assert torch.equal(layer.weight.float() - own.float(), moved)
        found.wake(torch.float32)
        assert torch.equal(layer.weight, own.float())


def test_what_a_cpu_holds_for_nothing_is_rounded_to_nothing():
    tiny = torch.tensor([[3e-37, 0.0, -4e-39, 1e-40, 1.0]])
    torch.set_flush_denormal(True)  # as raftdiff has a CPU do, for speed
    try:
        found = rounded_evenly(tiny, torch.bfloat16).float()
    finally:
        torch.set_flush_denormal(False)
    torch.testing.assert_close(found, tiny, rtol=0, atol=2e-38)


def test_numbers_of_half_precision_stay_and_others_go_up_as_often_as_they_lie_above():
    for dtype in (torch.bfloat16, torch.float16):
        weight = (0.03 * torch.randn(64, 96)).to(dtype)
        weight[0] = 2.0 ** -torch.arange(96)  # those too small for float16 are zeros
        weight[1] = -weight[0]
        assert torch.equal(rounded_evenly(weight.float(), dtype), weight)
        above = torch.nextafter(weight, torch.full_like(weight, 9.0))
        for share in (0.1, 0.5):
            rounded = rounded_evenly(torch.lerp(weight.float(), above.float(), share), dtype)
            assert bool(((rounded == weight) | (rounded == above)).all())
            assert float((rounded == above).float().mean()) == pytest.approx(share, abs=0.01)
