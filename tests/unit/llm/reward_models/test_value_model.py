"""Where a reward is read, on whatever side a batch is filled up; what a folder keeps; encoders as well as decoders."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from raftdiff.errors import UserError
from raftdiff.llm.model.loading import LMConfig
from raftdiff.llm.model.rows import Batch, Row, collate
from raftdiff.llm.reward_models.value_model import (
    HEAD,
    NOTES,
    ValueModel,
    last_token,
    load_value_model,
    save_value_model,
    score_rows,
    value_row,
)
from raftdiff.training.trainable import Trainable, add_lora
from raftdiff.types import Prompt

ROWS = [Row((1, 4), (5, 6, 7, 2)), Row((1, 4, 8, 9, 10), (11, 2)), Row((1,), (2,)), Row((1, 6, 6), (5, 4, 12, 9, 2))]
BERT = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "film", "was", "good", "bad")


def ask(text, **meta):
    return Prompt("p", text, text, text, meta=meta)


def on(lm, seed=0, causal=True):
    """A value model on a network that is there."""
    width = lm.model.config.hidden_size
    head = torch.nn.Linear(width, 1)
    with torch.no_grad():
        head.weight.copy_(torch.randn(1, width, generator=torch.Generator().manual_seed(seed)))
    return ValueModel(lm, head.requires_grad_(False), causal)


def opened(folder, **options):
    return load_value_model(LMConfig(base=str(folder), device="cpu", **options), str)


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory):
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("encoders") / "bert"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(BERT))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        config = BertConfig(vocab_size=len(BERT), max_position_embeddings=24, initializer_range=0.3, **sizes)
        BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def roberta(tmp_path_factory, lm_folder, changed):
    """An encoder that counts its positions from behind its filling token, on the tokenizer of the tiny Llama."""
    from transformers import RobertaConfig, RobertaModel

    folder = changed(lm_folder, "tokenizer_config.json")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        config = RobertaConfig(
            vocab_size=16, max_position_embeddings=21, pad_token_id=0, initializer_range=0.3, **sizes
        )
        RobertaModel(config).save_pretrained(folder)
    return opened(folder)


@pytest.fixture(scope="module")
def bert(bert_folder):
    return opened(bert_folder)


@pytest.fixture
def model(request):
    """Relative positions, absolute ones without a filling token, the end token for filling, and two encoders."""
    found = request.getfixturevalue(request.param)
    return found if isinstance(found, ValueModel) else on(found)


EVERY = pytest.mark.parametrize("model", ["lm", "gpt2", "pad_is_eos", "bert", "roberta"], indirect=True)


def rows_of(model):
    if model.causal:
        return ROWS
    return [Row((2, 5, 6, 3), (7, 8, 3)), Row((2, 5, 3), (6, 7, 9, 9, 8, 3)), Row((2, 3), (3,))]


def test_the_last_token_is_found_on_whichever_side_the_filling_stands():
    attention = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1], [0, 1, 1, 0], [1, 0, 0, 0]])
    assert last_token(attention).tolist() == [1, 3, 3, 2, 0]


@EVERY
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("more", [0, 1, 5])
def test_filling_changes_no_reward(model, side, more):
    rows = rows_of(model)
    alone = torch.cat([model.rewards(collate([row], model.lm.pad)) for row in rows])
    width = max(len(row.prompt) + len(row.answer) for row in rows) + more
    ids, attention = torch.full((len(rows), width), model.lm.pad), torch.zeros((len(rows), width), dtype=torch.int64)
    for place, row in enumerate(rows):
        tokens = torch.tensor([*row.prompt, *row.answer])
        there = slice(0, len(tokens)) if side == "right" else slice(width - len(tokens), width)
        ids[place, there], attention[place, there] = tokens, 1
    together = model.rewards(Batch(ids, attention, torch.zeros(len(rows), width - 1, dtype=torch.bool)))
    torch.testing.assert_close(together, alone, rtol=0, atol=2e-5)
    assert alone.std() > 1e-3  # the rows differ, so the above says something


@EVERY
def test_a_batch_gives_what_its_rows_give_alone_in_any_order_and_size(model):
    rows = rows_of(model)
    alone = torch.cat([score_rows(model, [row], batch_size=1) for row in rows])
    for size in (1, 2, 64):
        torch.testing.assert_close(score_rows(model, rows, batch_size=size), alone, rtol=0, atol=2e-5)
    torch.testing.assert_close(score_rows(model, rows[::-1], batch_size=2), alone.flip(0), rtol=0, atol=2e-5)


def test_the_reward_is_that_of_the_end_token_of_the_answer(lm):
    """Not of the last word, not of a filling token behind it, and of no token of another row."""
    model = on(lm)
    batch = collate(ROWS, lm.pad)
    values = model.values(batch)
    assert values.shape == batch.ids.shape
    assert values.dtype == torch.float32
    ends = [len(row.prompt) + len(row.answer) - 1 for row in ROWS]
    assert batch.ids[range(4), ends].tolist() == [2, 2, 2, 2]
    assert torch.equal(model.rewards(batch), values[range(4), ends])


def test_hidden_states_are_those_that_the_language_model_reads_its_logits_from(lm, gpt2):
    for network in (lm, gpt2):
        model, batch = on(network), collate(ROWS, network.pad)
        hidden, head, _ = model.reading(batch)
        logits = head(hidden)
        wanted = network.model(input_ids=batch.ids, attention_mask=batch.attention, use_cache=False).logits
        torch.testing.assert_close(model.hidden(batch), hidden)
        torch.testing.assert_close(logits, wanted)
        torch.testing.assert_close(network.model.get_output_embeddings()(hidden), logits)
        assert not network.model.base_model._forward_hooks


def test_a_causal_value_depends_on_nothing_that_comes_later_and_an_encoders_does(lm, bert):
    for model, early in ((on(lm), True), (bert, False)):
        one, other = Row((2, 5), (6, 7, 8, 3)), Row((2, 5), (6, 7, 9, 3))
        first, second = (model.values(collate([row], model.lm.pad))[0] for row in (one, other))
        assert bool(torch.allclose(first[:4], second[:4], atol=1e-6)) == early
        assert not torch.allclose(first[4:], second[4:], atol=1e-4)


def test_a_fresh_head_is_seeded_and_small_and_draws_from_nobody(lm_folder):
    config = LMConfig(base=str(lm_folder), device="cpu")
    state = torch.random.get_rng_state()
    one, same, other = (load_value_model(config, str, seed=seed).head for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(one.weight, same.weight)
    assert not torch.equal(one.weight, other.weight)
    assert float(one.bias) == 0
    drawn = [load_value_model(config, str, seed=seed).head.weight for seed in range(20)]
    assert float(torch.cat(drawn).std()) == pytest.approx(33**-0.5, rel=0.1)


def test_the_head_stays_float32_in_a_model_of_half_precision(lm_folder):
    model = opened(lm_folder, dtype="bfloat16")
    assert model.head.weight.dtype == torch.float32
    batch = collate(ROWS, model.lm.pad)
    assert model.values(batch).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        read = model.read(model.hidden(batch))
    hidden = model.hidden(batch).float()
    torch.testing.assert_close(read, hidden @ model.head.weight[0] + model.head.bias, rtol=1e-6, atol=1e-6)


def test_an_encoder_reads_prompt_and_answer_each_up_to_its_separator(bert):
    row = value_row(bert, ask("the film"), "was good")
    assert row == Row((2, 5, 6, 3), (7, 8, 3))
    assert not bert.causal
    assert bert.lm.eos == (3,)


def test_an_encoder_without_its_pooler_is_an_encoder(bert_folder, changed):
    folder = changed(bert_folder, "tokenizer_config.json")
    weights = load_file(folder / "model.safetensors")
    assert any(name.startswith("pooler") for name in weights)
    kept = {name: weight for name, weight in weights.items() if not name.startswith("pooler")}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    model = opened(folder)
    assert model.lm.model.pooler is None
    torch.testing.assert_close(
        score_rows(model, rows_of(model), batch_size=4), score_rows(opened(bert_folder), rows_of(model), batch_size=4)
    )


def test_a_row_is_the_prompts_caption_with_its_turns_the_answer_and_its_end(chat_folder):
    model = opened(chat_folder)
    prompt = Prompt("p", "was", "magic", "learnt", meta={"history": [{"role": "user", "content": "yes"}]})
    row = value_row(model, prompt, "good")
    assert model.lm.tokenizer.decode(row.prompt) == "user yes user was assistant"
    assert model.lm.tokenizer.decode(row.answer) == "good <eos>"
    assert value_row(model, prompt, "").answer == (2,)


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_a_saved_model_gives_the_same_rewards_to_the_bit(kind, lm_folder, bert_folder, tmp_path):
    model = opened(lm_folder if kind == "llama" else bert_folder, template="was {prompt}", max_prompt_tokens=9)
    model.head.bias.data.fill_(0.25)
    save_value_model(tmp_path / "rm", model, {"accuracy": 0.75})
    again = opened(tmp_path / "rm")
    assert (again.causal, again.lm.template, again.lm.max_prompt_tokens) == (kind == "llama", "was {prompt}", 9)
    row = value_row(again, ask("the film"), "good")
    assert row == value_row(model, ask("the film"), "good")
    assert torch.equal(score_rows(again, [row], batch_size=1), score_rows(model, [row], batch_size=1))
    assert json.loads((tmp_path / "rm" / NOTES).read_text())["notes"] == {"accuracy": 0.75}
    assert not list((tmp_path / "rm").glob("*.bin"))
    other = opened(tmp_path / "rm", template="plain", max_prompt_tokens=30)
    assert (other.lm.template, other.lm.max_prompt_tokens) == ("plain", 30)


def test_a_lora_is_saved_merged(lm_folder, tmp_path):
    model = opened(lm_folder)
    before = score_rows(model, ROWS, batch_size=4)
    add_lora(model.lm.model, 2, 2.0, ("q_proj", "v_proj"), 0)
    trained = Trainable(
        "m", {"model": model.lm.model, "head": model.head}, "lora", dtype=torch.float32, whole=("head",)
    )
    for weight in trained.live.values():
        weight.add_(0.05)
    trained.rest(None)
    after = score_rows(model, ROWS, batch_size=4)
    assert (after - before).abs().min() > 1e-3
    save_value_model(tmp_path / "rm", model, {})
    assert not (tmp_path / "rm" / "adapter_config.json").exists()
    torch.testing.assert_close(score_rows(opened(tmp_path / "rm"), ROWS, batch_size=4), after, rtol=0, atol=2e-5)


def test_nothing_is_written_over(lm, tmp_path):
    (tmp_path / "rm").mkdir()
    (tmp_path / "rm" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="something lies there already"):
        save_value_model(tmp_path / "rm", on(lm), {})


@pytest.fixture
def saved(lm, tmp_path):
    save_value_model(tmp_path / "rm", on(lm), {})
    return tmp_path / "rm"


@pytest.mark.parametrize("told", [None, "{", "[]", '{"causal": true}'])
def test_a_folder_that_does_not_say_how_it_reads_is_a_sentence(saved, told):
    (saved / NOTES).unlink() if told is None else (saved / NOTES).write_text(told)
    with pytest.raises(UserError, match=r"reward\.json: this file says how the model reads, and is missing or broken"):
        opened(saved)


def test_heads_of_other_models_are_sentences(saved):
    save_file({"weight": torch.zeros(1, 8), "bias": torch.zeros(1)}, saved / HEAD)
    with pytest.raises(UserError, match="this head reads 8 numbers and the model beside it gives 32"):
        opened(saved)
    save_file({"weight": torch.zeros(2, 32), "bias": torch.zeros(2)}, saved / HEAD)
    with pytest.raises(UserError, match="this is no head of a value model"):
        opened(saved)
    (saved / HEAD).write_bytes(b"no safetensors")
    with pytest.raises(UserError, match="this is no head of a value model"):
        opened(saved)


def test_texts_that_are_too_long_are_sentences(gpt2, bert, roberta):
    with pytest.raises(UserError, match="'p' and an answer to it are 41 tokens together, and '.*gpt2' can read 40"):
        value_row(on(gpt2), ask("the film"), "good " * 37)
    assert len(value_row(on(gpt2), ask("the film"), "good " * 36).answer) == 37
    with pytest.raises(UserError, match="can read 24"):
        value_row(bert, ask("film"), "good " * 21)
    row = value_row(roberta, ask("film"), "good " * 17)  # 20, and not the 21 that its config says
    assert bool(score_rows(roberta, [row], batch_size=1).isfinite())
    with pytest.raises(UserError, match="can read 20"):
        value_row(roberta, ask("film"), "good " * 18)


def test_models_that_cannot_hold_a_value_are_sentences(lm_folder, bert_folder, changed, tmp_path):
    no_end = changed(lm_folder, "tokenizer_config.json", eos_token=None)
    for file in ("config.json", "generation_config.json"):
        told = json.loads((no_end / file).read_text())
        (no_end / file).write_text(json.dumps({**told, "eos_token_id": None}))
    with pytest.raises(UserError, match="has no end token"):
        opened(no_end)
    with pytest.raises(UserError, match="there is no folder"):
        opened(tmp_path / "nothing")
    with pytest.raises(UserError, match="reads with one network and writes with another"):
        opened(changed(bert_folder, "config.json", model_type="bart", is_encoder_decoder=True))
    broken = changed(bert_folder, "tokenizer_config.json")
    weights = load_file(broken / "model.safetensors")
    weights.pop("encoder.layer.1.output.dense.weight")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"is no encoder: its files lack encoder\.layer\.1\.output\.dense\.weight"):
        opened(broken)


def test_a_reward_is_its_weights_by_hand(chain):
    """Embeddings one-hot and nothing written on the way: the hidden state at the end token is known."""
    model = opened(chain({"yes": {"<eos>": 1.0}}))
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.weight[0, 2], model.head.bias[0] = 0.5, -1.0
    row = value_row(model, ask("yes"), "yes")
    assert score_rows(model, [row], batch_size=1).tolist() == pytest.approx(
        [0.5 / np.sqrt(1 / 32 + 1e-6) - 1], abs=1e-5
    )
