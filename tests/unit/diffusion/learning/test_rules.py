"""Every rule has a closed form where the model is its reference, and pulls where better and worse say."""

import math

import pytest
import torch
from diffusers import DDPMScheduler

from raftdiff.diffusion import process
from raftdiff.diffusion.learning import rules
from raftdiff.errors import UserError
from raftdiff.recipes.config import check

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
LEVEL = process.diffusion(DDPMScheduler(**SD)).level
KINDS = ["epsilon", "v_prediction"]


def rows(prediction_type="v_prediction", weight=(1.0, -1.0, 2.0, 0.0), seed=0, away=0.0):
    """Four pictures; the reference's prediction, and one that has moved from it by ``away`` towards the target."""
    generator = torch.Generator().manual_seed(seed)
    x0, noise, said = torch.randn(3, 4, 4, 3, 3, generator=generator)
    level = LEVEL[torch.tensor([50, 300, 600, 900])]
    xt = process.add_noise(x0, noise, level)
    target = process.target(prediction_type, x0, noise, level)
    prediction = (said + away * (target - said)).requires_grad_()
    return rules.Rows(prediction, said, target, x0, xt, level, prediction_type, torch.tensor(weight))


def gradient(rule, given):
    rule.loss(given).sum().backward()
    return given.prediction.grad


def test_imitation_is_the_weighted_error():
    given = rows()
    torch.testing.assert_close(
        rules.Sft().loss(given), given.weight * ((given.prediction - given.target) ** 2).mean(dim=(1, 2, 3))
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("rule", "value"),
    [
        (rules.Dpo(2000.0), math.log(2)),
        (rules.Dpo(2000.0, "ipo"), 0.25),
        (rules.Kto(500.0), 0.5),
    ],
)
def test_at_the_base_the_loss_is_known(rule, value, kind):
    loss = rule.loss(rows(kind))
    torch.testing.assert_close(loss, torch.full_like(loss, value))


def test_at_the_old_policy_the_loss_is_minus_the_advantage_and_its_gradient_the_weighted_errors():
    given, same = rows(), rows()
    torch.testing.assert_close(rules.Advantage(0.01).loss(given), -given.weight)
    torch.testing.assert_close(gradient(rules.Advantage(0.01), given), gradient(rules.Sft(), same))


@pytest.mark.parametrize("beta", [0.1, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_no_better_than_the_mean_teaches_nothing_and_others_in_proportion(kind, beta):
    none = gradient(rules.Nft(beta, 5.0), rows(kind, weight=(0.0,) * 4))
    assert none.abs().max() < 1e-6
    one, two = (gradient(rules.Nft(beta, 5.0), rows(kind, weight=(size,) * 4)) for size in (1.0, -2.0))
    torch.testing.assert_close(two, -2 * one)
    cut, past = (gradient(rules.Nft(beta, 5.0), rows(kind, weight=(size,) * 4)) for size in (5.0, 50.0))
    torch.testing.assert_close(past, cut)


def test_the_error_of_negative_aware_tuning_is_counted_in_pictures():
    given = rows("epsilon")
    error = process.to_x0("epsilon", given.prediction, given.xt, given.level) - given.x0
    wanted = (error**2).mean(dim=(1, 2, 3)) / error.abs().mean(dim=(1, 2, 3))
    torch.testing.assert_close(rules.Nft(1.0, 5.0).loss(rows("epsilon", weight=(5.0,) * 4)), wanted)


@pytest.mark.parametrize("rule", [rules.Advantage(0.5), rules.Nft(1.0, 5.0), rules.Kto(1.0)])
def test_better_pictures_draw_the_model_near_and_worse_ones_push_it_off(rule):
    given = rows(weight=(1.0, -1.0, 2.0, -3.0))
    toward = (gradient(rule, given) * (given.target - given.prediction)).sum(dim=(1, 2, 3))
    assert (toward * given.weight < 0).all()


def test_past_the_clip_a_picture_teaches_no_more():
    given = rows(weight=(1.0, -1.0, 2.0, -3.0), away=0.5)
    grad = gradient(rules.Advantage(0.01), given)
    assert (grad[0] == 0).all()
    assert (grad[2] == 0).all()
    assert grad[1].abs().max() > 0  # what is worse and has come nearer all the same is still pushed off
    assert gradient(rules.Advantage(100.0), rows(away=0.5))[0].abs().max() > 0


def test_pairs_are_compared_with_the_base_and_the_margin_is_the_papers():
    given = rows(away=0.1)
    better, worse = (given.reference_error() - given.error()).view(2, 2).unbind(dim=1)
    wanted = -torch.nn.functional.logsigmoid(3.0 / 2 * (better - worse))
    torch.testing.assert_close(rules.Dpo(3.0).loss(given), wanted)
    toward = (gradient(rules.Dpo(3.0), rows()) * (given.target - given.reference)).sum(dim=(1, 2, 3))
    assert (toward.sign() == torch.tensor([-1.0, 1.0, -1.0, 1.0])).all()


def test_ipo_wants_a_margin_of_a_half_and_no_more():
    given = rows(away=0.1)
    better, worse = (given.reference_error() - given.error()).view(2, 2).unbind(dim=1)
    torch.testing.assert_close(rules.Dpo(3.0, "ipo").loss(given), (1.5 * (better - worse) - 0.5) ** 2)


def test_a_rule_that_is_none_is_told_with_those_there_are():
    from raftdiff.diffusion.learning.finetuner import DiffusionFineTunerConfig

    with pytest.raises(UserError, match="learning") as told:
        check(DiffusionFineTunerConfig, {"learning": {"type": "nfd"}}, "recipe.yaml")
    assert all(name in str(told.value) for name in ("sft", "advantage", "nft", "dpo", "kto", "ddpo"))
