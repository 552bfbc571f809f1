"""The critic: what it values, how it learns, and which models can be one."""

import pytest
import torch

from raftdiff.errors import UserError
from raftdiff.llm.learning.steps import StepsConfig
from raftdiff.llm.model import tiny
from raftdiff.llm.model.loading import LMConfig, load
from raftdiff.llm.model.rows import Row, collate
from raftdiff.llm.ppo.critic import Critic, CriticConfig
from raftdiff.llm.ppo.rollouts import Estimates, Rollouts
from raftdiff.llm.reward_models.value_model import ValueModel, load_value_model, save_value_model
from raftdiff.recipes.config import check
from raftdiff.types import silent

WORDS = ("the", "film", "was", "good", "bad", "dull", "fine", "long")
ROWS = (
    Row((1, 4), (5, 6, 7, 2)),
    Row((1, 4, 5), (8, 2)),
    Row((1,), (9, 10, 11, 4, 5, 6, 2)),
    Row((1, 6, 7, 8), (4,)),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("lm") / "tiny", WORDS)


def base(folder, **options):
    return LMConfig(base=str(folder), device="cpu", **options)


def critic(folder, *, seed=0, learning_rate=1e-2, pretrain_steps=0, **options):
    config = CriticConfig(learning_rate=learning_rate, pretrain_steps=pretrain_steps)
    steps = check(StepsConfig, {"adapter": "full", "batch_size": 4, **options})
    lm = load(base(folder), str)
    return Critic(config, steps, config.open(base(folder), lm, str, seed=seed), precision=torch.float32, seed=seed)


def buffer(rows=ROWS, pad=0):
    mask = collate(rows, pad).mask
    zeros = torch.zeros(mask.shape)
    return Rollouts(tuple(rows), pad, mask, zeros, zeros, torch.zeros(len(rows)))


def to_learn(rows=ROWS):
    """Returns that differ from answer to answer: the first token of each divided by ten."""
    held = buffer(rows)
    wanted = torch.tensor([row.answer[0] / 10 for row in rows])[:, None].expand(held.mask.shape)
    returns = torch.where(held.mask, wanted, 0.0)
    return held, Estimates(torch.zeros_like(returns), returns, returns)


def values(one, rows=ROWS, pad=0):
    with one.training():
        return one.values(buffer(rows, pad))


# --- what it values ---


def test_a_value_is_of_what_stands_before_the_token(folder):
    """Another token changes the values after it, and none before it or its own."""
    one = critic(folder)
    row = Row((1, 4), (5, 6, 7, 2))
    other = Row((1, 4), (5, 6, 8, 2))
    (first,), (second,) = values(one, [row]), values(one, [other])
    # targets: 4 (prompt), 5, 6, 7 | 8, 2
    assert first[0] == 0
    assert torch.equal(first[1:4], second[1:4])
    assert not torch.equal(first[4], second[4])
    ids = torch.tensor([[1, 4, 5, 6, 7, 2]])
    with torch.no_grad():
        hidden = one.model.lm.model.model(ids).last_hidden_state[0]
    expected = torch.stack([hidden[at] @ one.model.head.weight[0] + one.model.head.bias[0] for at in range(1, 5)])
    torch.testing.assert_close(first[1:5], expected.detach(), rtol=1e-5, atol=1e-6)


def test_neighbours_and_padding_change_no_value(folder):
    one = critic(folder)
    together = values(one)
    for place, row in enumerate(ROWS):
        alone = values(one, [row])[0]
        torch.testing.assert_close(together[place, : len(alone)], alone, rtol=1e-5, atol=1e-6)
        assert not bool(together[place, len(alone) :].any())
    torch.testing.assert_close(values(one, pad=2), together, rtol=1e-5, atol=1e-6)


def test_dropout_does_not_shake_the_values(folder):
    one = critic(folder, adapter="lora", rank=4, dropout=0.5)
    with one.training():
        held = buffer()
        known = to_learn()[1]
        one.learn(held, known, range(4), clip=None, rate=1e-2, seed=0)  # a fresh LoRA changes nothing
        assert torch.equal(one.values(held), one.values(held))


# --- how it learns ---


@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_it_learns_the_returns(folder, adapter):
    one = critic(folder, adapter=adapter, rank=4)
    held, known = to_learn()
    with one.training():
        losses = [one.learn(held, known, range(4), clip=None, rate=1e-2, seed=step)["value_loss"] for step in range(60)]
        found = one.values(held)
    assert losses[-1] < 0.1 * losses[0]
    torch.testing.assert_close(found[held.mask], known.returns[held.mask], rtol=0, atol=0.2)


def test_only_answer_tokens_are_learnt(folder):
    """What stands in the returns of prompt and padding has no influence."""
    held, known = to_learn()
    spoilt = known.returns.masked_fill(~held.mask, 100.0)
    found = []
    for returns in (known.returns, spoilt):
        one = critic(folder)
        with one.training():
            one.learn(held, Estimates(known.values, returns, returns), range(4), clip=None, rate=1e-2, seed=0)
        found.append(one.trainable.live)
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_how_a_step_is_cut_into_passes_changes_nothing(folder):
    held, known = to_learn()
    found = []
    for rows in (64, 1, 3):
        one = critic(folder, rows_per_pass=rows)
        with one.training():
            told = one.learn(held, known, range(4), clip=None, rate=1e-2, seed=0)
        found.append((told["value_loss"], told["critic_grad_norm"]))
    assert found[1] == pytest.approx(found[0], rel=1e-4)
    assert found[2] == pytest.approx(found[0], rel=1e-4)


def test_a_value_that_moved_beyond_the_clip_is_left_there(folder):
    """Towards its return: no gradient. The old value is that of the buffer."""
    one = critic(folder)
    held, known = to_learn()
    with one.training():
        now = one.values(held)
        far = torch.where(held.mask, now + 1.0, 0.0)  # returns above
        moved = Estimates(torch.where(held.mask, now - 0.5, 0.0), far, far)  # it has come from below by 0.5
        told = one.learn(held, moved, range(4), clip=0.2, rate=0.0, seed=0)
        assert told["critic_grad_norm"] == pytest.approx(0, abs=1e-7)
        assert told["value_loss"] == pytest.approx(1.3**2 / 2, rel=1e-4)
        told = one.learn(held, moved, range(4), clip=0.6, rate=0.0, seed=0)
        assert told["critic_grad_norm"] > 1e-3
        assert told["value_loss"] == pytest.approx(0.5, rel=1e-4)
    del known


def test_gradients_are_clipped_as_a_whole(folder):
    held, known = to_learn()
    one = critic(folder, max_grad_norm=0.01)
    seen = []
    one.optimizer.register_step_pre_hook(
        lambda *_: seen.append(
            torch.nn.utils.get_total_norm([p.grad for p in one.trainable.parameters.values() if p.grad is not None])
        )
    )
    with one.training():
        told = one.learn(held, known, range(4), clip=None, rate=1e-2, seed=0)
    assert told["critic_grad_norm"] > 0.1, "as it was before"
    assert float(seen[0]) == pytest.approx(0.01, rel=1e-3)


def test_it_continues_from_its_state_to_the_bit(folder):
    held, known = to_learn()
    one, other = critic(folder), critic(folder)
    with one.training():
        one.learn(held, known, range(4), clip=None, rate=1e-2, seed=0)
    other.load_state_dict({name: dict(part) for name, part in one.state_dict().items()}, steps=1)
    for each in (one, other):
        with each.training():
            each.learn(held, known, range(4), clip=None, rate=1e-2, seed=1)
    first, second = one.state_dict(), other.state_dict()
    assert all(torch.equal(first[stem][name], second[stem][name]) for stem in first for name in first[stem])
    assert one.steps == other.steps == 2


def test_pretraining_reports_and_counts(folder):
    one = critic(folder, pretrain_steps=5, batch_size=2)
    held, known = to_learn()
    seen = []
    with one.training():
        told = one.pretrain(held, known, seed=0, report=lambda done, total: seen.append((done, total)))
    assert seen == [(step, 5) for step in range(1, 6)]
    assert told["pretrain_steps"] == one.steps == 5
    assert told["tokens"] > 0


# --- which models can be one ---


def test_its_first_values_are_its_own_and_repeatable(folder):
    assert torch.equal(values(critic(folder)), values(critic(folder)))
    assert not torch.equal(values(critic(folder)), values(critic(folder, seed=1)))


def test_it_begins_as_a_reward_model(folder, tmp_path):
    """Network and head, from the model's folder or from its run."""
    rewarding = load_value_model(base(folder), str, seed=5)
    rewarding.head.bias.data.fill_(3.0)
    save_value_model(tmp_path / "run" / "model", rewarding, {})
    lm = load(base(folder), str)
    for where in ("run/model", "run"):
        opened = CriticConfig(model=str(tmp_path / where)).open(base(folder), lm, str, seed=0)
        assert torch.equal(opened.head.weight, rewarding.head.weight)
        assert float(opened.head.bias) == 3.0
    assert opened.lm.model is not lm.model


def test_a_missing_reward_model_is_named(folder, tmp_path):
    lm = load(base(folder), str)
    with pytest.raises(UserError, match=r"finetuner.critic.model: .*there is no folder"):
        CriticConfig(model=str(tmp_path / "nowhere")).open(base(folder), lm, str, seed=0)
    with pytest.raises(UserError, match=r"finetuner.critic.model: .*is no reward model"):
        CriticConfig(model=str(folder)).open(base(folder), lm, str, seed=0)


def test_a_reward_model_of_other_tokens_is_refused(folder, tmp_path):
    other = tiny.write(tmp_path / "other", (*WORDS, "more"))
    save_value_model(tmp_path / "model", load_value_model(base(other), str), {})
    with pytest.raises(UserError, match="has another tokenizer than"):
        CriticConfig(model=str(tmp_path / "model")).open(base(folder), load(base(folder), str), str, seed=0)


def test_an_encoder_is_refused(folder, tmp_path, monkeypatch):
    """It reads an answer from both sides, so that it would know the end before it is written."""
    rewarding = load_value_model(base(folder), str)
    save_value_model(tmp_path / "model", rewarding, {})
    both = ValueModel(rewarding.lm, rewarding.head, causal=False)
    monkeypatch.setattr("raftdiff.llm.ppo.critic.load_value_model", lambda *_, **__: both)
    with pytest.raises(UserError, match="reads an answer as a whole"):
        CriticConfig(model=str(tmp_path / "model")).open(base(folder), load(base(folder), str), str, seed=0)


def test_nothing_is_said_where_nobody_listens(folder):
    one = critic(folder, pretrain_steps=1)
    with one.training():
        assert one.pretrain(*to_learn(), seed=0, report=silent)["pretrain_steps"] == 1
