"""Other ways to hold the network: which there are, and that a copy draws the same while the model stays as it is."""

import gc
import weakref
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from raftdiff.diffusion.models.loading import ModelConfig, load
from raftdiff.diffusion.probe import drawing
from raftdiff.diffusion.sampler import DiffusionSamplerConfig
from raftdiff.diffusion.speed import holding
from raftdiff.diffusion.speed.ways import AS_IT_IS, otherwise
from raftdiff.training import devices
from raftdiff.training.compiled import Compiled
from raftdiff.training.devices import DTYPES

LAID_OUT = {"channels_last": True}


@pytest.fixture(scope="module")
def config(models) -> ModelConfig:
    return ModelConfig(base=str(models["sd15"]), device="cpu")


def test_what_is_tried_is_what_the_recipe_does_not_say(config, monkeypatch) -> None:
    plain = load(config)

    def tried(compiled: bool = False, **changed):
        parts = replace(plain, dtype=DTYPES[changed.get("dtype", "float32")])
        return list(holding.changes(config.model_copy(update=changed), parts, compiled=compiled))

    monkeypatch.setattr(holding, "find_dtype", lambda name, device: torch.float32)
    monkeypatch.setattr(devices, "onednn_takes_bfloat16", lambda: False)
    assert tried() == [LAID_OUT]
    assert tried(dtype="bfloat16") == []
    assert tried(channels_last=True) == [{"channels_last": False}]
    assert tried(compiled=True) == [LAID_OUT, {"compile": True}, {"compile": True, **LAID_OUT}]
    assert tried(compiled=True, compile=True) == [{"compile": False}]
    assert tried(offload="blocks") == tried(sharded=True) == []
    monkeypatch.setattr(holding, "find_dtype", lambda name, device: torch.bfloat16)
    monkeypatch.setattr(devices, "onednn_takes_bfloat16", lambda: True)
    assert tried() == [LAID_OUT, {"dtype": "bfloat16"}, {"dtype": "bfloat16", **LAID_OUT}]
    assert tried(dtype="bfloat16") == [LAID_OUT]


def test_a_network_without_convolutions_has_no_other_memory_format(models, monkeypatch) -> None:
    monkeypatch.setattr(holding, "find_dtype", lambda name, device: torch.float32)
    model = ModelConfig(base=str(models["flux_dev"]), device="cpu")
    assert list(holding.changes(model, load(model), compiled=True)) == [{"compile": True}]


def test_a_copy_draws_the_same_and_the_model_stays_as_it_was(config) -> None:
    parts = load(config)
    sampler = DiffusionSamplerConfig(steps=2, guidance=3.0).build(parts)
    draw, _, _ = drawing(sampler, 2, sampler.sizes[0])
    before, plain = {name: it.clone() for name, it in parts.denoiser.state_dict().items()}, draw()
    other = holding.held(parts, {"dtype": "float32", **LAID_OUT})
    weight = next(it for it in other.denoiser.parameters() if it.dim() == 4 and min(it.shape) > 1)
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()
    again, _, _ = drawing(sampler.config.build(other), 2, sampler.sizes[0])
    torch.testing.assert_close(again(), plain, rtol=0, atol=1e-4)
    half = holding.held(parts, {"dtype": "bfloat16"})
    assert (half.dtype, half.denoiser.dtype) == (torch.bfloat16, torch.bfloat16)
    for name, it in parts.denoiser.state_dict().items():
        assert torch.equal(it, before[name])
        assert it.is_contiguous(), name
    torch.testing.assert_close(draw(), plain, rtol=0, atol=0)


def test_no_copy_of_the_network_outlives_its_call(config, monkeypatch) -> None:
    parts, made, held = load(config), [], holding.held
    sampler = DiffusionSamplerConfig(steps=2, guidance=1.0, batch_size=1).build(parts)

    def watched(parts, change):
        other = held(parts, {name: value for name, value in change.items() if name != "compile"})
        made.append(weakref.ref(other.denoiser))
        return other

    monkeypatch.setattr(holding, "held", watched)
    monkeypatch.setattr(holding, "find_dtype", lambda name, device: torch.float32)
    assembly = SimpleNamespace(model=parts, sampler=sampler, recipe=SimpleNamespace(model=config))
    ways = otherwise(assembly, compiled=True)
    names = ["model.channels_last=true", "model.compile=true", "model.compile=true model.channels_last=true"]
    assert [way.name for way in ways] == [AS_IT_IS, *names]
    assert all(way.call().seconds > 0 for way in ways)
    gc.collect()
    assert [it() for it in made] == [None] * 3
    assembly.recipe.model = config.model_copy(update={"sharded": True})
    assert otherwise(assembly, compiled=True) == []


def test_a_copy_may_be_compiled(config) -> None:
    assert isinstance(holding.held(load(config), {"compile": True}).network, Compiled)
