"""What every family of rectified flow keeps, on tiny random models in the exact format.

A family with something of its own to show has a file of its own beside this one.
"""

import diffusers
import pytest
import torch

from raftdiff.diffusion.export import export
from raftdiff.diffusion.families.tiny.clip import TOKENS
from raftdiff.diffusion.learning.finetuner import DiffusionFineTunerConfig
from raftdiff.diffusion.learning.policy_gradient import chain_of
from raftdiff.diffusion.models.loading import ModelConfig, load
from raftdiff.diffusion.models.quiet import quietly
from raftdiff.diffusion.sampler import DiffusionSamplerConfig, make_scheduler
from raftdiff.errors import UserError
from raftdiff.testing.conformance import check_finetuner, check_sampler
from raftdiff.types import Item, Prompt, Selection, silent

# diffusers asks numpy for an array in a way that numpy 2 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

KINDS = ["sd3", "zimage", "sana", "flux_dev", "flux2"]
FURTHER = ["sd3_no_t5", "flux_schnell"]
"""Kinds that differ from one above in what they are told and where their steps lie: of them pictures are compared."""
COUNTED = {("ZImagePipeline", "dpm++"), ("ZImagePipeline", "unipc")}
"""Solvers whose steps a pipeline can count, but not place."""
OWN = {"FlowMatchEulerDiscreteScheduler": "euler", "DPMSolverMultistepScheduler": "dpm++"}
"""What recipes call the scheduler that a model comes with."""
PROMPTS = [Prompt("a", "a cat", "a cat, best quality", "a cat", negative="blurry"), Prompt("b", "dog", "dog", "dog")]
FEW = 48
"""Tokens, of which FLUX.2's dialogue takes 30."""


def usual(pipeline, negative, guidance):
    return {"negative_prompt": negative, "guidance_scale": guidance}


def of_zimage(pipeline, negative, guidance):
    """Its guidance is the part of it above 1."""
    return {"negative_prompt": negative, "guidance_scale": guidance - 1}


def of_sana(pipeline, negative, guidance):
    """It draws the prompt as it stands, at the size asked for."""
    plain = {"complex_human_instruction": None, "use_resolution_binning": False}
    return {**usual(pipeline, negative, guidance), **plain}


def of_flux(pipeline, negative, guidance):
    """Its guidance_scale is a number that the network is told."""
    return {"negative_prompt": negative, "true_cfg_scale": guidance, "max_sequence_length": TOKENS}


def of_flux2(pipeline, negative, guidance):
    """It takes negative prompts as embeddings alone."""
    negative = pipeline.encode_prompt(negative, max_sequence_length=FEW)[0]
    return {"negative_prompt_embeds": negative, "guidance_scale": guidance, "max_sequence_length": FEW}


def spatial(pipeline, latents, height, width):
    """Of a pipeline that hands out latents in patches."""
    return pipeline._unpack_latents(latents, height, width, 2)


def normalised(pipeline, latents, *size):
    """Of a pipeline that hands out latents as its VAE has them."""
    vae = pipeline.vae
    mean, variance = (it.view(1, -1, 1, 1) for it in (vae.bn.running_mean, vae.bn.running_var))
    return (pipeline._patchify_latents(latents) - mean) / (variance + vae.config.batch_norm_eps).sqrt()


def of_sd3(pipeline, negative, guidance):
    return {**usual(pipeline, negative, guidance), "max_sequence_length": FEW}


TOLD = {
    "StableDiffusion3Pipeline": of_sd3,
    "ZImagePipeline": of_zimage,
    "SanaPipeline": of_sana,
    "FluxPipeline": of_flux,
    "Flux2KleinPipeline": of_flux2,
}
"""How pipelines are told what guidance leads away from, and how far, where not as Stable Diffusion's."""
SEEN = {"FluxPipeline": spatial, "Flux2KleinPipeline": normalised}
"""What is done to latents that pipelines hand out otherwise than the network sees them."""
PATCHED = {
    "sd3": {"raftdiff.diffusion.families.sd3.T5_TOKENS": FEW},
    "sd3_no_t5": {"raftdiff.diffusion.families.sd3.T5_TOKENS": FEW},
    "flux_schnell": {"diffusers.pipelines.flux.pipeline_flux.calculate_shift": lambda *_: None},
    "flux2": {"raftdiff.diffusion.families.flux2.TOKENS": FEW},
}
"""What is another here: FLUX's pipeline tells every solver of a shift by size, and dpm++ and unipc refuse it where the
model has none; FLUX.2 and T5 fill captions up to more tokens than these tests have time for."""


@pytest.fixture(scope="module", params=KINDS)
def folder(request, models):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in PATCHED.get(request.param, {}).items():
            patch.setattr(name, value)
        yield models[request.param]


def opened(folder, **changes):
    return load(ModelConfig(base=str(folder), **changes))


@pytest.fixture(scope="module")
def parts(folder):
    """The model for tests that only draw with it; not to be tuned."""
    return opened(folder)


def drawing(**changes):
    return DiffusionSamplerConfig(**{"steps": 3, "guidance": 3.0, "scheduler": "euler", "batch_size": 3, **changes})


def draw(parts, done=frozenset(), **changes):
    sampler = drawing(**changes).build(parts)
    return list(sampler.sample(PROMPTS, per_prompt=2, seed=0, round=0, done=set(done)))


def latents(samples):
    return torch.stack([sample.aux["latent"] for sample in samples])


def drawn_by_diffusers(pipeline, samples, guidance):
    pipeline.set_progress_bar_config(disable=True)
    kind, size = type(pipeline).__name__, (samples[0].media.height, samples[0].media.width)
    found = [
        pipeline(
            prompt=sample.prompt.sampling,
            **TOLD.get(kind, usual)(pipeline, sample.prompt.negative, guidance),
            num_inference_steps=3,
            height=sample.media.height,
            width=sample.media.width,
            generator=torch.Generator().manual_seed(sample.seed),
            output_type="latent",
        ).images
        for sample in samples
    ]
    return SEEN.get(kind, lambda pipeline, latents, *size: latents)(pipeline, torch.cat(found), *size)


def plain_pipeline(folder, parts):
    """``parts`` say what the pipeline must be told of components that the model lacks."""
    with quietly():
        return diffusers.DiffusionPipeline.from_pretrained(
            folder, local_files_only=True, **parts.family.pipeline_arguments()
        )


@pytest.mark.parametrize("folder", KINDS + FURTHER, indirect=True)
@pytest.mark.parametrize("solver", ["euler", "dpm++", "unipc"])
def test_the_picture_is_the_one_that_diffusers_draws(parts, solver):
    config = drawing(scheduler=solver, batch_size=1)
    ours = draw(parts, {("a", 0), ("b", 1)}, scheduler=solver, batch_size=1)
    pipeline = getattr(diffusers, parts.family.pipeline)(
        **parts.modules, scheduler=make_scheduler(config, parts), **parts.family.pipeline_arguments()
    )
    if (parts.family.pipeline, solver) in COUNTED:
        place = pipeline.scheduler.set_timesteps
        pipeline.scheduler.set_timesteps = lambda sigmas, device, mu: place(len(sigmas), device=device)
    assert [(one.prompt.id, one.index) for one in ours] == [("a", 1), ("b", 0)]
    theirs = drawn_by_diffusers(pipeline, ours, 3.0)
    torch.testing.assert_close(latents(ours), theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("config", [{"scheduler": "euler_a", "guidance": 1.0}, {"scheduler": "dpm++"}])
def test_sampler(parts, config):
    sampler = drawing(**config).build(parts)
    check_sampler(sampler, PROMPTS, per_prompt=2).demand()


def test_finetuner_resumes_to_the_bit(folder, parts):
    samples = {sample.key: sample for sample in draw(parts)}
    selection = Selection("weighted", tuple(Item((key,)) for key in samples))

    def build():
        tuner = DiffusionFineTunerConfig(steps=1, batch_size=2, ema=0.9)
        return tuner.build(opened(folder), total_rounds=3, guidance=2.0, seed=0)

    check_finetuner(build, selection, samples).demand()


def test_a_tuned_model_leaves_as_a_lora_and_merged_and_draws_the_same_in_plain_diffusers(folder, tmp_path):
    parts = opened(folder)
    own = OWN[type(parts.scheduler).__name__]
    before = draw(parts, scheduler=own)
    config = DiffusionFineTunerConfig(learning_rate=3e-3, rank=3, alpha=6.0, steps=4, target_modules="all")
    tuner = config.build(parts, total_rounds=1, guidance=3.0, seed=0)
    selection = Selection("weighted", tuple(Item((sample.key,)) for sample in before))
    tuner.fit(selection, {sample.key: sample for sample in before}, seed=0, report=silent)
    after = draw(parts, scheduler=own)
    assert not torch.allclose(latents(before), latents(after), atol=1e-2)
    lora, merged = (export(tuner, name, tmp_path / name) for name in ("diffusers", "merged"))
    pipeline = plain_pipeline(folder, parts)
    pipeline.load_lora_weights(lora)
    torch.testing.assert_close(drawn_by_diffusers(pipeline, after[:2], 3.0), latents(after[:2]), atol=2e-3, rtol=2e-3)
    theirs = drawn_by_diffusers(plain_pipeline(merged, parts), after[:2], 3.0)
    torch.testing.assert_close(theirs, latents(after[:2]), atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(latents(draw(opened(merged), scheduler=own)), latents(after), atol=2e-3, rtol=2e-3)


def test_what_the_sampler_records_is_the_chain_of_its_steps(parts):
    """Euler's ancestral step: to the picture foretold, and back to the next level with new noise."""
    config = drawing(scheduler="euler_a", guidance=1.0)
    sampler = config.build(parts, ("latent", "path"))
    (sample, *_) = sampler.sample(PROMPTS[:1], per_prompt=1, seed=0, round=0, done=set())
    chain, path = chain_of(sampler.solver(), 0.0, 1.0, flow=True), sample.aux["path"]
    texts, generator = parts.prompts([sample.prompt.sampling]), torch.Generator().manual_seed(sample.seed)
    assert torch.equal(path[0], torch.randn(path[0].shape, generator=generator))
    for place in range(3):
        with torch.no_grad():
            said = parts.predict(path[place][None], chain.timesteps[place : place + 1], texts)
        x0 = path[place] - chain.level.s[place] * said[0]
        noise = torch.randn(path[0].shape, generator=generator)
        then = chain.following.a[place] * x0 + chain.following.s[place] * noise
        torch.testing.assert_close(path[place + 1], then, atol=1e-4, rtol=1e-4)


def test_a_reward_rises(folder):
    """RAFT in the toy sense: what a reward prefers of the model's own drawings, it draws more of."""
    parts = opened(folder)
    sampler = drawing(steps=2, guidance=1.0, batch_size=8).build(parts)
    prompt = [Prompt("p", "cat", "cat", "cat")]
    tuning = {"adapter": "full", "learning_rate": 2e-3, "steps": 10, "batch_size": 4, "exposures": None}
    tuner = DiffusionFineTunerConfig(**tuning).build(parts, total_rounds=2, guidance=1.0, seed=0)
    means = []
    for round_ in range(3):
        samples = {it.key: it for it in sampler.sample(prompt, per_prompt=8, seed=0, round=0, done=set())}
        reward = torch.stack([sample.aux["latent"][0].mean() for sample in samples.values()])
        means.append(float(reward.mean()))
        best = [key for key, value in zip(samples, reward, strict=True) if value > reward.median()]
        if round_ < 2:
            selection = Selection("weighted", tuple(Item((key,)) for key in best))
            tuner.fit(selection, samples, seed=round_, report=silent)
    assert means[2] > means[0]  # of the same noise


def test_what_a_flow_does_not_have_is_told(folder, parts):
    with pytest.raises(
        UserError, match=r"scheduler: .* does not draw with ddim; it draws with euler, euler_a, dpm\+\+"
    ):
        drawing(scheduler="ddim").build(parts)
    with pytest.raises(UserError, match=r"sampler.spacing: .* is a flow, whose steps are its own"):
        drawing(spacing="trailing").build(parts)
    for changes in ({"prediction_type": "epsilon"}, {"zero_terminal_snr": True}):
        with pytest.raises(UserError, match=rf"model.{next(iter(changes))}: .* is a flow, which has no such choice"):
            opened(folder, **changes)
    with pytest.raises(UserError, match="model.attention: xformers"):
        opened(folder, attention="xformers")
