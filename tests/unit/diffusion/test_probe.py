"""The plan's arithmetic against what a round really does, and a measurement that leaves no trace."""

from types import SimpleNamespace

import pytest
import torch

from raftdiff.cli.pictures.plan import _pace_of_watched
from raftdiff.diffusion import probe
from raftdiff.diffusion.learning.finetuner import DiffusionFineTunerConfig
from raftdiff.diffusion.learning.policy_gradient import chain_of
from raftdiff.diffusion.models.loading import ModelConfig, load
from raftdiff.diffusion.probe import Probe, count, measure, traffic
from raftdiff.diffusion.sampler import DiffusionSamplerConfig
from raftdiff.types import Item, Prompt, Selection, silent

# diffusers asks numpy for an array in a way that numpy 2 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SAMPLER = DiffusionSamplerConfig(steps=3, batch_size=4, guidance=3.0)
TUNER = DiffusionFineTunerConfig(
    steps=50, exposures=2.5, batch_size=2, gradient_accumulation=2, loss_on="guided", anchor=0.1
)


@pytest.mark.parametrize(
    "changes", [{}, {"exposures": None, "steps": 2}, {"loss_on": "conditional"}, {"guidance": 1.0}, {"steps": 0}]
)
def test_counts_are_those_of_a_round(models, changes):
    parts = load(ModelConfig(base=str(models["sd15"])))
    config = TUNER.model_copy(update=changes)
    sampler, tuner = SAMPLER.build(parts), config.build(parts, total_rounds=1, guidance=3.0, seed=0)
    prompts = [Prompt(name, name, name, name) for name in ("a", "b", "c")]
    samples = {s.key: s for s in sampler.sample(prompts, per_prompt=2, seed=0, round=0, done=set())}
    chosen = list(samples)[:5]
    figures = tuner.fit(Selection("weighted", tuple(Item((k,)) for k in chosen)), samples, seed=0, report=silent)
    planned = count(SAMPLER, config, prompts=3, per_prompt=2, selected=5)
    assert planned.images == len(samples)
    assert planned.sampling_evaluations == sampler.network_evaluations()
    assert planned.tuning_steps == figures["steps"]
    assert planned.tuning_rows == pytest.approx(figures["exposures_mean"] * 5)
    assert planned.tuning_evaluations == figures["network_evaluations"] - 2 * 5


def test_traffic_is_at_most_that_of_the_largest_size(models):
    parts = load(ModelConfig(base=str(models["sd15"])))
    several, largest = (DiffusionSamplerConfig(sizes=sizes) for sizes in ([(16, 16), (32, 16)], [(32, 16)]))
    tuner = TUNER.build(parts, total_rounds=1, guidance=3.0, seed=0)
    assert traffic(several.build(parts), tuner, images=2) == traffic(largest.build(parts), tuner, images=2)
    assert traffic(largest.build(parts), tuner, images=2).from_all > 2 * 3 * 16 * 32


class Light:
    name = "light"

    def score(self, samples):
        raise AssertionError

    def graded(self, pixels, prompts):
        del prompts
        return pixels.mean(dim=(1, 2, 3))


@pytest.mark.parametrize(
    ("learning", "guidance", "anchor", "each"),
    [
        ({"type": "ddpo"}, 3.0, 0.1, 5),
        ({"type": "ddpo"}, 1.0, 0.0, 2),
        ({"type": "draft", "steps": 2}, 3.0, 0.1, 5),
        ({"type": "refl"}, 1.0, 0.0, 1),
    ],
)
def test_steps_of_paths_are_counted_by_the_guidance_that_they_were_drawn_with(models, learning, guidance, anchor, each):
    parts = load(ModelConfig(base=str(models["sd15"])))
    drawing = SAMPLER.model_copy(update={"scheduler": "ddim", "eta": 1.0, "guidance": guidance})
    config = DiffusionFineTunerConfig(learning=learning, exposures=2.5, batch_size=2, anchor=anchor)
    sampler = drawing.build(parts, config.requires.aux)
    chain = chain_of(sampler.solver(), drawing.effective_eta, guidance)
    tuner = config.build(parts, total_rounds=1, guidance=7.0, seed=0, chains={(8, 8): chain}, rewards=[(Light(), 1.0)])
    prompts = [Prompt(name, name, name, name) for name in ("a", "b")]
    samples = {s.key: s for s in sampler.sample(prompts, per_prompt=2, seed=0, round=0, done=set())}
    chosen = Selection(config.requires.kinds[0], tuple(Item((key,)) for key in samples))
    figures = tuner.fit(chosen, samples, seed=0, report=silent)
    planned = count(drawing, config, prompts=2, per_prompt=2, selected=4, guidance=7.0)
    assert planned.tuning_evaluations == planned.tuning_rows * each == figures["network_evaluations"] - 2 * 4
    assert measure(sampler, tuner).seconds_per_tuned_row > 0


def test_the_time_of_a_round_adds_up():
    probe = Probe(0.1, 0.5, 1.0, 0, 0, 0)
    counts = count(SAMPLER, TUNER, prompts=3, per_prompt=2, selected=4)
    assert probe.seconds_per_round(counts) == pytest.approx(36 * 0.1 + 6 * 0.5 + 10 * 1.0)


@pytest.mark.parametrize(
    ("drawing", "size", "apart"),
    [({}, (16, 16), False), ({}, (32, 32), True), ({"reuse": {"every": 2}}, (16, 16), True)],
)
def test_what_is_held_out_is_timed_as_it_is_drawn(drawing, size, apart, monkeypatch):
    """By a plan: the candidates may be smaller, or drawn by less of the network."""
    own = SimpleNamespace(config=DiffusionSamplerConfig(**drawing), sizes=((16, 16),))
    watcher = SimpleNamespace(sizes=(size,))
    monkeypatch.setattr(probe, "pace", lambda sampler: (7.0, 8.0, None) if sampler is watcher else None)
    found = _pace_of_watched(SimpleNamespace(sampler=own, evaluator=watcher), Probe(0.1, 0.5, 1.0, 0, 0, 0))
    assert found == ((7.0, 8.0) if apart else (0.1, 0.5))


def test_measuring_leaves_no_trace(models):
    parts = load(ModelConfig(base=str(models["sd15"])))
    plain = sum(p.numel() for m in (parts.denoiser, parts.vae, parts.modules["text_encoder"]) for p in m.parameters())
    sampler, tuner = SAMPLER.build(parts), TUNER.build(parts, total_rounds=1, guidance=3.0, seed=0)
    before = tuner.state_dict()
    probe = measure(sampler, tuner)
    after = tuner.state_dict()
    assert all(torch.equal(before[stem][name], after[stem][name]) for stem in before for name in before[stem])
    assert set(after["optimizer"]) == set(before["optimizer"])
    assert tuner.config is TUNER
    assert probe.model_parameters == plain
    assert probe.trained_parameters == tuner.parameter_count() > 0
    assert min(probe.seconds_per_evaluation, probe.seconds_per_decode, probe.seconds_per_tuned_row) > 0
    assert probe.memory_bytes > 1e7
