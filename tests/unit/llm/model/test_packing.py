"""Packing changes what is computed, never what comes out."""

from pathlib import Path

import pytest
import torch

from raftdiff.errors import UserError
from raftdiff.llm.learning.finetuner import LMFineTuner, LMFineTunerConfig
from raftdiff.llm.model import tiny
from raftdiff.llm.model.loading import LM, LMConfig, load
from raftdiff.llm.model.network import Network
from raftdiff.llm.model.packing import pack, packed_lp
from raftdiff.llm.model.rows import Row, collate
from raftdiff.recipes.config import check
from raftdiff.types import Item, Key, Prompt, Sample, Selection, silent

WORDS = ("the", "film", "was", "good", "bad", "dull", "long", "and")
ROWS = [
    Row((1, 4, 5), (6, 7, 2)),
    Row((1, 4), (2,)),
    Row((1, 4, 10, 5), (6, 9, 11, 7, 2)),
    Row((1,), (2,)),
    Row((1, 5), (6, 8, 11, 9, 2)),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("lm") / "lm", WORDS)


@pytest.fixture
def lm(folder: Path) -> LM:
    return load(LMConfig(base=str(folder)), str)


def network(lm: LM) -> Network:

    return Network(lm, torch.float32)


def test_the_log_probabilities_are_those_of_each_text_alone(lm: LM) -> None:
    batch = collate(ROWS, lm.pad)
    with torch.no_grad():
        plain, packed = network(lm).lp(batch), packed_lp(network(lm), batch)
    assert packed.shape == plain.shape
    torch.testing.assert_close(packed[batch.mask], plain[batch.mask], atol=1e-5, rtol=0)


def test_less_is_computed() -> None:
    packed = pack(collate(ROWS, 0))
    assert packed.ids.shape == (3, 9), "5 rows of 9 tokens were 45; these are 27"
    assert sum(len(row.prompt) + len(row.answer) for row in ROWS) == 27, "all of them real"
    assert packed.positions[packed.bins[0], packed.starts[0]] == 0, "each text counts from its own beginning"


def test_no_text_sees_another() -> None:
    packed = pack(collate(ROWS, 0))
    for row, given in enumerate(ROWS):
        first, length = int(packed.starts[row]), len(given.prompt) + len(given.answer)
        rows = packed.seen[packed.bins[row], 0, first : first + length]
        assert torch.equal(rows[:, first : first + length], torch.ones(length, length, dtype=torch.bool).tril())
        assert int(rows.sum()) == length * (length + 1) // 2, "and nothing else"


@pytest.mark.parametrize("aggregation", ["token_mean", "seq_mean_token_mean"])
def test_what_is_learnt_is_the_same(folder: Path, aggregation: str) -> None:
    asked = [Prompt("a", "the film", "the film", "the film"), Prompt("b", "film", "film", "film")]
    texts = ["was good", "was bad and long", "good"]
    samples = {
        Key(0, one.id, k): Sample(0, one, k, 0, "dataset", text) for one in asked for k, text in enumerate(texts)
    }
    selection = Selection("weighted", tuple(Item((key,), weight=1.0 + key.index) for key in samples))
    learnt = []
    for packing in (False, True):
        objective = {"type": "sft", "packing": packing, "aggregation": aggregation}
        config = check(LMFineTunerConfig, {"objective": objective, "adapter": "full", "learning_rate": 1e-2})
        tuner = LMFineTuner(config, load(LMConfig(base=str(folder)), str), total_rounds=1, max_tokens=8, seed=0)
        tuner.fit(selection, samples, seed=0, report=silent)
        learnt.append(torch.cat([weight.flatten() for weight in tuner.trainable.live.values()]))
    torch.testing.assert_close(learnt[0], learnt[1], atol=2e-5, rtol=0)


def test_packing_and_noise_on_the_inputs_do_not_go_together() -> None:
    with pytest.raises(UserError, match="packing and embedding neftune do not go together"):
        check(LMFineTunerConfig, {"objective": {"type": "sft", "packing": True, "embedding": {"type": "neftune"}}})


def test_other_attention_is_a_sentence(folder: Path) -> None:
    lm = load(LMConfig(base=str(folder)), str)
    lm.model.set_attn_implementation("eager")
    with pytest.raises(UserError, match="it needs PyTorch's own attention"):
        packed_lp(network(lm), collate(ROWS, lm.pad))
