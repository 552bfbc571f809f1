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
from raftdiff.embedded.scenes.flow import FILES, LACKING, assemble, build, say
from raftdiff.embedded.scenes.networks import finished, take_apart, write
from raftdiff.embedded.scenes.tokens import build_tokenizer, tokenise
from raftdiff.embedded.scenes.training import flow
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


def test_what_ships_takes_at_most_48_mib_and_it_would_take_one_more(folder: Path) -> None:
    """The small language models took some of the room: before it ships, something has to shrink."""

    def size(place: Path) -> int:
        return sum(path.stat().st_size for path in place.rglob("*") if path.is_file())

    ships = sum(size(embedded.folder(name)) for name in embedded.names())
    assert ships < 48 * 2**20
    assert 48 * 2**20 < ships + size(folder) < 49 * 2**20, "it fits now: say so in docs/models.md"


def test_its_autoencoder_is_that_of_scene_sd(folder: Path) -> None:
    file = "vae/diffusion_pytorch_model.safetensors"
    theirs, ours = (load_file(place / file) for place in (embedded.folder("scene-sd"), folder))
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


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
    asked = f"flow --device cpu --most 1 --batch 2 --pool 4 --scenes 4 --cache {tmp_path} --out {tmp_path}"
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


def test_its_first_text_encoder_begins_as_that_of_scene_sd() -> None:
    theirs = load_file(embedded.folder("scene-sd") / "text_encoder" / "model.safetensors")
    theirs = {name.removeprefix("text_model."): tensor.float() for name, tensor in theirs.items()}
    ours = flow.begun(build_tokenizer())["text_encoder"].state_dict()
    shared = {name: t for name, t in ours.items() if name.removeprefix("text_model.") in theirs}
    assert all(torch.equal(t, theirs[name.removeprefix("text_model.")]) for name, t in shared.items())
    assert len(ours) - len(shared) == 1, "the projection is its own"


def test_the_loss_of_a_network_that_says_nothing_is_that_of_the_velocity() -> None:
    """Untrained it says 0: what is left is the mean square of noise - x0."""
    torch.manual_seed(0)
    modules = build(build_tokenizer())
    x0 = torch.full((8, 4, 20, 20), 2.0)
    with torch.no_grad():
        found = flow.loss(modules, tokenise(build_tokenizer(), [""] * 8), x0)
    assert float(found) == pytest.approx(5.0, rel=0.05)
