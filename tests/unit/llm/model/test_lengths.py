"""Rows that are longer than a model reads: counted in its own tokens, and left out, cut or refused."""

from dataclasses import replace

import pytest
import torch

from raftdiff.errors import UserError
from raftdiff.llm.model.lengths import Limits, readable
from raftdiff.llm.model.rows import row_of
from raftdiff.types import Prompt, Sample

CHINESE = "雨" * 600
TURNS = [
    {"role": "user", "content": "the film " * 8},
    {"role": "assistant", "content": "good"},
    {"role": "user", "content": "long " * 8},
    {"role": "assistant", "content": "bad"},
]


def ask(text="film", *answers, id="p", **meta):
    given = [{"text": one, "score": None, "source": ""} for one in answers]
    return Prompt(id, text, text, text, meta={**meta, **({"answers": given} if given else {})})


def words(count, word="good"):
    return " ".join([word] * count)


def test_a_row_that_the_model_cannot_read_stops_with_what_to_do(gpt2):
    with pytest.raises(UserError, match=r"prompts: of 'p' the prompt is 41 tokens long, and a prompt of more than '.*"):
        readable(gpt2, [ask(words(40))], Limits("prompts"))
    with pytest.raises(UserError, match="more than model.max_prompt_tokens .8. cannot be read.*prompts.too_long: skip"):
        readable(replace(gpt2, max_prompt_tokens=8), [ask(words(8))], Limits("prompts"))
    with pytest.raises(UserError, match=r"the prompt is 11 and an answer 31 tokens long, and prompt and answer"):
        readable(gpt2, [ask(words(10), words(30))], Limits("pairs.data"), learnt=True)
    assert readable(gpt2, [ask(words(10), words(30))], Limits("prompts")), "an answer that nobody learns from"
    at_most = [ask(words(10), words(28))]
    assert readable(gpt2, at_most, Limits("prompts"), learnt=True) == at_most


def test_the_answer_that_is_drawn_needs_room(gpt2):
    assert readable(gpt2, [ask(words(29))], Limits("prompts"), room=10)
    with pytest.raises(UserError, match=r"read \(40 tokens, 10 of them for decoding.max_new_tokens\)"):
        readable(gpt2, [ask(words(30))], Limits("prompts"), room=10)
    with pytest.raises(UserError, match="decoding.max_new_tokens: '.*' is made for 40 tokens, .* and 40 new ones"):
        readable(gpt2, [ask()], Limits("prompts", long="skip"), room=40)


def test_what_is_left_out_is_counted_by_reason(lm, gpt2):
    rows = [ask(), ask(words(40), id="a"), ask(words(40), id="b"), ask("film", words(60), id="c")]
    limits = Limits("prompts", long="skip")
    with pytest.warns(UserWarning, match=r"prompts: 3 of 4 rows were left out: 2 with a prompt.*; 1 with prompt and"):
        assert readable(gpt2, rows, limits, learnt=True) == rows[:1]
    with pytest.warns(UserWarning, match=r"1 of 2 rows were left out: 1 with a prompt of more than prompts.max_prompt"):
        assert len(readable(lm, rows[:2], Limits("prompts", prompt=20))) == 1, "a filter needs no too_long"
    with pytest.warns(UserWarning, match=r"1 with an answer of more than prompts.max_answer_tokens \(9\).*first: 'c'"):
        readable(lm, rows[::3], Limits("prompts", answer=9), learnt=True)
    with pytest.warns(UserWarning, match=r"1 with an answer of more than prompts.max_answer_tokens \(50\)"):
        readable(gpt2, rows[::3], Limits("prompts", answer=50), learnt=True)  # it could not be read either
    with pytest.raises(UserError, match="2 of 2 rows were left out: .* Nothing is left"):
        readable(gpt2, rows[1:3], limits)


def test_a_text_without_spaces_is_counted_too(tmp_path):
    """Words split at white space would see one."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from raftdiff.llm.model import tiny
    from raftdiff.llm.model.loading import LMConfig, load

    folder = tiny.write(tmp_path / "lm", ["雨"])
    inner = Tokenizer(models.WordLevel({"<pad>": 0, "<bos>": 1, "<eos>": 2, "<unk>": 3, "雨": 4}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>").save_pretrained(folder)
    lm = load(LMConfig(base=str(folder), device="cpu"), str)
    with pytest.raises(UserError, match="the prompt is 600 tokens long, and a prompt of more than model.max_prompt_t"):
        readable(lm, [ask(CHINESE)], Limits("prompts"))


def test_a_dialogue_is_cut_at_its_oldest_turns(gpt2):
    limits = Limits("prompts", long="cut")
    with pytest.warns(UserWarning, match="in 1 of 1 rows the model reads the prompt without its oldest"):
        (found,) = readable(gpt2, [ask(words(10), history=TURNS, system="bad")], limits, room=8)
    assert found.meta["history"] == TURNS[2:]
    assert found.meta["system"] == "bad"
    with pytest.raises(UserError, match="Nothing is left"):  # the last turn alone is too long
        readable(gpt2, [ask(words(45), history=TURNS)], limits)


def test_an_answer_that_is_cut_is_not_taught_with_an_end(gpt2):
    limits = Limits("prompts", long="cut")
    with pytest.warns(UserWarning, match="in 1 of 1 rows the model reads an answer without its end"):
        (found,) = readable(gpt2, [ask(words(9), words(60), "bad")], limits, learnt=True)
    long, short = found.meta["answers"]
    assert (long["text"], long["cut"], "cut" in short) == (words(29), True, False)
    sample = Sample(0, found, 0, 0, "dataset", long["text"], {"cut": torch.tensor(True)})
    row = row_of(gpt2, sample, learning=True)
    assert len(row.prompt) + len(row.answer) == 39
    assert row.answer[-1] not in gpt2.eos
    assert row_of(gpt2, replace(sample, aux={}), learning=True).answer[-1] in gpt2.eos
    with pytest.warns(UserWarning, match="1 with answers that are alike once they are cut"):
        left = readable(gpt2, [found, ask(words(9), words(60), words(61))], limits, learnt=True)
    assert left == [found]


@pytest.fixture(scope="module")
def bytewise(lm):
    """Tokens of bytes, the first two of a Chinese letter being one: each second cut falls inside it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    (rain, _), *_ = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str("雨")
    words = {word: number for number, word in enumerate(("<eos>", *alphabet, rain[:2]))}
    inner = Tokenizer(models.BPE(words, [(rain[0], rain[1])]))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>")
    size = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1, "num_hidden_layers": 1}
    return replace(lm, tokenizer=made, model=LlamaForCausalLM(LlamaConfig(vocab_size=len(made), **size)))


@pytest.mark.parametrize("limit", range(4, 12))
def test_an_answer_is_cut_between_letters_and_is_no_longer_when_it_is_read_again(bytewise, limit):
    limits = Limits("prompts", answer=limit, long="cut")
    with pytest.warns(UserWarning, match="in 1 of 1 rows the model reads an answer without its end"):
        (found,) = readable(bytewise, [ask("film", "a" + "雨" * 9)], limits, learnt=True)
    (answer,) = found.meta["answers"]
    assert answer["text"] == "a" + "雨" * ((limit - 2) // 2)
    assert len(bytewise.answer_ids(answer["text"], ended=False)) < limit


def test_a_beginning_that_is_spelled_in_more_tokens_by_itself_is_cut_shorter(bytewise, monkeypatch):
    spelled = type(bytewise).answer_ids
    more = {"雨雨雨": 1}  # as a word whose rest is gone
    monkeypatch.setattr(
        type(bytewise), "answer_ids", lambda lm, text, **how: spelled(lm, text, **how) + [1] * more.get(text, 0)
    )
    limits = Limits("prompts", answer=7, long="cut")
    with pytest.warns(UserWarning, match="an answer without its end"):
        (found,) = readable(bytewise, [ask("film", "雨" * 9)], limits, learnt=True)
    assert found.meta["answers"][0]["text"] == "雨雨"
    with pytest.raises(UserError, match="Nothing is left"):
        readable(bytewise, [ask("film", "雨" * 9)], Limits("prompts", answer=2, long="cut"), learnt=True)
