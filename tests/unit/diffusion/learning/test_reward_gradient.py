"""The reward's own gradient: in closed form where all is linear, up a reward of real decoded pictures, and refused."""

import numpy as np
import pytest
import torch

from raftdiff.diffusion.assembly import chains_of
from raftdiff.diffusion.families.texts import Texts
from raftdiff.diffusion.learning import losses
from raftdiff.diffusion.learning.finetuner import DiffusionFineTunerConfig
from raftdiff.diffusion.learning.lessons import Endings, Part, Places
from raftdiff.diffusion.learning.policy_gradient import Chain
from raftdiff.diffusion.learning.reward_gradient import graded
from raftdiff.diffusion.learning.rules import Draft, Refl
from raftdiff.diffusion.models.loading import ModelConfig, load
from raftdiff.diffusion.process import of_abar
from raftdiff.diffusion.sampler import DiffusionSamplerConfig
from raftdiff.errors import UserError
from raftdiff.recipes.config import check
from raftdiff.rewards.jpeg import JpegConfig
from raftdiff.types import Item, Prompt, Selection, silent

PROMPT = Prompt("p", "red", "red", "red", "bad")


class Red:
    """How red pictures are: the mean of the first channel, from 0 to 1."""

    name = "red"

    def score(self, samples):
        return torch.tensor([float(np.asarray(sample.media)[..., 0].mean()) / 255 for sample in samples])

    def graded(self, pixels, prompts):
        assert len(prompts) == len(pixels)
        return pixels[:, 0].mean(dim=(1, 2))


def formula(value):
    """A network that says one number wherever it is asked, twice the number with the caption of ones."""

    def predict(xt, timesteps, embeddings):
        del timesteps
        return (value * (1 + embeddings.tokens.mean(dim=(1, 2)))).view(-1, 1, 1, 1).expand_as(xt)

    return predict


def never(*_):
    raise AssertionError("it was asked")


CHAIN = Chain(
    timesteps=torch.tensor([999, 600, 200]),
    level=of_abar(torch.tensor([0.0, 0.36, 0.64])),
    following=of_abar(torch.tensor([0.36, 0.64, 1.0])),
    deviation=torch.zeros(3),
    guidance=1.0,
)


def part(paths, at):
    count = len(paths)
    return Part(paths, Places(at), Texts(torch.ones(count, 1, 1)), Texts(torch.zeros(count, 1, 1)), torch.ones(count))


def mean_of(latents, prompts):
    del prompts
    return latents.mean(dim=(1, 2, 3))


@pytest.mark.parametrize(("guidance", "said"), [(1.0, 2.0), (3.0, 4.0)])
def test_one_leap_has_the_gradient_of_the_picture_foretold(guidance, said):
    """x0 = a xt - s v, and v is ``said`` times the value: away 1, toward 2, guided 1 + w."""
    chain = Chain(CHAIN.timesteps, CHAIN.level, CHAIN.following, CHAIN.deviation, guidance)
    value = torch.tensor(0.3, requires_grad=True)
    paths = torch.randn(3, 4, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    lesson = Endings(chain, Refl(0.3).walk(3), mean_of, "v_prediction", "uniform", 0.0)
    terms = lesson.terms(part(paths, torch.tensor([0, 1, 2])), losses.Networks(formula(value), never, never))
    terms.loss.backward()
    x0 = sum(
        CHAIN.level.a[place] * paths[place, place].mean() - CHAIN.level.s[place] * said * 0.3 for place in range(3)
    )
    assert float(terms.loss.detach()) == pytest.approx(-float(x0), abs=1e-6)
    assert float(value.grad) == pytest.approx(said * float(CHAIN.level.s.sum()), abs=1e-5)
    assert terms.figures["reward"] == pytest.approx(float(x0), abs=1e-6)
    assert terms.evaluations == 3 * (1 if guidance == 1 else 2)


def test_the_gradient_through_several_steps_is_that_of_where_they_lead():
    """Against differences of the whole walk, which is linear in what the network says."""
    paths = torch.randn(2, 4, 1, 2, 2, generator=torch.Generator().manual_seed(1))
    lesson = Endings(CHAIN, Draft(2).walk(3), mean_of, "v_prediction", "uniform", 0.0)
    at = lesson.draw(paths.shape, torch.Generator()).at
    assert at.tolist() == [1, 1]

    def loss(value):
        return lesson.terms(part(paths, at), losses.Networks(formula(value), never, never)).loss

    value = torch.tensor(0.3, requires_grad=True)
    loss(value).backward()
    there, back = float(loss(torch.tensor(0.8))), float(loss(torch.tensor(-0.2)))
    assert float(value.grad) == pytest.approx(there - back, abs=1e-5)
    assert abs(there - back) > 0.1


def test_weights_scale_what_a_picture_teaches_and_the_anchor_is_of_the_first_step():
    paths = torch.randn(2, 4, 1, 2, 2, generator=torch.Generator().manual_seed(1))
    lesson = Endings(CHAIN, Draft(3).walk(3), mean_of, "v_prediction", "uniform", 0.5)
    networks = losses.Networks(formula(torch.tensor(0.3)), formula(torch.tensor(0.1)), never)
    given = part(paths, torch.tensor([0, 0]))
    plain = lesson.terms(given, networks)
    torch.testing.assert_close(plain.anchor, torch.tensor(2 * 0.5 * 0.4**2))
    assert plain.evaluations == 2 * (3 + 1)
    doubled = Part(given.held, given.drawn, given.captions, given.against, torch.tensor([2.0, 2.0]))
    torch.testing.assert_close(lesson.terms(doubled, networks).loss, 2 * plain.loss)


def test_late_steps_are_shown_evenly():
    walk = Refl(0.75).walk(20)
    lesson = Endings(CHAIN, walk, mean_of, "v_prediction", "stratified", 0.0)
    at = lesson.draw(torch.Size((10, 21, 1, 2, 2)), torch.Generator().manual_seed(0)).at
    assert torch.bincount(at).tolist() == [0] * 15 + [2] * 5
    assert Refl(0.99).walk(4).starts == range(3, 4)  # the last step is always late


def drawn(folder, learning, solver="ddim", rescale=0.0, **changes):
    """A tuner up ``Red``, and four pictures that its model drew, with their paths."""
    steps, guidance, count = 4, 2.0, 4
    parts = load(ModelConfig(base=str(folder)))
    drawing = DiffusionSamplerConfig(
        steps=steps, guidance=guidance, guidance_rescale=rescale, scheduler=solver, batch_size=count
    )
    sampler = drawing.build(parts, ("latent", "path"))
    config = DiffusionFineTunerConfig(learning=learning, **{"rank": 4, "batch_size": 2, **changes})
    learner = config.build(
        parts, total_rounds=1, guidance=1.0, seed=0, chains=chains_of(sampler, drawing), rewards=[(Red(), 100.0)]
    )
    samples = {it.key: it for it in sampler.sample([PROMPT], per_prompt=count, seed=0, round=0, done=set())}
    return learner, sampler, samples, Selection("weighted", tuple(Item((key,)) for key in samples))


@pytest.mark.parametrize(("kind", "rescale"), [("sd15", 0.0), ("sd21_zero_snr", 0.0), ("sd21_zero_snr", 0.7)])
def test_all_of_a_path_walked_again_ends_where_the_sampler_ended(models, kind, rescale):
    """So with K of all steps the gradient is that of the drawing itself."""
    learner, _, samples, _ = drawn(models[kind], {"type": "draft", "steps": 4}, rescale=rescale)
    lesson, ends = learner.lesson, []
    paths = torch.stack([sample.aux["path"] for sample in samples.values()])
    caught = Endings(
        lesson.chain,
        lesson.walk,
        lambda latents, prompts: (ends.append(latents), latents.mean(dim=(1, 2, 3)))[1],
        lesson.predicts,
        lesson.timesteps,
        0.0,
    )
    captions, against = learner.parts.prompts(["red"] * 4), learner.parts.prompts(["bad"] * 4)
    at = lesson.draw(paths.shape, torch.Generator()).at
    with torch.no_grad():
        caught.terms(
            Part(paths, Places(at), captions, against, torch.ones(4), [PROMPT] * 4),
            losses.Networks(learner.parts.predict, never, never),
        )
    torch.testing.assert_close(ends[0], paths[:, -1], atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("learning", "solver"),
    [({"type": "draft", "steps": 2}, "ddim"), ({"type": "refl", "earliest": 0.5}, "dpm++")],
)
def test_what_is_drawn_afterwards_pleases_more(models, learning, solver):
    changes = {"exposures": None, "target_modules": "all", "learning_rate": 1e-2}
    learner, sampler, samples, lesson = drawn(models["sd21_zero_snr"], learning, solver, **changes)
    learner.config = learner.config.model_copy(update={"steps": 12})
    before = Red().score(list(samples.values()))
    figures = learner.fit(lesson, samples, seed=1, report=silent)
    after = Red().score(list(sampler.sample([PROMPT], per_prompt=4, seed=0, round=1, done=set())))
    assert (after > before).all()
    assert float((after - before).mean()) > 3 * float(before.std())
    assert float(before.mean()) < figures["reward"] / 100 < float(after.mean())


def test_a_reward_without_gradient_is_refused_and_one_of_no_weight_left_alone(models):
    parts = load(ModelConfig(base=str(models["sd15"])))
    jpeg = JpegConfig().build()
    with pytest.raises(UserError, match="draft follows the gradient of the rewards, and 'jpeg' has none. Take th"):
        graded(parts, [(Red(), 1.0), (jpeg, 0.5)], "draft")
    said = graded(parts, [(Red(), 2.0), (jpeg, 0.0)], "draft")
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pixels = (parts.decode(latents) / 2 + 0.5).clamp(0, 1)
        torch.testing.assert_close(said(latents, [PROMPT] * 2), 2 * pixels[:, 0].mean(dim=(1, 2)))


def test_more_steps_than_there_are_and_noise_of_ones_own_are_refused(models):
    with pytest.raises(UserError, match=r"finetuner.learning.steps: 5 are to be taken with gradient.*takes 4"):
        drawn(models["sd15"], {"type": "draft", "steps": 5})
    for name in ("caption_dropout", "offset_noise", "pure_noise_steps"):
        with pytest.raises(UserError, match=f"{name} is for pictures under noise; refl learns from steps as they were"):
            check(DiffusionFineTunerConfig, {"learning": {"type": "refl"}, name: 1}, "recipe.yaml")
