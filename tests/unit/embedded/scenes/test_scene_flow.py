"""emoji-flow, untrained: its size, its training, and its folder, which is of Stable Diffusion 3's format."""

from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from raftdiff import embedded
from raftdiff.diffusion.models.loading import ModelConfig, load
from raftdiff.diffusion.sampler import DiffusionSamplerConfig
from raftdiff.embedded.scenes.art import SHEET
from raftdiff.embedded.scenes.flow import CONTEXT, FILES, LACKING, assemble, build, say
from raftdiff.embedded.scenes.networks import SCHEDULE, finished, take_apart, write
from raftdiff.embedded.scenes.tokens import build_tokenizer, tokenise
from raftdiff.embedded.scenes.training import flow
from raftdiff.embedded.scenes.training.unet import kept
from raftdiff.types import Prompt

CAPTIONS = ["a cat on a pink background", "three foxes"]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, those that begin as zeros too: so that all of it has a say in a picture."""
    place = tmp_path_factory.mktemp("results")
    take_apart(embedded.folder("scene-sd"), place)
    torch.manual_seed(0)
    for name, module in build(build_tokenizer()).items():
        for weight in module.parameters():
            if not weight.any():
                torch.nn.init.normal_(weight, std=0.05)
        write(place / FILES[name], module.state_dict(), finished="yes")
    return place


@pytest.fixture(scope="module")
def folder(results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return assemble(results, tmp_path_factory.mktemp("models") / "emoji-flow")


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> diffusers.StableDiffusion3Pipeline:
    found = diffusers.StableDiffusion3Pipeline.from_pretrained(folder, **LACKING).to(torch.float32)
    found.set_progress_bar_config(disable=True)
    return found


def test_its_autoencoder_is_that_of_scene_sd(folder: Path) -> None:
    file = "vae/diffusion_pytorch_model.safetensors"
    theirs, ours = (load_file(place / file) for place in (embedded.folder("scene-sd"), folder))
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    ships = [(embedded.folder(name) / file).read_bytes() for name in ("scene-sd", "emoji-flow")]
    assert ships[0] == ships[1]


def test_it_draws_in_raftdiff_what_it_draws_in_diffusers(
    folder: Path, pipeline: diffusers.StableDiffusion3Pipeline
) -> None:
    parts = load(ModelConfig(base=str(folder)))
    assert (parts.family.name, parts.process.predicts) == ("sd3", "flow")
    sampler = DiffusionSamplerConfig(steps=2, guidance=3.0, scheduler="euler", batch_size=2).build(parts)
    prompts = [Prompt(text, text, text, "") for text in CAPTIONS]
    ours = list(sampler.sample(prompts, per_prompt=1, seed=0, round=0, done=set()))
    theirs = pipeline(
        CAPTIONS,
        negative_prompt=["", ""],
        guidance_scale=3.0,
        num_inference_steps=2,
        generator=[torch.Generator().manual_seed(one.seed) for one in ours],
        output_type="latent",
    ).images
    for one, latent in zip(ours, theirs, strict=True):
        assert (one.media.width, one.media.height) == (80, 80)
        torch.testing.assert_close(one.aux["latent"], latent, atol=1e-5, rtol=1e-5)


def test_training_tells_it_what_the_pipeline_tells_it(pipeline: diffusers.StableDiffusion3Pipeline) -> None:
    modules = {name: getattr(pipeline, name) for name in FILES}
    tokens = tokenise(pipeline.tokenizer, CAPTIONS)
    with torch.no_grad():
        told, pooled = say(modules, tokens)
        theirs, _, their_pooled, _ = pipeline.encode_prompt(CAPTIONS, None, None, do_classifier_free_guidance=False)
    torch.testing.assert_close(told, theirs)
    torch.testing.assert_close(pooled, their_pooled)


def test_a_step_of_training_and_on_from_there(
    tmp_path: Path, sheet: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_apart(embedded.folder("scene-sd"), tmp_path)
    np.savez_compressed(tmp_path / SHEET, sheet=sheet)
    asked = f"flow --device cpu --most 1 --batch 2 --pool 4 --scenes 4 --reading 1 --cache {tmp_path} --out {tmp_path}"
    monkeypatch.setattr("sys.argv", asked.split())
    flow.main()
    begun = {name: load_file(tmp_path / file) for name, file in FILES.items()}
    assert all(finished(tmp_path / file) for file in FILES.values())
    monkeypatch.setattr("sys.argv", [*asked.split(), "--resume"])
    flow.main()
    for name, file in FILES.items():
        after = load_file(tmp_path / file)
        assert all((after[key].float() - old.float()).abs().max() < 0.01 for key, old in begun[name].items())


def test_zeros_that_are_counted_once_say_what_all_of_them_do(pipeline: diffusers.StableDiffusion3Pipeline) -> None:
    modules = {name: getattr(pipeline, name) for name in FILES}
    transformer, x0 = modules["transformer"], torch.randn(2, 4, 20, 20)
    own = transformer.attn_processors

    def predicted(zeros: int) -> torch.Tensor:
        told, pooled = say(modules, tokenise(pipeline.tokenizer, CAPTIONS), zeros=zeros)
        return transformer(x0, told, pooled, torch.tensor([999.0, 20.0]), return_dict=False)[0]

    with torch.no_grad():
        whole = predicted(256)
        transformer.set_attn_processor(flow.CountedOnce())
        once = predicted(1)
        transformer.set_attn_processor(own)
    torch.testing.assert_close(once, whole, atol=1e-5, rtol=1e-5)
    assert (whole - whole.mean()).abs().max() > 1e-2, "random weights that say something"


def test_its_first_text_encoder_reads_what_scene_sds_says() -> None:
    """Of captions that it reads again and again it soon misses less."""
    torch.manual_seed(0)
    captions = tokenise(build_tokenizer(), [*CAPTIONS, ""])
    modules = flow.begun(build_tokenizer())
    missed: list[float] = []

    def note(line: str, **_: object) -> None:
        missed.append(float(line.split()[-2]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", note)
        flow.read_first(modules, captions, steps=40)
    assert missed[-1] < 2 / 3 * missed[0]


def test_levels_of_noise_are_those_of_the_teacher() -> None:
    """Half picture and half noise by deviation is the level 1/2; the last timestep has no picture left."""
    levels = flow.levels(torch.device("cpu"))
    abar = kept(torch.device("cpu"))
    assert levels[-1] == 1
    assert (levels.diff() > 0).all()
    even = int((abar - 0.5).abs().argmin())
    assert float(levels[even]) == pytest.approx(0.5, abs=2e-3)


def test_a_lesson_is_what_scene_sd_says_of_noisy_latents() -> None:
    """Latents that the teacher knows as a picture: at little noise the velocity leads back to them, and x lies between
    picture and noise as its level says."""
    torch.manual_seed(0)
    teacher = flow.Teacher("cpu")
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(embedded.folder("scene-sd")).to(torch.float32)
    pipeline.scheduler = diffusers.DDIMScheduler(**SCHEDULE)
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline(CAPTIONS[0], num_inference_steps=8, guidance_scale=3.0, output_type="latent").images
    x0 = drawn.expand(64, -1, -1, -1)
    tokens = tokenise(build_tokenizer(), [CAPTIONS[0]]).expand(64, -1)
    lessons = teacher.tell(tokens, x0)
    level = flow.levels(x0.device)[lessons["timesteps"]][:, None, None, None]
    picture = lessons["x"] - level * lessons["velocity"]
    little = level.flatten() < 0.5
    assert little.sum() > 4
    assert (picture - x0)[little].square().mean() < 0.1 * x0.var()
    noise = lessons["x"] + (1 - level) * lessons["velocity"]
    assert float(noise[little].std()) == pytest.approx(1.0, abs=0.1)


def test_the_loss_is_the_mean_square_of_what_is_missed() -> None:
    """Untrained it says 0: what is left is the mean square of the velocity."""
    torch.manual_seed(0)
    lessons = {
        "told": torch.randn(8, 29, CONTEXT),
        "pooled": torch.randn(8, CONTEXT),
        "x": torch.randn(8, 4, 20, 20),
        "velocity": torch.full((8, 4, 20, 20), 2.0),
        "timesteps": torch.arange(0, 1000, 125),
    }
    with torch.no_grad():
        found = flow.loss(build(build_tokenizer()), lessons)
    assert float(found) == pytest.approx(4.0)
