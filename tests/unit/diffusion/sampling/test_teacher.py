"""Candidates that another model draws."""

from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from raftdiff.diffusion.models import tiny
from raftdiff.diffusion.models.loaded import Parts
from raftdiff.diffusion.models.loading import ModelConfig, load
from raftdiff.diffusion.models.pictures import encode
from raftdiff.diffusion.sampler import DiffusionSamplerConfig
from raftdiff.diffusion.sampling.teacher import TeacherSamplerConfig, same_vae
from raftdiff.errors import UserError
from raftdiff.recipes.prompts import PromptsConfig, build

DRAWING = DiffusionSamplerConfig(steps=2, guidance=2.0)
PROMPTS = build(PromptsConfig(captions=["a cat", "a dog"]))


@pytest.fixture(scope="module")
def parts(models: dict[str, Path]) -> Parts:
    return load(ModelConfig(base=str(models["sd15"]), device="cpu"))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_folder(tmp_path_factory.mktemp("teacher") / "sd15", "sd15", seed=1)


def drawn(sampler) -> list:
    return list(sampler.sample(PROMPTS, per_prompt=2, seed=5, round=0, done=frozenset()))


def test_without_a_model_it_is_the_base(parts: Parts) -> None:
    inside = []

    @contextmanager
    def base_weights():
        inside.append(True)
        yield
        inside.append(False)

    teacher = TeacherSamplerConfig(drawing=DRAWING).build(parts, base_weights, str)
    found, own = drawn(teacher), drawn(DRAWING.build(parts))
    assert inside == [True, False]
    assert {one.source for one in found} == {"teacher"}
    assert [one.seed for one in found] == [one.seed for one in own]
    assert all(torch.equal(one.aux["latent"], two.aux["latent"]) for one, two in zip(found, own, strict=True))
    assert teacher.network_evaluations() == 4 * TeacherSamplerConfig(drawing=DRAWING).evaluations


def test_another_models_pictures_are_encoded_where_its_autoencoder_is_another(parts: Parts, other: Path) -> None:
    config = TeacherSamplerConfig(model=ModelConfig(base=str(other), device="cpu"), drawing=DRAWING)
    found = drawn(config.build(parts, lambda: pytest.fail("the base is not asked"), str))
    theirs = drawn(DRAWING.build(load(ModelConfig(base=str(other), device="cpu"))))
    assert [one.media.tobytes() for one in found] == [one.media.tobytes() for one in theirs]
    again = encode(parts, [one.media for one in theirs], 1)
    assert all(torch.equal(one.aux["latent"], latent) for one, latent in zip(found, again, strict=True))


def test_latents_of_one_autoencoder_are_taken_as_they_are(parts: Parts, models: dict[str, Path]) -> None:
    twin = load(ModelConfig(base=str(models["sd15"]), device="cpu"))
    assert same_vae(twin, parts)
    twin.vae.register_to_config(scaling_factor=2 * parts.vae.config.scaling_factor)
    assert not same_vae(twin, parts)


def test_a_picture_that_the_policy_cannot_learn_is_a_sentence(parts: Parts, other: Path) -> None:
    drawing = DRAWING.model_copy(update={"height": 18, "width": 18})
    config = TeacherSamplerConfig(model=ModelConfig(base=str(other), device="cpu"), drawing=drawing)
    with pytest.raises(UserError, match="a picture of 18x18 does not fit this model"):
        config.build(parts, lambda: pytest.fail("not asked"), str)
