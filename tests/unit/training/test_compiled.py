"""What is compiled is compiled once, whatever stands in the weights; where that cannot be, it is said."""

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from raftdiff.errors import UserError
from raftdiff.training.compiled import Compiled
from raftdiff.training.trainable import Trainable


class Small(nn.Module):
    name = "small"

    def __init__(self):
        super().__init__()
        self.layer, self.conv = nn.Linear(2, 2), nn.Conv2d(1, 1, 3)

    def forward(self, x):
        return self.layer(x)


@pytest.mark.parametrize(
    ("dtype", "merge_half", "expected"),
    [(torch.float32, False, 1), (torch.bfloat16, True, 1), (torch.bfloat16, False, 2)],
)
def test_weights_that_were_learnt_are_seen_and_nothing_is_compiled_again(capsys, dtype, merge_half, expected):
    counted = []

    def backend(graph, inputs):
        counted.append(graph)
        return graph.forward

    torch._dynamo.reset()
    network = inject_adapter_in_model(LoraConfig(r=1, target_modules=["layer"]), Small())
    found = Trainable("small", {"small": network}, "lora", dtype=dtype, merge_half=merge_half)
    compiled, rows = Compiled(network, backend), torch.ones(3, 2, dtype=dtype)
    assert compiled.name == "small"
    with torch.no_grad():
        first = compiled(rows)
        with found.base_weights():
            assert torch.equal(compiled(rows), first)  # a LoRA begins as a change of nothing
        graphs = len(counted)
        assert graphs == expected  # one more where a LoRA stands beside its layer
        for _ in range(2):
            found.wake(dtype)
            for weight in found.live.values():
                weight.add_(0.5)
            found.rest(None)
            assert torch.equal(compiled(rows), network(rows))
            with found.base_weights():
                assert torch.equal(compiled(rows), first)
        assert not torch.equal(compiled(rows), first)
    assert len(counted) == graphs
    said = capsys.readouterr().err
    assert said.count("compiling the network") == said.count("compiled in ") == 1


def test_with_cuda_graphs_an_answer_is_not_written_over_by_the_next():
    """As they do: the answers of one graph lie in one place."""
    modes, place = [], torch.empty(1, 2)

    def backend(graph, inputs, mode):
        modes.append(mode)
        return lambda *given: tuple(place.copy_(it) for it in graph(*given))

    torch._dynamo.reset()
    network = Small()
    compiled = Compiled(network, backend, mode="reduce-overhead")
    with torch.no_grad():
        first, second = compiled(torch.ones(1, 2)), compiled(torch.zeros(1, 2))
        assert torch.equal(first, network(torch.ones(1, 2)))
        assert torch.equal(second, network(torch.zeros(1, 2)))
    assert modes == ["reduce-overhead"]


def test_where_pytorch_cannot_compile_it_is_said_what_to_do():
    def broken(graph, inputs):
        raise RuntimeError("No working C++ compiler found")

    torch._dynamo.reset()
    with pytest.raises(UserError, match=r"^model.compile: .*No working C\+\+ compiler found\. .* model.compile=false"):
        Compiled(Small(), broken)(torch.ones(1, 2))


def test_what_else_goes_wrong_is_not_laid_to_the_compiler():
    torch._dynamo.reset()
    with pytest.raises(TypeError):
        Compiled(Small(), "eager")(torch.ones(1, 2), strange=1)
