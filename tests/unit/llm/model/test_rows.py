"""Rows of tokens: laid out, masked by count, and scored the same however they are batched."""

import math

import pytest
import torch

from raftdiff.errors import UserError
from raftdiff.llm.model.rows import Row, collate, row_of, score
from raftdiff.types import Prompt, Sample

ROWS = [
    Row((1, 4, 5), (6, 7, 2)),
    Row((1,), (2,)),
    Row((1, 9, 9, 9, 9, 9), (8, 8, 8, 8, 8, 8, 8, 8)),
    Row((1, 4), (2, 2, 5)),
]


def sample(text, caption="good", sampling=None, learning=None, **aux):
    prompt = Prompt("p", caption, sampling or caption, learning or caption)
    return Sample(2, prompt, 3, 0, "policy", text, {name: torch.tensor(value) for name, value in aux.items()})


def test_a_sampled_answer_keeps_its_tokens_and_anybody_elses_text_is_tokenized_and_ends(lm):
    drawn = sample("good", tokens=[7, 7, 7], logprobs=[-1.0, -1.0, -1.0])
    assert row_of(lm, drawn, learning=True) == Row((1, 7), (7, 7, 7))  # cut short: no end was drawn, and none is learnt
    assert row_of(lm, sample("good film"), learning=True) == Row((1, 7), (7, 5, 2))
    assert row_of(lm, sample(""), learning=True) == Row((1, 7), (2,))
    assert row_of(lm, sample("good film", cut=True), learning=True) == Row((1, 7), (7, 5))


def test_the_learning_text_is_learnt_and_the_sampling_text_is_what_was_answered(lm):
    one = sample("no", sampling="good film was", learning="film")
    assert row_of(lm, one, learning=True).prompt == (1, 5)
    assert row_of(lm, one, learning=False).prompt == (1, 7, 5, 6)


def test_an_empty_row_and_a_row_beyond_the_models_positions_are_sentences(lm, gpt2):
    with pytest.raises(UserError, match="Key.round=2, prompt='p', index=3.: this answer is empty, so there is nothing"):
        row_of(lm, sample("good", tokens=[]), learning=True)
    assert len(row_of(gpt2, sample(" ".join(["bad"] * 37)), learning=True).answer) == 38
    with pytest.raises(UserError, match="prompt and answer are 41 tokens together, and '.*' is made for 40; leave it"):
        row_of(gpt2, sample(" ".join(["bad"] * 38)), learning=True)


def test_a_batch_is_filled_up_on_the_right_and_its_mask_counts(lm):
    batch = collate(ROWS, pad=2)
    assert batch.ids.shape == batch.attention.shape == (4, 14)
    assert batch.mask.shape == (4, 13)
    assert batch.answer_tokens == 3 + 1 + 8 + 3
    for place, row in enumerate(ROWS):
        whole = [*row.prompt, *row.answer]
        assert batch.ids[place].tolist() == whole + [2] * (14 - len(whole))
        assert batch.attention[place].tolist() == [1] * len(whole) + [0] * (14 - len(whole))
        # prompt tokens are never targets, and the end token is one although it pads
        assert tuple(batch.ids[place, 1:][batch.mask[place]].tolist()) == row.answer


def test_scores_do_not_depend_on_the_batch_the_order_or_the_padding(lm, gpt2, pad_is_eos):
    for model in (lm, gpt2, pad_is_eos):
        alone = [score(model, [row], batch_size=1)[0] for row in ROWS]
        for size in (1, 2, 3, 64):
            for found, expected in zip(score(model, ROWS, batch_size=size), alone, strict=True):
                torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        for found, expected in zip(score(model, ROWS[::-1], batch_size=2), alone[::-1], strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert score(lm, [], batch_size=4) == []


def test_a_score_is_a_log_softmax_gathered_token_by_token(lm):
    row = ROWS[0]
    lp = lm.model(torch.tensor([[*row.prompt, *row.answer]])).logits[0].log_softmax(-1)
    expected = [float(lp[len(row.prompt) - 1 + place, token]) for place, token in enumerate(row.answer)]
    (found,) = score(lm, [row], batch_size=8)
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx(expected, abs=1e-5)


def test_a_score_is_the_probability_of_a_known_chain(chain, open_lm):
    lm = open_lm(chain({"go": {"a": 0.5, "b": 0.2}, "a": {"b": 0.1, "<eos>": 0.6}}))
    prompt, answer = lm.tokenizer("go")["input_ids"], lm.answer_ids("a b")
    (found,) = score(lm, [Row(tuple(prompt), tuple(answer))], batch_size=1)
    assert found.tolist() == pytest.approx([math.log(0.5), math.log(0.1), 0.0], abs=1e-5)


def test_half_precision_is_normalized_in_float32(lm_folder, open_lm):
    half = open_lm(lm_folder, dtype="bfloat16")
    batch = collate(ROWS, half.pad)
    logits = half.model(input_ids=batch.ids, attention_mask=batch.attention).logits
    assert logits.dtype == torch.bfloat16
    wide = logits.float().log_softmax(-1)
    for place, found in enumerate(score(half, ROWS, batch_size=4)):
        picked = wide[place, :-1].gather(-1, batch.ids[place, 1:, None]).squeeze(-1)[batch.mask[place]]
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, picked, rtol=0, atol=0.05)
        assert not torch.equal(found, found.bfloat16().float())  # three digits would show here
