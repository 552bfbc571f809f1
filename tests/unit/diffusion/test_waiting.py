"""Between the first step of a trajectory and its last nothing is read back from where the network computes.

Tensors on the device ``meta`` have no values: whatever asks for one raises, where a GPU would let the processor wait
for all that it has yet to do, and then wait itself for the next orders.
"""

import pytest
import torch

from raftdiff.diffusion.models.loading import ModelConfig, load
from raftdiff.diffusion.sampler import DiffusionSamplerConfig
from raftdiff.types import Prompt

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

JOBS = [(Prompt("a", "a cat", "a cat", "a cat"), 0), (Prompt("b", "a dog", "a red dog", "a dog"), 1)]


def once(network):
    """A network that is asked once and then says the same: on this device a pass is half a second of Python."""
    said = []

    def asked(*rows, **named):
        if not said:
            said.append(network(*rows, **named))
        return said[0]

    return asked


@pytest.mark.parametrize("kind", ["sd15", "sd3"])
def test_no_step_waits_for_the_one_before_it(models, kind):
    parts = load(ModelConfig(base=str(models[kind]), device="cpu"))
    config = DiffusionSamplerConfig(steps=3, guidance=2.0, batch_size=2)
    texts = config.build(parts).texts(JOBS)
    for module in parts.modules.values():
        if isinstance(module, torch.nn.Module):
            module.to("meta")
    parts.device = torch.device("meta")
    parts.denoiser.forward = once(parts.denoiser.forward)
    for scheduler in parts.family.solvers(parts.scheduler):
        sampler = config.model_copy(update={"scheduler": scheduler}).build(parts)
        noise, generators = sampler.noise(JOBS, 3, sampler.sizes[0])
        *_, last = sampler.denoising(noise, *texts, generators)
        assert (last.device.type, last.shape, last.dtype) == ("meta", noise.shape, torch.float32), scheduler
        with pytest.raises(RuntimeError, match="meta"):
            last.sum().item()
