"""The steps of a sampler as Gaussians: those of diffusers, and a gradient that is the expected reward's."""

import itertools

import pytest
import torch

from raftdiff.diffusion import process
from raftdiff.diffusion.families.texts import Texts
from raftdiff.diffusion.learning import losses
from raftdiff.diffusion.learning.lessons import Part, Places, Steps
from raftdiff.diffusion.learning.policy_gradient import (
    Chain,
    chain_of,
    clipped,
    ddim_deviation,
    ddim_mean,
    log_ratio,
)
from raftdiff.diffusion.learning.rules import Ddpo
from raftdiff.diffusion.models.loading import ModelConfig, load
from raftdiff.diffusion.process import to_x0
from raftdiff.diffusion.sampler import DiffusionSamplerConfig
from raftdiff.errors import UserError
from raftdiff.types import Prompt

SHAPE = (4, 3, 3)


def solver(kind="v_prediction", steps=5, **changes):
    import diffusers

    plain = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
    scheduler = diffusers.DDIMScheduler(**{**plain, "prediction_type": kind, **changes})
    scheduler.set_timesteps(steps)
    return scheduler


LEADING = {"set_alpha_to_one": False, "steps_offset": 1}
LINSPACE = {"timestep_spacing": "linspace", "set_alpha_to_one": False}
ZERO_SNR = {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True}


@pytest.mark.parametrize("eta", [0.3, 0.99999])
@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        pytest.param("epsilon", LEADING, id="epsilon-leading"),
        pytest.param("epsilon", LINSPACE, id="epsilon-linspace"),
        pytest.param("v_prediction", LEADING, id="v-leading"),
        pytest.param("v_prediction", LINSPACE, id="v-linspace"),
        pytest.param("v_prediction", ZERO_SNR, id="v-zero-snr"),
    ],
)
def test_each_step_has_the_mean_and_the_deviation_of_diffusers_own(kind, changes, eta):
    scheduler = solver(kind, **changes)
    chain = chain_of(scheduler, eta, 1.0)
    prediction, xt, noise = torch.randn(3, 1, *SHAPE, generator=torch.Generator().manual_seed(0))
    for place, timestep in enumerate(scheduler.timesteps):
        still, moved = (
            scheduler.step(prediction, timestep, xt, eta=eta, variance_noise=drawn, return_dict=False)[0]
            for drawn in (torch.zeros_like(noise), noise)
        )
        level, following, deviation = (it[place : place + 1] for it in (chain.level, chain.following, chain.deviation))
        mean = ddim_mean(kind, prediction, xt, level=level, following=following, deviation=deviation)
        torch.testing.assert_close(mean, still, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(deviation * noise, moved - still, atol=2e-5, rtol=1e-4)


def test_the_last_step_is_left_out_where_it_leads_to_the_picture_itself():
    whole = chain_of(solver(set_alpha_to_one=False, steps_offset=1), 1.0, 1.0)
    assert whole.random().tolist() == [0, 1, 2, 3, 4]
    ends = chain_of(solver(set_alpha_to_one=True), 1.0, 1.0)
    assert ends.deviation[-1] == 0
    assert ends.random().tolist() == [0, 1, 2, 3]
    with pytest.raises(UserError, match="sampler.steps: no step of this sampler draws noise"):
        chain_of(solver(set_alpha_to_one=True, steps=1), 1.0, 1.0).random()


@pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")
@pytest.mark.parametrize("changes", [{}, {"use_karras_sigmas": True}, {"timestep_spacing": "trailing"}])
def test_the_levels_of_dpm_are_those_at_which_it_works(changes):
    """Between the timesteps too; and it does not clip, whatever a scheduler of another kind left in its config."""
    import diffusers

    scheduler = diffusers.DPMSolverMultistepScheduler.from_config({**solver().config, "clip_sample": True, **changes})
    scheduler.set_timesteps(5)
    chain = chain_of(scheduler, 0.0, 1.0)
    said, xt = torch.randn(2, 1, *SHAPE, generator=torch.Generator().manual_seed(0))
    for place in range(5):
        scheduler._step_index = place
        x0 = scheduler.convert_model_output(said, sample=xt)
        torch.testing.assert_close(to_x0("v_prediction", said, xt, chain.level[place : place + 1]), x0)
    assert (chain.following.a[-1], chain.following.s[-1]) == (1, 0)
    assert torch.equal(chain.following.a[:-1], chain.level.a[1:])


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(
    ("name", "eta", "random"),
    [
        pytest.param("EulerDiscreteScheduler", 0.0, 0, id="euler"),
        pytest.param("EulerAncestralDiscreteScheduler", 0.0, 3, id="euler_a"),
        pytest.param("LCMScheduler", 0.0, 3, id="lcm"),
        pytest.param("TCDScheduler", 0.0, 0, id="tcd"),
        pytest.param("TCDScheduler", 0.3, 3, id="tcd-0.3"),
        pytest.param("TCDScheduler", 0.99999, 3, id="tcd-1"),
    ],
)
def test_each_of_few_steps_has_the_mean_and_the_deviation_of_diffusers_own(name, eta, random, kind):
    """What Euler's solvers step on is what the network sees, times the root of 1 + sigma^2."""
    import diffusers

    changes = {"prediction_type": kind, "timestep_spacing": "trailing"}
    scheduler = getattr(diffusers, name).from_config(solver().config, **changes)
    scheduler.set_timesteps(4)
    chain, extra = chain_of(scheduler, eta, 1.0), {"eta": eta} if name.startswith("TCD") else {}
    said, xt = torch.randn(2, 1, *SHAPE, generator=torch.Generator().manual_seed(0))
    assert len(torch.nonzero(chain.deviation)) == random
    for place, timestep in enumerate(scheduler.timesteps):
        level, following, deviation = (it[place : place + 1] for it in (chain.level, chain.following, chain.deviation))
        before, after = (1 / level.a, 1 / following.a) if name.startswith("Euler") else (1.0, 1.0)
        torch.testing.assert_close(scheduler.scale_model_input(xt * before, timestep), xt)
        then = scheduler.step(
            said, timestep, xt * before, generator=torch.Generator().manual_seed(place), return_dict=False, **extra
        )[0]
        noise = torch.randn(xt.shape, generator=torch.Generator().manual_seed(place))
        mean = ddim_mean(kind, said, xt, level=level, following=following, deviation=deviation)
        torch.testing.assert_close(mean + deviation * noise, then / after, atol=2e-5, rtol=2e-4)


@pytest.mark.parametrize("stochastic", [False, True])
def test_each_step_of_a_flow_has_the_mean_and_the_deviation_of_diffusers_own(stochastic):
    """Euler's step of a flow is DDIM's with these levels; diffusers' stochastic one draws all of its noise anew."""
    import diffusers

    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, stochastic_sampling=stochastic)
    scheduler.set_timesteps(5)
    chain = chain_of(scheduler, 0.0, 1.0, flow=True)
    said, xt = torch.randn(2, 1, *SHAPE, generator=torch.Generator().manual_seed(0))
    for place, timestep in enumerate(scheduler.timesteps):
        generator = torch.Generator().manual_seed(place)
        then = scheduler.step(said, timestep, xt, generator=generator, return_dict=False)[0]
        noise = torch.randn(xt.shape, generator=torch.Generator().manual_seed(place))
        level, following, deviation = (it[place : place + 1] for it in (chain.level, chain.following, chain.deviation))
        mean = ddim_mean("flow", said, xt, level=level, following=following, deviation=deviation)
        torch.testing.assert_close(mean + deviation * noise, then, atol=1e-5, rtol=1e-5)
    assert (chain.following.a[-1], chain.following.s[-1]) == (1, 0)
    assert len(chain.random()) == 4 if stochastic else (chain.deviation == 0).all()


def test_an_ancestral_step_of_a_flow_keeps_its_levels():
    """With a perfect prediction of x0 what is drawn has the mean a' x0 and the deviation s', whatever eta."""
    level, following = process.Level(*torch.tensor([[0.2], [0.8]])), process.Level(*torch.tensor([[0.5], [0.5]]))
    noise, again = torch.randn(2, 1, 200_000, generator=torch.Generator().manual_seed(0)).double()
    x0 = torch.full_like(noise, 3.0)
    xt = process.add_noise(x0, noise, level)
    for eta in (0.0, 0.5, 1.0):
        deviation = ddim_deviation(level, following, eta)
        mean = ddim_mean(
            "flow", process.target("flow", x0, noise, level), xt, level=level, following=following, deviation=deviation
        )
        then = mean + deviation * again
        assert float(then.mean()) == pytest.approx(1.5, abs=0.01)
        assert float(then.std()) == pytest.approx(0.5, rel=0.01)
        assert float(deviation) == pytest.approx(eta * 0.5 / 0.8 * (0.8**2 - (0.2 * 0.5 / 0.5) ** 2) ** 0.5)


def test_a_model_whose_steps_are_clipped_is_refused():
    with pytest.raises(UserError, match="steps that are clipped cannot be learnt from.*clip_sample or thresholding"):
        chain_of(solver(clip_sample=True), 1.0, 1.0)


def test_the_log_ratio_is_that_of_two_gaussians_a_number_of_the_latent():
    drawn, mean, old = torch.randn(3, 2, *SHAPE, generator=torch.Generator().manual_seed(1))
    deviation = torch.tensor([0.5, 2.0])
    spread = deviation.view(-1, 1, 1, 1)
    wanted = torch.distributions.Normal(mean, spread).log_prob(drawn)
    wanted = (wanted - torch.distributions.Normal(old, spread).log_prob(drawn)).mean(dim=(1, 2, 3))
    torch.testing.assert_close(log_ratio(drawn, mean, old, deviation), wanted)
    assert (log_ratio(drawn, old, old, deviation) == 0).all()


@pytest.mark.parametrize(
    ("advantage", "ratio", "loss", "slope"),
    [
        (2.0, 1.0, -2.0, -2.0),
        (2.0, 1.05, -2.1, -2.0),
        (2.0, 1.2, -2.2, 0.0),  # likelier by the clip, and enough
        (2.0, 0.8, -1.6, -2.0),
        (-2.0, 0.8, 1.8, 0.0),  # less likely by the clip, and enough
        (-2.0, 1.2, 2.4, 2.0),
        (0.0, 1.2, 0.0, 0.0),
    ],
)
def test_past_the_clip_a_step_teaches_no_more(advantage, ratio, loss, slope):
    rho = torch.tensor([ratio], requires_grad=True)
    found = clipped(rho, torch.tensor([advantage]), 0.1)
    found.sum().backward()
    torch.testing.assert_close(found, torch.tensor([loss]))
    torch.testing.assert_close(rho.grad, torch.tensor([slope]))


def test_advantages_are_cut_and_steps_outside_the_clip_counted():
    rule, change = Ddpo(clip=0.1, most=3.0), torch.tensor([0.0, 0.05, 0.2, -0.2])
    torch.testing.assert_close(rule.loss(torch.zeros(2), torch.tensor([9.0, -9.0])), torch.tensor([-3.0, 3.0]))
    figures = {name: float(value) for name, value in rule.figures(change).items()}
    assert figures == pytest.approx({"clipped": 2.0, "approx_kl": (0.05**2 + 2 * 0.2**2) / 2})


def formula(value):
    """A network that says one number wherever it is asked, twice the number with the caption of ones."""

    def predict(xt, timesteps, embeddings):
        del timesteps
        return (value * (1 + embeddings.tokens.mean(dim=(1, 2)))).view(-1, 1, 1, 1).expand_as(xt)

    return predict


def drawn_by(value, chain, count, guidance, seed=0):
    """Paths of the formula's own, of one number each."""
    generator = torch.Generator().manual_seed(seed)
    path = [torch.randn(count, 1, 1, 1, generator=generator)]
    for place in range(len(chain.timesteps)):
        said = torch.full_like(path[-1], value * (1 + guidance))  # away 1, toward 2
        at = torch.full((count,), place)
        level, following, deviation = (it[at] for it in (chain.level, chain.following, chain.deviation))
        mean = ddim_mean("v_prediction", said, path[-1], level=level, following=following, deviation=deviation)
        path.append(mean + deviation[0] * torch.randn(mean.shape, generator=generator))
    return torch.stack(path, dim=1)


def part(paths, at, weights):
    count = len(paths)
    return Part(paths, Places(at), Texts(torch.ones(count, 1, 1)), Texts(torch.zeros(count, 1, 1)), weights)


def never(*_):
    raise AssertionError("the base was asked without an anchor")


def steps(chain, clip=1e-4, anchor=0.0):
    return Steps(chain, Ddpo(clip, 1e9), "v_prediction", "uniform", anchor)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_gradient_over_all_steps_is_that_of_the_expected_reward(guidance):
    """The reward is the number that a path ends in, whose mean is linear in what the network says."""
    chain = chain_of(solver(set_alpha_to_one=False, steps_offset=1), 1.0, guidance)
    count = 100_000
    value = torch.tensor(0.3, requires_grad=True)
    paths = drawn_by(0.3, chain, count, guidance)
    ends = paths[:, -1].flatten()
    advantage = ends - ends.mean()
    for place in range(len(chain.timesteps)):
        at = torch.full((count,), place)
        terms = steps(chain).terms(
            part(paths, at, advantage), losses.Networks(formula(value), never, formula(value.detach()))
        )
        (terms.loss / count).backward()
    there, back = (drawn_by(0.3 + move, chain, count, guidance)[:, -1].mean() for move in (0.01, -0.01))
    expected = float(there - back) / 0.02  # the same noise: exact but for rounding
    assert -float(value.grad) == pytest.approx(expected, rel=0.05)
    assert abs(expected) > 0.1


def test_at_the_policy_that_drew_the_loss_is_minus_the_advantage():
    chain = chain_of(solver(set_alpha_to_one=False), 1.0, 3.0)
    paths, weights = drawn_by(0.3, chain, 4, 3.0), torch.tensor([1.0, -2.0, 0.5, 3.0])
    networks = losses.Networks(formula(torch.tensor(0.3)), never, formula(torch.tensor(0.3)))
    terms = steps(chain).terms(part(paths, torch.tensor([0, 1, 2, 3]), weights), networks)
    assert float(terms.loss) == -2.5
    assert terms.evaluations == 4 * 4
    assert terms.figures == {"clipped": 0, "approx_kl": 0.0}


def test_an_anchor_is_the_distance_of_the_captions_prediction_from_the_base():
    chain = chain_of(solver(set_alpha_to_one=False), 1.0, 3.0)
    networks = losses.Networks(*(formula(torch.tensor(value)) for value in (0.3, 0.1, 0.3)))
    given = part(drawn_by(0.3, chain, 4, 3.0), torch.zeros(4).long(), torch.zeros(4))
    terms = steps(chain, anchor=0.5).terms(given, networks)
    torch.testing.assert_close(terms.anchor, torch.tensor(4 * 0.5 * 0.4**2))
    assert terms.evaluations == 4 * 5


def test_a_network_follows_its_reward():
    """Rounds of drawing and one step of learning: what paths end in rises, from round to round on the same noise."""
    chain, value = chain_of(solver(set_alpha_to_one=False), 1.0, 1.0), torch.tensor(0.0, requires_grad=True)
    lesson, optimizer = steps(chain), torch.optim.SGD([value], lr=0.02)
    held = [float(drawn_by(0.0, chain, 500, 1.0, seed=99)[:, -1].mean())]
    for turn in range(6):
        paths = drawn_by(float(value.detach()), chain, 500, 1.0, seed=turn)
        ends = paths[:, -1].flatten()
        at = lesson.draw(paths.shape, torch.Generator().manual_seed(turn)).at
        given = part(paths, at, (ends - ends.mean()) / ends.std())
        terms = lesson.terms(given, losses.Networks(formula(value), never, formula(value.detach().clone())))
        optimizer.zero_grad()
        (terms.loss / 500).backward()
        optimizer.step()
        held.append(float(drawn_by(float(value.detach()), chain, 500, 1.0, seed=99)[:, -1].mean()))
    assert held[-1] > held[0] + 0.02
    assert sum(after > before for before, after in itertools.pairwise(held)) >= 5


def test_steps_are_shown_evenly_and_never_the_one_without_noise():
    chain = chain_of(solver(set_alpha_to_one=True), 1.0, 1.0)
    lesson = Steps(chain, Ddpo(1e-4, 5.0), "v_prediction", "stratified", 0.0)
    at = lesson.draw(torch.Size((12, 6, *SHAPE)), torch.Generator().manual_seed(0)).at
    assert torch.bincount(at, minlength=5).tolist() == [3, 3, 3, 3, 0]


@pytest.mark.parametrize("kind", ["sd15", "sd21_zero_snr"])
def test_what_the_sampler_records_is_the_chain(models, kind):
    """Each step is its mean and the noise that the sample's own generator gave; the path ends in the latent."""
    parts = load(ModelConfig(base=str(models[kind])))
    config = DiffusionSamplerConfig(steps=4, guidance=2.0, scheduler="ddim", eta=1.0, batch_size=4)
    sampler, prompts = config.build(parts, ("latent", "path")), [Prompt(name, name, name, name, "bad") for name in "ab"]
    samples = list(sampler.sample(prompts, per_prompt=8, seed=0, round=0, done=set()))
    plain = list(config.build(parts).sample(prompts, per_prompt=8, seed=0, round=0, done=set()))
    chain = chain_of(sampler.solver(), config.effective_eta, 2.0)
    assert set(plain[0].aux) == {"latent"}
    paths = torch.stack([sample.aux["path"] for sample in samples])
    assert paths.shape == (16, 5, 4, 8, 8)
    for sample, same in zip(samples, plain, strict=True):
        assert torch.equal(sample.aux["path"][-1], sample.aux["latent"])
        assert torch.equal(sample.aux["latent"], same.aux["latent"])
    captions, against = parts.prompts([s.prompt.caption for s in samples]), parts.prompts(["bad"] * 16)
    generators = [torch.Generator().manual_seed(sample.seed) for sample in samples]
    first, *noises = (
        torch.stack([torch.randn(4, 8, 8, generator=generator) for generator in generators]) for _ in range(5)
    )
    assert torch.equal(paths[:, 0], first)
    for place in chain.random().tolist():
        xt, then = paths[:, place], paths[:, place + 1]
        timesteps = chain.timesteps[place].expand(16)
        with torch.no_grad():
            away, toward = (parts.predict(xt, timesteps, text) for text in (against, captions))
        at = torch.full((16,), place)
        level, following, deviation = (it[at] for it in (chain.level, chain.following, chain.deviation))
        said = away + 2.0 * (toward - away)
        mean = ddim_mean(parts.process.predicts, said, xt, level=level, following=following, deviation=deviation)
        torch.testing.assert_close(then, mean + deviation.view(-1, 1, 1, 1) * noises[place], atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("scheduler", ["euler_a", "lcm"])
def test_what_a_few_step_sampler_records_is_the_chain(models, scheduler):
    parts = load(ModelConfig(base=str(models["sdxl_turbo"])))
    config = DiffusionSamplerConfig(steps=4, guidance=1.0, scheduler=scheduler, batch_size=1)
    sampler = config.build(parts, ("latent", "path"))
    (sample,) = sampler.sample([Prompt("a", "a", "a", "a")], per_prompt=1, seed=0, round=0, done=set())
    chain, path = chain_of(sampler.solver(), 0.0, 1.0), sample.aux["path"]
    generator = torch.Generator().manual_seed(sample.seed)
    noises = [torch.randn(1, 4, 8, 8, generator=generator) for _ in range(5)]
    torch.testing.assert_close(path[:1], noises[0] * (chain.level.s[0] if scheduler == "euler_a" else 1.0))
    assert torch.equal(path[-1], sample.aux["latent"])
    for place in range(4):
        xt, then = path[place : place + 1], path[place + 1 : place + 2]
        with torch.no_grad():
            said = parts.predict(xt, chain.timesteps[place].expand(1), parts.prompts(["a"]))
        level, following, deviation = (it[place : place + 1] for it in (chain.level, chain.following, chain.deviation))
        mean = ddim_mean("epsilon", said, xt, level=level, following=following, deviation=deviation)
        drawn = noises[min(place + 1, 4)] * deviation
        torch.testing.assert_close(mean + drawn, then, atol=2e-4, rtol=2e-4)


def test_a_chain_is_on_the_cpu_and_of_the_samplers_length():
    chain = chain_of(solver(steps=7, set_alpha_to_one=False), 0.5, 2.0)
    assert isinstance(chain, Chain)
    assert {len(it) for it in (chain.timesteps, chain.level, chain.following, chain.deviation)} == {7}
    torch.testing.assert_close(
        chain.deviation * 2, chain_of(solver(steps=7, set_alpha_to_one=False), 1.0, 2.0).deviation
    )
