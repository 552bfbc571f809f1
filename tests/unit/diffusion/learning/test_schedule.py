"""The diffusion process against closed forms, and against diffusers' own."""

import math

import pytest
import torch
from diffusers import DDPMScheduler

from raftdiff.diffusion.learning import schedule

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def sd_abar() -> torch.Tensor:
    return schedule.alphas_cumprod(schedule.betas(0.00085, 0.012, 1000, "scaled_linear"))


def some(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x0, noise = torch.randn(2, 5, 4, 3, 3, generator=generator)
    timesteps = torch.tensor([0, 1, 500, 998, 999])
    return x0, noise, timesteps, sd_abar()[timesteps]


@pytest.mark.parametrize("kind", ["linear", "scaled_linear"])
def test_abar_is_that_of_diffusers(kind):
    peer = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule=kind)
    ours = schedule.alphas_cumprod(schedule.betas(0.00085, 0.012, 1000, kind))
    torch.testing.assert_close(ours, peer.alphas_cumprod)
    torch.testing.assert_close(schedule.of_scheduler(peer), ours)


def test_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match="beta schedule 'cosine' is not one of linear, scaled_linear"):
        schedule.betas(0.1, 0.2, 10, "cosine")


def test_zero_terminal_snr_keeps_the_first_step_and_empties_the_last():
    abar = sd_abar()
    rescaled = schedule.zero_terminal_snr(abar)
    assert rescaled[-1] == 0
    torch.testing.assert_close(rescaled[0], abar[0])
    assert (rescaled.diff() < 0).all()
    peer = DDPMScheduler(**SD, rescale_betas_zero_snr=True)
    torch.testing.assert_close(rescaled, peer.alphas_cumprod, atol=2e-6, rtol=1e-4)
    assert schedule.of_scheduler(peer)[-1] == 0


def test_noise_and_velocity_are_those_of_diffusers():
    x0, noise, timesteps, abar = some()
    peer = DDPMScheduler(**SD)
    torch.testing.assert_close(schedule.add_noise(x0, noise, abar), peer.add_noise(x0, noise, timesteps))
    torch.testing.assert_close(schedule.velocity(x0, noise, abar), peer.get_velocity(x0, noise, timesteps))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_a_perfect_prediction_gives_back_picture_and_noise(prediction_type):
    x0, noise, _, abar = some()
    xt = schedule.add_noise(x0, noise, abar)
    perfect = schedule.target(prediction_type, x0, noise, abar)
    torch.testing.assert_close(schedule.to_x0(prediction_type, perfect, xt, abar), x0, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(schedule.to_noise(prediction_type, perfect, xt, abar), noise, atol=1e-4, rtol=1e-4)


def test_unknown_prediction_is_refused():
    x0, noise, _, abar = some()
    with pytest.raises(ValueError, match="prediction type 'sample' is not one of epsilon, v_prediction"):
        schedule.target("sample", x0, noise, abar)


def test_v_prediction_at_pure_noise_is_the_picture_negated():
    x0, noise, _, _ = some()
    nothing = torch.zeros(5)
    torch.testing.assert_close(schedule.velocity(x0, noise, nothing), -x0)
    torch.testing.assert_close(schedule.to_x0("v_prediction", -x0, noise, nothing), x0)


def test_snr_closed_form():
    torch.testing.assert_close(schedule.snr(torch.tensor([0.0, 0.5, 0.8])), torch.tensor([0.0, 1.0, 4.0]))


def test_min_snr_weights_closed_form():
    abar = torch.tensor([0.5, 0.9, 0.99])  # SNR 1, 9, 99
    ratio = torch.tensor([1.0, 9.0, 99.0])
    epsilon = schedule.min_snr_weight("epsilon", abar, 5.0)
    torch.testing.assert_close(epsilon, torch.tensor([1.0, 5 / 9, 5 / 99]), atol=1e-5, rtol=1e-4)
    v = schedule.min_snr_weight("v_prediction", abar, 5.0)
    torch.testing.assert_close(v, torch.tensor([1 / 2, 5 / 10, 5 / 100]), atol=1e-5, rtol=1e-4)
    # both are the same x0 loss: weight * SNR for epsilon, weight * (SNR + 1) for v, is min(SNR, gamma)
    torch.testing.assert_close(epsilon * ratio, v * (ratio + 1), atol=1e-4, rtol=1e-4)


def test_min_snr_at_pure_noise():
    nothing = torch.zeros(1)
    assert schedule.min_snr_weight("epsilon", nothing, 5.0) == 1
    assert schedule.min_snr_weight("v_prediction", nothing, 5.0) == 0


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_pure_noise_is_seen_and_the_target_leads_to_the_picture(prediction_type):
    x0, noise, timesteps, abar = some()
    chosen = timesteps >= 998
    implied = schedule.pure_noise(noise, x0, abar, chosen)
    xt = schedule.add_noise(x0, implied, abar)
    torch.testing.assert_close(xt[chosen], noise[chosen], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(implied[~chosen], noise[~chosen], atol=0, rtol=0)
    wanted = schedule.target(prediction_type, x0, implied, abar)
    torch.testing.assert_close(schedule.to_x0(prediction_type, wanted, xt, abar), x0, atol=1e-4, rtol=1e-4)


def test_offset_noise_moves_whole_channels():
    noise = torch.zeros(2, 3, 4, 4)
    offset = torch.arange(6.0).view(2, 3)
    moved = schedule.offset_noise(noise, offset, 0.1)
    torch.testing.assert_close(moved, (0.1 * offset)[:, :, None, None].expand(2, 3, 4, 4))


def test_guidance_one_is_the_conditional_and_zero_the_unconditional():
    u, c = torch.zeros(3, 2), torch.ones(3, 2)
    got = schedule.guided(u, c, torch.tensor([0.0, 1.0, 7.5]))
    torch.testing.assert_close(got[:, 0], torch.tensor([0.0, 1.0, 7.5]))


def test_stratified_timesteps_take_one_of_each_stretch():
    generator = torch.Generator().manual_seed(0)
    drawn = schedule.draw_timesteps("stratified", 10, 1000, generator).sort().values
    assert (drawn // 100).tolist() == list(range(10))


@pytest.mark.parametrize("kind", ["uniform", "stratified", "logit_normal"])
def test_timesteps_stay_on_the_schedule_and_have_their_mean(kind):
    drawn = schedule.draw_timesteps(kind, 4000, 1000, torch.Generator().manual_seed(1))
    assert drawn.min() >= 0
    assert drawn.max() <= 999
    assert abs(drawn.float().mean().item() - 499.5) < 5 * 1000 / math.sqrt(12 * 4000)


def test_unknown_timestep_sampling_is_refused():
    with pytest.raises(ValueError, match="timestep sampling 'x' is not one of uniform, stratified, logit_normal"):
        schedule.draw_timesteps("x", 1, 10, torch.Generator())
