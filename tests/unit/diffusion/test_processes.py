"""Two processes, as under accelerate launch, draw and learn what one does."""

import socket

import pytest
import torch
from safetensors.torch import load_file, save_file

from raftdiff.diffusion.learning.finetuner import DiffusionFineTunerConfig
from raftdiff.diffusion.models.loading import ModelConfig, load
from raftdiff.diffusion.sampler import DiffusionSamplerConfig
from raftdiff.types import Item, Prompt, Selection, silent

# diffusers asks numpy for an array in a way that numpy 2 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def work(folder, out):
    """Sample three pictures, tune on them, and write down all that came of it."""
    parts = load(ModelConfig(base=str(folder), device="cpu"))
    sampler = DiffusionSamplerConfig(steps=2, batch_size=2, guidance=3.0).build(parts)
    tuner = DiffusionFineTunerConfig(steps=3, batch_size=2).build(parts, total_rounds=1, guidance=3.0, seed=0)
    prompts = [Prompt(name, name, name, name) for name in ("a", "b", "c")]
    samples = {s.key: s for s in sampler.sample(prompts, per_prompt=1, seed=0, round=0, done=set())}
    tuner.fit(Selection("weighted", tuple(Item((key,)) for key in samples)), samples, seed=0, report=silent)
    latents = {key.prompt: sample.aux["latent"].contiguous() for key, sample in samples.items()}
    save_file({**tuner.state_dict()["adapter"], **latents}, out)


def described(rank, port):
    """What accelerate launch says to a process."""
    return {
        "RANK": f"{rank}",
        "LOCAL_RANK": f"{rank}",
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": f"{port}",
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
        "GLOO_SOCKET_IFNAME": "lo",
    }


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this PyTorch has no gloo")
def test_two_processes_do_what_one_does(models, tmp_path, forked):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    outs = [tmp_path / f"{name}.safetensors" for name in ("first", "second", "alone")]
    started = [
        forked(
            f"import runpy\nrunpy.run_path({__file__!r})['work']({str(models['sd15'])!r}, {str(out)!r})", out.stem, **it
        )
        for out, it in zip(outs, (described(rank, port) for rank in (0, 1)), strict=False)
    ]
    work(models["sd15"], outs[2])
    for process, out in zip(started, outs, strict=False):
        process.join(timeout=120)
        assert process.exitcode == 0, out.with_suffix("").read_text()
    first, second, alone = (load_file(out) for out in outs)
    assert set(alone) == set(first) == set(second)
    for name in alone:
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], alone[name], atol=1e-5, rtol=1e-3)
