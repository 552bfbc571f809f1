"""The diffusion process against closed forms, and against diffusers' own."""

import math

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

from raftdiff.diffusion import process

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
PROCESSES = {
    "epsilon": process.diffusion(DDPMScheduler(**SD)),
    "v_prediction": process.diffusion(DDPMScheduler(**SD, prediction_type="v_prediction")),
    "flow": process.flow(3.0),
}
PLACES = torch.tensor([0, 1, 500, 998, 999])


def some(kind: str = "epsilon", seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, process.Level]:
    generator = torch.Generator().manual_seed(seed)
    x0, noise = torch.randn(2, 5, 4, 3, 3, generator=generator)
    return x0, noise, PROCESSES[kind].level[PLACES]


def test_diffusion_keeps_the_variance_and_is_that_of_diffusers():
    peer, ours = DDPMScheduler(**SD), PROCESSES["epsilon"]
    torch.testing.assert_close(ours.level.a**2 + ours.level.s**2, torch.ones(1000))
    torch.testing.assert_close(ours.level.a**2, peer.alphas_cumprod)
    assert torch.equal(ours.timesteps, torch.arange(1000))
    x0, noise, level = some()
    torch.testing.assert_close(process.add_noise(x0, noise, level), peer.add_noise(x0, noise, PLACES))
    torch.testing.assert_close(process.target("v_prediction", x0, noise, level), peer.get_velocity(x0, noise, PLACES))


def test_a_schedule_that_ends_in_pure_noise_ends_there_exactly():
    level = process.diffusion(DDPMScheduler(**SD, rescale_betas_zero_snr=True)).level
    assert (level.a[-1], level.s[-1]) == (0, 1)
    assert (level.a.diff() < 0).all()


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_is_a_straight_line_and_that_of_diffusers(shift):
    peer, ours = FlowMatchEulerDiscreteScheduler(shift=shift), process.flow(shift)
    torch.testing.assert_close(ours.level.s, peer.sigmas.flip(0))
    torch.testing.assert_close(ours.timesteps, peer.timesteps.flip(0))
    torch.testing.assert_close(ours.level.a + ours.level.s, torch.ones(1000))
    x0, noise, _ = some()
    noisy = process.add_noise(x0, noise, ours.level[PLACES])
    torch.testing.assert_close(noisy, peer.scale_noise(x0, peer.timesteps.flip(0)[PLACES], noise))
    ahead = process.add_noise(x0, noise, process.Level(torch.full((5,), 0.4), torch.full((5,), 0.6)))
    behind = process.add_noise(x0, noise, process.Level(torch.full((5,), 0.6), torch.full((5,), 0.4)))
    torch.testing.assert_close((ahead - behind) / 0.2, process.target("flow", x0, noise, ours.level[PLACES]))


@pytest.mark.parametrize("kind", PROCESSES)
def test_a_perfect_prediction_gives_back_picture_and_noise(kind):
    x0, noise, level = some(kind)
    xt, perfect = process.add_noise(x0, noise, level), process.target(kind, x0, noise, level)
    torch.testing.assert_close(process.to_x0(kind, perfect, xt, level), x0, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(process.to_noise(kind, perfect, xt, level), noise, atol=1e-4, rtol=1e-4)


def test_unknown_prediction_is_refused():
    with pytest.raises(ValueError, match="prediction type 'sample' is not one of epsilon, v_prediction, flow"):
        process.diffusion(DDPMScheduler(prediction_type="sample"))


def test_v_prediction_at_pure_noise_is_the_picture_negated():
    x0, noise, _ = some()
    nothing = process.of_abar(torch.zeros(5))
    torch.testing.assert_close(process.target("v_prediction", x0, noise, nothing), -x0)
    torch.testing.assert_close(process.to_x0("v_prediction", -x0, noise, nothing), x0)


def test_snr_closed_form():
    torch.testing.assert_close(process.of_abar(torch.tensor([0.0, 0.5, 0.8])).snr(), torch.tensor([0.0, 1.0, 4.0]))
    assert process.Level(torch.tensor([0.75]), torch.tensor([0.25])).snr() == 9


@pytest.mark.parametrize("kind", PROCESSES)
def test_min_snr_is_min_snr_gamma_times_the_x0_loss(kind):
    """Whatever the network predicts: weight times its squared error is min(SNR, gamma) times that of x0."""
    x0, noise, level = some(kind)
    level = process.Level(level.a[1:4], level.s[1:4]) if kind == "epsilon" else level[1:4]
    x0, noise = x0[1:4], noise[1:4]
    xt, perfect = process.add_noise(x0, noise, level), process.target(kind, x0, noise, level)
    wrong = perfect + 0.1
    weighed = process.min_snr_weight(kind, level, 5.0) * ((wrong - perfect) ** 2).mean(dim=(1, 2, 3))
    away = ((process.to_x0(kind, wrong, xt, level) - x0) ** 2).mean(dim=(1, 2, 3))
    torch.testing.assert_close(weighed, level.snr().clamp(max=5.0) * away, atol=1e-5, rtol=1e-3)


def test_min_snr_weights_closed_form():
    level = process.of_abar(torch.tensor([0.5, 0.9, 0.99]))  # SNR 1, 9, 99
    epsilon, v = (process.min_snr_weight(kind, level, 5.0) for kind in ("epsilon", "v_prediction"))
    torch.testing.assert_close(epsilon, torch.tensor([1.0, 5 / 9, 5 / 99]), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(v, torch.tensor([1 / 2, 5 / 10, 5 / 100]), atol=1e-5, rtol=1e-4)


def test_min_snr_at_pure_noise():
    nothing = process.of_abar(torch.zeros(1))
    assert process.min_snr_weight("epsilon", nothing, 5.0) == 1
    assert process.min_snr_weight("v_prediction", nothing, 5.0) == 0
    assert process.min_snr_weight("flow", nothing, 5.0) == 0


@pytest.mark.parametrize("kind", PROCESSES)
def test_pure_noise_is_seen_and_the_target_leads_to_the_picture(kind):
    x0, noise, level = some(kind)
    chosen = PLACES >= 998
    implied = process.pure_noise(noise, x0, level, chosen)
    xt = process.add_noise(x0, implied, level)
    torch.testing.assert_close(xt[chosen], noise[chosen], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(implied[~chosen], noise[~chosen], atol=0, rtol=0)
    wanted = process.target(kind, x0, implied, level)
    torch.testing.assert_close(process.to_x0(kind, wanted, xt, level), x0, atol=1e-4, rtol=1e-4)


def test_offset_noise_moves_whole_channels():
    noise = torch.zeros(2, 3, 4, 4)
    offset = torch.arange(6.0).view(2, 3)
    moved = process.offset_noise(noise, offset, 0.1)
    torch.testing.assert_close(moved, (0.1 * offset)[:, :, None, None].expand(2, 3, 4, 4))


def test_guidance_one_is_the_conditional_and_zero_the_unconditional():
    u, c = torch.zeros(3, 2), torch.ones(3, 2)
    got = process.guided(u, c, torch.tensor([0.0, 1.0, 7.5]))
    torch.testing.assert_close(got[:, 0], torch.tensor([0.0, 1.0, 7.5]))


def test_a_rescaled_guided_prediction_has_the_spread_of_the_conditional_one():
    u, c = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    strength = torch.tensor([1.0, 2.5, 7.5])
    plain, half, whole = (process.guided(u, c, strength, rescale) for rescale in (0.0, 0.5, 1.0))
    spreads = [it.flatten(1).std(dim=1) for it in (c, plain, half, whole)]
    torch.testing.assert_close(spreads[3], spreads[0])
    torch.testing.assert_close(spreads[2], (spreads[0] + spreads[1]) / 2)
    assert (spreads[1][1:] > 1.5 * spreads[0][1:]).all()
    torch.testing.assert_close(whole[0], c[0])


def test_stratified_timesteps_take_one_of_each_stretch():
    generator = torch.Generator().manual_seed(0)
    drawn = process.draw_places("stratified", 10, 1000, generator).sort().values
    assert (drawn // 100).tolist() == list(range(10))


@pytest.mark.parametrize("kind", ["uniform", "stratified", "logit_normal"])
def test_timesteps_stay_on_the_schedule_and_have_their_mean(kind):
    drawn = process.draw_places(kind, 4000, 1000, torch.Generator().manual_seed(1))
    assert drawn.min() >= 0
    assert drawn.max() <= 999
    assert abs(drawn.float().mean().item() - 499.5) < 5 * 1000 / math.sqrt(12 * 4000)


def test_unknown_timestep_sampling_is_refused():
    with pytest.raises(ValueError, match="timestep sampling 'x' is not one of uniform, stratified, logit_normal"):
        process.draw_places("x", 1, 10, torch.Generator())
