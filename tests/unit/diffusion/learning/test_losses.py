"""What a step minimises, term by term, with a network that is a formula."""

import pytest
import torch
from diffusers import DDPMScheduler

from raftdiff.diffusion import process
from raftdiff.diffusion.families.texts import Texts
from raftdiff.diffusion.learning import losses, rules

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
EPSILON = process.diffusion(DDPMScheduler(**SD))
V = process.diffusion(DDPMScheduler(**SD, prediction_type="v_prediction"))


def objective(**changes) -> losses.Objective:
    plain = {
        "guidance": 1.0,
        "min_snr_gamma": None,
        "pure_noise_steps": 0,
        "anchor": 0.0,
        "rule": rules.Sft(),
    }
    return losses.Objective(**{**plain, **changes})


def batch(count: int = 4, dropped: bool = False, **changes) -> losses.Batch:
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, count, 4, 2, 2, generator=generator)
    timesteps = torch.linspace(0, 999, count).long()
    made = {
        "x0": x0,
        "captions": Texts(torch.ones(count, 3, 2)),
        "empty": Texts(torch.zeros(count, 3, 2)),
        "weights": torch.ones(count),
        "draws": losses.Draws(noise, timesteps, torch.full((count,), dropped)),
    }
    return losses.Batch(**{**made, **changes})


def constant(conditional: float, unconditional: float):
    """Predicts one number with the caption, another without."""

    def predict(xt, timesteps, embeddings):
        del timesteps
        value = torch.where(embeddings.tokens.mean(dim=(1, 2)) > 0.5, conditional, unconditional)
        return value[:, None, None, None].expand_as(xt)

    return predict


def never(*_):
    raise AssertionError("the base model was asked without an anchor")


def step(made, trained, chosen, predict, *networks):
    base, old = (*networks, never, never)[:2]
    return losses.step_loss(made, trained, chosen, losses.Networks(predict, base, old))


def test_plain_loss_is_the_mean_squared_error_to_the_noise():
    made = batch()
    terms = step(made, EPSILON, objective(), constant(0.0, 9.0), never)
    torch.testing.assert_close(terms.loss, (made.draws.noise**2).mean() * 4)
    assert terms.evaluations == 4
    assert terms.anchor == 0


def test_a_perfect_network_has_no_loss():
    made = batch()
    level = V.level[made.draws.places]
    velocity = process.target("v_prediction", made.x0, made.draws.noise, level)
    terms = step(made, V, objective(), lambda *_: velocity, never)
    torch.testing.assert_close(terms.loss, torch.tensor(0.0))


def test_weights_multiply_rows():
    whole = step(batch(), EPSILON, objective(), constant(0.0, 0.0), never).loss
    halved = step(batch(weights=torch.full((4,), 0.5)), EPSILON, objective(), constant(0.0, 0.0), never).loss
    torch.testing.assert_close(halved, whole / 2)


def test_guided_loss_is_on_the_guided_prediction():
    made = batch()
    terms = step(made, EPSILON, objective(guidance=3.0), constant(0.5, 0.2), never)
    expected = ((0.2 + 3.0 * (0.5 - 0.2) - made.draws.noise) ** 2).mean() * 4
    torch.testing.assert_close(terms.loss, expected)
    assert terms.evaluations == 8


def test_guided_gradient_goes_through_the_conditional_alone():
    parameter = torch.tensor(0.5, requires_grad=True)

    def predict(xt, timesteps, embeddings):
        del timesteps, embeddings
        return parameter.expand_as(xt)

    made = batch()
    step(made, EPSILON, objective(guidance=3.0), predict, never).loss.backward()
    # u = c = p, so the guided prediction is p; its derivative is w, not w + (1 - w)
    expected = 3.0 * 2 * (0.5 - made.draws.noise).mean() * 4
    torch.testing.assert_close(parameter.grad, expected)


def test_dropped_rows_learn_the_empty_caption_unguided():
    made = batch(dropped=True)
    terms = step(made, EPSILON, objective(guidance=3.0), constant(9.0, 0.2), never)
    torch.testing.assert_close(terms.loss, ((0.2 - made.draws.noise) ** 2).mean() * 4)


def test_anchor_is_the_distance_to_the_base():
    made = batch()
    terms = step(made, EPSILON, objective(anchor=0.1), constant(0.5, 0.0), constant(0.3, 0.0))
    torch.testing.assert_close(terms.anchor, torch.tensor(0.1 * 0.2**2 * 4))
    assert terms.evaluations == 8


def test_min_snr_weighs_rows_by_their_timestep():
    made = batch()
    rows = ((made.draws.noise) ** 2).flatten(1).mean(1)
    weight = process.min_snr_weight("epsilon", EPSILON.level[made.draws.places], 5.0)
    terms = step(made, EPSILON, objective(min_snr_gamma=5.0), constant(0.0, 0.0), never)
    torch.testing.assert_close(terms.loss, (rows * weight).sum())


def test_at_the_last_steps_the_network_sees_pure_noise():
    made, seen = batch(), []

    def predict(xt, timesteps, embeddings):
        del timesteps, embeddings
        seen.append(xt)
        return xt

    step(made, EPSILON, objective(pure_noise_steps=100), predict, never)
    torch.testing.assert_close(seen[0][-1], made.draws.noise[-1], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(seen[0][0], made.draws.noise[0], atol=1e-2)


def test_draws_depend_on_the_generator_alone():
    one, two = (
        losses.draw((4, 4, 2, 2), 1000, torch.Generator().manual_seed(7), kind="uniform", offset=0.1, dropout=0.5)
        for _ in range(2)
    )
    assert torch.equal(one.noise, two.noise)
    assert torch.equal(one.places, two.places)
    assert torch.equal(one.dropped, two.dropped)


@pytest.mark.parametrize(("dropout", "expected"), [(0.0, 0), (1.0, 8)])
def test_dropout_share(dropout, expected):
    drawn = losses.draw((8, 4, 2, 2), 10, torch.Generator(), kind="uniform", offset=0.0, dropout=dropout)
    assert drawn.dropped.sum() == expected
