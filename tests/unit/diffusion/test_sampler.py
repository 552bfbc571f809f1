"""Pictures follow from their own seeds, and are those that diffusers draws."""

import diffusers
import numpy as np
import pytest
import torch

from raftdiff.diffusion.families.shared.unet import SOLVERS
from raftdiff.diffusion.models.loading import ModelConfig, load
from raftdiff.diffusion.models.pictures import decode
from raftdiff.diffusion.sampler import DiffusionSamplerConfig, make_scheduler
from raftdiff.errors import UserError
from raftdiff.measures.pictures import is_flat
from raftdiff.seeds import fold
from raftdiff.types import Prompt

# diffusers asks numpy for an array in a way that numpy 2 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PROMPTS = [
    Prompt("a", "a cat", "a cat, best quality", "a cat", negative="blurry"),
    Prompt("b", "a dog", "a dog", "a dog"),
    Prompt("c", "a cow", "a cow", "a cow"),
]


@pytest.fixture(scope="module", params=["sd15", "sd21", "sd21_zero_snr", "sdxl"])
def parts(request, models):
    return load(ModelConfig(base=str(models[request.param])))


def draw(parts, done=frozenset(), seed=3, **changes):
    sampler = DiffusionSamplerConfig(**{"steps": 3, "batch_size": 4, "guidance": 3.0, **changes}).build(parts)
    return list(sampler.sample(PROMPTS, per_prompt=2, seed=seed, round=5, done=set(done))), sampler


def plain(parts, config):
    """The model in diffusers' own pipeline."""
    pipeline = getattr(diffusers, parts.family.pipeline)(
        **parts.modules, scheduler=make_scheduler(config, parts), **parts.family.pipeline_arguments()
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def drawn_by_diffusers(pipeline, sample, guidance, **changes):
    return pipeline(
        sample.prompt.sampling,
        negative_prompt=sample.prompt.negative or None,
        num_inference_steps=3,
        guidance_scale=guidance,
        generator=torch.Generator().manual_seed(sample.seed),
        output_type="latent",
        **changes,
    ).images[0]


def latents(samples):
    return torch.stack([sample.aux["latent"] for sample in samples])


def test_samples_are_labelled_and_counted(parts):
    samples, sampler = draw(parts)
    assert [(s.prompt.id, s.index) for s in samples] == [(p, k) for p in "abc" for k in (0, 1)]
    first = samples[0]
    assert (first.round, first.source, first.seed) == (5, "policy", fold(3, "a", 0))
    assert first.aux["latent"].shape == (4, 8, 8)
    assert first.aux["latent"].dtype == torch.float32
    assert first.media.size == (16, 16)
    assert sampler.network_evaluations() == 6 * 3 * 2


def test_without_guidance_a_step_costs_half(parts):
    _, sampler = draw(parts, guidance=1.0)
    assert sampler.network_evaluations() == 6 * 3


def test_the_picture_is_its_latent_decoded(parts):
    samples, _ = draw(parts)
    again = decode(parts, latents(samples), 4)
    assert np.array_equal(np.asarray(again[5]), np.asarray(samples[5].media))


def test_a_picture_with_any_number_that_is_none_is_of_one_colour(parts):
    samples, _ = draw(parts)
    broken = latents(samples)[:3].clone()
    broken[1, 0, 2, 2] = torch.nan
    broken[2, 0, 0, 0] = torch.inf
    whole, *others = decode(parts, broken, 2)
    assert np.array_equal(np.asarray(whole), np.asarray(samples[0].media))
    assert [is_flat(picture) for picture in others] == [True, True]


def test_other_batches_give_the_same_pictures(parts):
    one, _ = draw(parts, batch_size=1)
    other, _ = draw(parts, batch_size=5, vae_batch_size=2)
    torch.testing.assert_close(latents(one), latents(other), atol=1e-4, rtol=1e-4)


def test_skipping_what_is_done_changes_no_bit_of_the_rest(parts):
    whole, whole_sampler = draw(parts)
    # the first batch of four is done but for one; the second is done altogether
    done = {("a", 0), ("a", 1), ("b", 1), ("c", 0), ("c", 1)}
    rest, sampler = draw(parts, done)
    assert [(s.prompt.id, s.index) for s in rest] == [("b", 0)]
    assert torch.equal(rest[0].aux["latent"], whole[2].aux["latent"])
    assert rest[0].media.tobytes() == whole[2].media.tobytes()
    assert sampler.network_evaluations() < whole_sampler.network_evaluations()


@pytest.mark.parametrize("scheduler", ["euler_a", "ddpm", "lcm"])
def test_stochastic_solvers_draw_from_each_samples_own_generator(parts, scheduler):
    one, _ = draw(parts, scheduler=scheduler, batch_size=1)
    other, _ = draw(parts, scheduler=scheduler, batch_size=6)
    torch.testing.assert_close(latents(one), latents(other), atol=1e-3, rtol=1e-3)
    assert latents(one).isfinite().all()


def test_ddim_with_eta_is_stochastic_per_sample(parts):
    one, _ = draw(parts, scheduler="ddim", eta=1.0, batch_size=2)
    other, _ = draw(parts, scheduler="ddim", eta=1.0, batch_size=3)
    plain, _ = draw(parts, scheduler="ddim")
    torch.testing.assert_close(latents(one), latents(other), atol=1e-3, rtol=1e-3)
    assert not torch.allclose(latents(one), latents(plain), atol=1e-2)


@pytest.mark.parametrize(("scheduler", "eta"), [*((name, 0.0) for name in sorted(SOLVERS)), ("tcd", 0.5)])
def test_the_picture_is_the_one_that_diffusers_draws(parts, scheduler, eta):
    two = {("a", 0), ("b", 1)}
    others = {(prompt.id, index) for prompt in PROMPTS for index in (0, 1)} - two
    ours, sampler = draw(parts, others, scheduler=scheduler, eta=eta, batch_size=1)
    assert {(one.prompt.id, one.index) for one in ours} == two
    pipeline = plain(parts, sampler.config)
    for sample in ours:
        theirs = drawn_by_diffusers(pipeline, sample, 3.0, eta=eta)
        torch.testing.assert_close(sample.aux["latent"], theirs, atol=1e-4, rtol=1e-4)


def test_guidance_is_rescaled_as_diffusers_rescales_it(parts):
    others = {(prompt.id, index) for prompt in PROMPTS for index in (0, 1)} - {("b", 1)}
    (sample,), sampler = draw(parts, others, guidance=7.5, guidance_rescale=0.7, batch_size=1)
    pipeline = plain(parts, sampler.config)
    theirs, unscaled = (drawn_by_diffusers(pipeline, sample, 7.5, guidance_rescale=rescale) for rescale in (0.7, 0.0))
    torch.testing.assert_close(sample.aux["latent"], theirs, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(sample.aux["latent"], unscaled, atol=1e-2)


def test_negative_prompts_and_seeds_matter(parts):
    first, _ = draw(parts)
    other, _ = draw(parts, seed=4)
    assert not torch.allclose(latents(first), latents(other), atol=1e-2)


def test_size_and_spacing_can_be_chosen(parts):
    samples, sampler = draw(parts, height=32, width=16, spacing="trailing")
    assert samples[0].aux["latent"].shape == (4, 16, 8)
    assert samples[0].media.size == (16, 32)
    assert sampler.scheduler.config.timestep_spacing == "trailing"


def test_bfloat16_on_the_cpu(models):
    half = load(ModelConfig(base=str(models["sd21"]), dtype="bfloat16"))
    whole = load(ModelConfig(base=str(models["sd21"])))
    samples, _ = draw(half)
    assert samples[0].aux["latent"].dtype == torch.float32
    torch.testing.assert_close(latents(samples), latents(draw(whole)[0]), atol=0.1, rtol=0.1)


def test_prompts_are_encoded_once(parts, monkeypatch):
    sampler = DiffusionSamplerConfig(steps=1).build(parts)
    parts.prompts.clear()
    seen = []
    encode = type(parts.prompts).encode
    monkeypatch.setattr(type(parts.prompts), "encode", lambda self, texts: seen.extend(texts) or encode(self, texts))
    for _ in range(2):
        list(sampler.sample(PROMPTS, per_prompt=2, seed=0, round=0, done=set()))
    assert sorted(seen) == ["", "a cat, best quality", "a cow", "a dog", "blurry"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"steps": 1000, "scheduler": "euler", "eta": 0.5}, "only the schedulers ddim and tcd have an eta, not euler"),
        ({"steps": 51, "scheduler": "lcm"}, "lcm takes at most the 50 steps that consistency is distilled on, not 51"),
        ({"scheduler": "tcd", "spacing": "trailing"}, "sampler.spacing: the steps of tcd are its own. Leave it out"),
        ({"height": 24, "width": 18}, "a picture of 18x24 does not fit this model; both must be multiples of 4"),
    ],
)
def test_what_cannot_be_drawn_gets_a_sentence(parts, changes, sentence):
    with pytest.raises(UserError, match=sentence):
        DiffusionSamplerConfig(**changes).build(parts)
