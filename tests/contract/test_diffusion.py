"""The diffusion sampler and fine-tuner keep the contracts that raftdiff.testing.conformance states."""

import pytest

from raftdiff.diffusion.learning.finetuner import DiffusionFineTunerConfig
from raftdiff.diffusion.models import tiny
from raftdiff.diffusion.models.loading import ModelConfig, load
from raftdiff.diffusion.sampler import DiffusionSamplerConfig
from raftdiff.testing.conformance import check_finetuner, check_sampler
from raftdiff.types import Item, Prompt, Selection

# diffusers asks numpy for an array in a way that numpy 2 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PROMPTS = [Prompt(name, name, name, name) for name in ("a cat", "a dog", "a cow")]
SAMPLERS = [
    {"scheduler": "dpm++", "guidance": 3.0, "batch_size": 4},
    {"scheduler": "euler_a", "guidance": 1.0, "batch_size": 2},
    {"scheduler": "ddim", "eta": 0.5, "guidance": 3.0, "batch_size": 4},
]
FULL, GUIDED = {"adapter": "full", "ema": 0.9}, {"loss_on": "guided", "anchor": 0.1, "train_text_encoder": True}
TUNERS = {
    "lora": ("sd15", {}),
    "full": ("sd15", FULL),
    "guided": ("sd15", GUIDED),
    "v": ("sd21", {}),
    "zero-snr": ("sd21_zero_snr", GUIDED),
    "sdxl-full": ("sdxl", FULL),
    "sdxl-guided": ("sdxl", GUIDED),
}


@pytest.fixture(scope="module", params=["sd15", "sd21", "sd21_zero_snr", "sdxl"])
def folder(request, tmp_path_factory):
    return tiny.write_folder(tmp_path_factory.mktemp("models") / request.param, request.param)


def model(folder):
    return load(ModelConfig(base=str(folder)))


@pytest.fixture(scope="module")
def parts(folder):
    """For tests that only draw with it."""
    return model(folder)


@pytest.mark.parametrize("config", SAMPLERS, ids=lambda config: config["scheduler"])
def test_sampler(parts, config):
    made = DiffusionSamplerConfig(steps=2, **config)
    sampler = made.build(parts, made.can_provide if made.scheduler in parts.family.paths else ("latent",))
    check_sampler(sampler, PROMPTS, per_prompt=2).demand()


@pytest.mark.parametrize(("folder", "config"), TUNERS.values(), ids=TUNERS, indirect=["folder"])
def test_finetuner(folder, parts, config):
    sampler = DiffusionSamplerConfig(steps=2).build(parts)
    samples = {s.key: s for s in sampler.sample(PROMPTS, per_prompt=1, seed=0, round=0, done=set())}
    selection = Selection("weighted", tuple(Item((key,)) for key in samples))

    def build():
        tuner = DiffusionFineTunerConfig(steps=1, batch_size=2, **config)
        return tuner.build(model(folder), total_rounds=3, guidance=2.0, seed=0)

    check_finetuner(build, selection, samples).demand()
