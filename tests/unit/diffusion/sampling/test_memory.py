"""Memory that does not suffice costs no picture: what does not fit at once is drawn and decoded in parts."""

from dataclasses import replace

import pytest
import torch

from raftdiff.diffusion import sampler as sampling
from raftdiff.diffusion.models.loading import ModelConfig, load
from raftdiff.diffusion.sampler import DiffusionSamplerConfig
from raftdiff.diffusion.sampling import batches
from raftdiff.errors import UserError
from raftdiff.training.compiled import Compiled
from raftdiff.types import Prompt

# diffusers asks numpy for an array in a way that numpy 2 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PROMPTS = [Prompt(name, name, name, name) for name in "abc"]
FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.fixture(scope="module")
def parts(models):
    return load(ModelConfig(base=str(models["sd15"])))


def small(parts, most):
    """The same model on a device that takes so many rows at once."""

    def network(rows, *args, **options):
        if len(rows) > most:
            raise FULL
        return parts.network(rows, *args, **options)

    return replace(parts, network=network)


def drawn(parts, done=frozenset(), **changes):
    config = DiffusionSamplerConfig(**{"steps": 2, "batch_size": 5, "guidance": 1.0, "scheduler": "euler_a", **changes})
    sampler = config.build(parts)
    return sampler, list(sampler.sample(PROMPTS, per_prompt=2, seed=3, round=0, done=set(done)))


def test_a_batch_that_does_not_fit_is_drawn_in_halves(parts):
    with pytest.warns(UserWarning, match=r"to draw 5 pictures at once; from here on 2 at most, and none is lost\."):
        sampler, found = drawn(small(parts, 3))
    _, whole = drawn(parts)
    assert [one.key for one in found] == [one.key for one in whole]
    latents = [torch.stack([one.aux["latent"] for one in them]) for them in (found, whole)]
    torch.testing.assert_close(*latents, atol=1e-4, rtol=1e-4)
    # in twos from the start they are the same, to the bit, and so is what a killed round draws of the rest
    _, twos = drawn(parts, batch_size=2)
    assert all(torch.equal(a.aux["latent"], b.aux["latent"]) for a, b in zip(found[:4], twos[:4], strict=True))
    (last,) = sampler.sample(PROMPTS, per_prompt=2, seed=3, round=0, done={one.key[1:] for one in found[:-1]})
    assert torch.equal(last.aux["latent"], found[-1].aux["latent"])


def test_a_single_picture_that_does_not_fit_is_refused(parts):
    with pytest.raises(UserError, match=r"sampler.batch_size: .* draw a single picture\. Take smaller .*plan RECIPE"):
        drawn(small(parts, 1), guidance=2.0)


def test_what_is_decoded_does_not_fit_either(parts, monkeypatch):
    tried = []

    def decode(parts, latents, count):
        tried.append(count)
        if count > 2:
            raise FULL
        return plain(parts, latents, count)

    plain = sampling.decode
    monkeypatch.setattr(sampling, "decode", decode)
    with pytest.warns(UserWarning, match="vae_batch_size: memory does not suffice to decode 5 pictures at once"):
        _, found = drawn(parts)
    assert (len(found), tried) == (6, [5, 2, 1])


def test_how_fast_a_batch_is_drawn_is_measured_where_it_fits(parts, monkeypatch):
    monkeypatch.setattr(batches, "STEADY", 0.0)
    quick = DiffusionSamplerConfig(steps=1, guidance=2.0).build(small(parts, 3))
    assert batches.throughput(quick, 1) > 0
    assert batches.throughput(quick, 2) is None  # guidance makes four rows of them


def test_a_compiled_network_sees_full_batches_alone(parts, monkeypatch):
    seen = []

    def compiled(network, backend, mode):
        assert mode is None, "CUDA graphs are a choice"
        return lambda rows, *args, **options: seen.append(len(rows)) or network(rows, *args, **options)

    monkeypatch.setattr(torch, "compile", compiled)
    sampler, found = drawn(replace(parts, network=Compiled(parts.denoiser)), batch_size=4)
    assert (seen, sampler.network_evaluations()) == ([4] * 4, 16), "of six pictures the last two are filled up"
    _, plain = drawn(parts, batch_size=4)
    assert [one.key for one in found] == [one.key for one in plain]
    assert all(torch.equal(a.aux["latent"], b.aux["latent"]) for a, b in zip(found[:4], plain[:4], strict=True))
    torch.testing.assert_close(found[5].aux["latent"], plain[5].aux["latent"], atol=1e-4, rtol=1e-4)
