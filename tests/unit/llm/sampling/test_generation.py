"""Draws: from the model's distribution, each from its own seed, whatever stands beside it in the batch."""

import math
from collections import Counter

import pytest
import torch
from transformers import TopPLogitsWarper

from raftdiff.chat.dialogue import cut
from raftdiff.embedded import resolve
from raftdiff.errors import UserError
from raftdiff.llm.model.loading import LMConfig, load
from raftdiff.llm.model.rows import Row, score
from raftdiff.llm.sampling import generation
from raftdiff.llm.sampling.generation import DecodingConfig, Ending, generate, nucleus, search
from raftdiff.recipes.config import check
from raftdiff.seeds import fold

PROMPTS = [[1, 4, 5], [1, 7], [1, 4, 5, 6, 8, 9, 10, 11, 5, 4], [1], [1, 9, 9, 9, 9, 9]]
SEEDS = [fold("row", place) for place in range(len(PROMPTS))]
DECODINGS = {
    "plain": {},
    "hot": {"temperature": 1.3, "top_p": 0.9},
    "few": {"temperature": 0.7, "top_k": 3},
    "varied": {"repetition_penalty": 1.7},
    "long": {"min_new_tokens": 6},
    "greedy": {"strategy": "greedy"},
    "stopped": {"stop": ["good", "yes no"]},
}


def decoding(**options):
    return DecodingConfig(**{"max_new_tokens": 12} | options)


def alone(lm, prompts, seeds, how):
    return [generate(lm, [prompt], [seed], how)[0] for prompt, seed in zip(prompts, seeds, strict=True)]


def same(found, expected, tolerance=1e-5):
    assert [tokens for tokens, _ in found] == [tokens for tokens, _ in expected]
    for (_, mine), (_, theirs) in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=tolerance)


def index(lm, word):
    return lm.tokenizer.convert_tokens_to_ids(word)


# -- whose draw it is


def tokens_read(lm, call):
    """How many tokens go into the network, call by call."""
    seen = []
    held = lm.model.base_model.register_forward_pre_hook(
        lambda module, given, named: seen.append(tuple(named["input_ids"].shape)), with_kwargs=True
    )
    try:
        call()
    finally:
        held.remove()
    return seen


def test_a_prompt_that_several_rows_have_is_read_once(lm):
    prompts = [PROMPTS[2]] * 3 + [PROMPTS[4]] * 3
    assert tokens_read(lm, lambda: generate(lm, prompts, range(6), decoding(max_new_tokens=2))) == [
        (2, 9),
        (6, 1),
        (6, 1),
    ]
    assert tokens_read(lm, lambda: generate(lm, PROMPTS, SEEDS, decoding(max_new_tokens=2))) == [(5, 10), (5, 1)]
    assert tokens_read(lm, lambda: search(lm, PROMPTS[2], decoding(max_new_tokens=2), count=4)) == [
        (1, 9),
        (4, 1),
        (4, 1),
    ]


@pytest.mark.parametrize("options", [{}, {"strategy": "greedy"}, {"repetition_penalty": 1.7, "top_p": 0.9}])
def test_the_tokens_are_those_of_a_prompt_that_every_row_reads(options, monkeypatch):
    """On the model that ships. Probabilities may differ in the last digits, where products are added up otherwise."""
    lm = load(LMConfig(base="review-lm", device="cpu"), resolve)
    texts = ("western about pirates :", "comedy :", "a long drama about pirates in the western :")
    prompts = [ids for ids in ([5], *(lm.tokenizer(text)["input_ids"] for text in texts)) for _ in range(8)]
    how = decoding(max_new_tokens=16, **options)
    once = generate(lm, prompts, range(32), how)
    monkeypatch.setattr(generation, "_read", lambda *given, **named: {})
    same(once, generate(lm, prompts, range(32), how))


@pytest.mark.parametrize("options", DECODINGS.values(), ids=DECODINGS)
def test_a_row_is_what_it_would_be_alone_whatever_its_neighbours_and_its_padding(lm, options):
    how = decoding(**options)
    together = generate(lm, PROMPTS, SEEDS, how)
    same(together, alone(lm, PROMPTS, SEEDS, how))
    turned = generate(lm, PROMPTS[::-1], SEEDS[::-1], how)
    same(turned[::-1], together)


def test_neither_absolute_positions_nor_padding_with_the_end_token_change_a_row(gpt2, pad_is_eos, lm):
    for model in (gpt2, pad_is_eos):
        same(generate(model, PROMPTS, SEEDS, decoding()), alone(model, PROMPTS, SEEDS, decoding()))
    same(generate(pad_is_eos, PROMPTS, SEEDS, decoding()), generate(lm, PROMPTS, SEEDS, decoding()), tolerance=0)


def test_the_draw_is_the_seeds(lm):
    prompts = [[1, 4, 5]] * 16
    first = generate(lm, prompts, list(range(16)), decoding())
    same(first, generate(lm, prompts, list(range(16)), decoding()), tolerance=0)
    assert len({tuple(tokens) for tokens, _ in first}) > 10
    assert len({tuple(t) for t, _ in generate(lm, prompts, [3] * 16, decoding())}) == 1


@pytest.mark.parametrize("options", DECODINGS.values(), ids=DECODINGS)
def test_recorded_log_probabilities_are_those_of_a_forward_pass_at_temperature_one(lm, gpt2, options):
    for model in (lm, gpt2):
        drawn = generate(model, PROMPTS, SEEDS, decoding(**options))
        rows = [Row(tuple(prompt), tuple(tokens)) for prompt, (tokens, _) in zip(PROMPTS, drawn, strict=True)]
        for (tokens, logprobs), expected in zip(drawn, score(model, rows, batch_size=3), strict=True):
            assert logprobs.dtype == torch.float32
            assert logprobs.shape == (len(tokens),)
            torch.testing.assert_close(logprobs, expected, rtol=0, atol=1e-4)


def test_bfloat16_draws_and_its_log_probabilities_are_near_those_of_a_forward_pass(lm_folder, open_lm):
    half = open_lm(lm_folder, dtype="bfloat16")
    drawn = generate(half, PROMPTS, SEEDS, decoding())
    rows = [Row(tuple(prompt), tuple(tokens)) for prompt, (tokens, _) in zip(PROMPTS, drawn, strict=True)]
    for (_, logprobs), expected in zip(drawn, score(half, rows, batch_size=2), strict=True):
        assert logprobs.dtype == expected.dtype == torch.float32
        torch.testing.assert_close(logprobs, expected, rtol=0, atol=0.1)


# -- the distribution

P = {"a": 0.4, "b": 0.25, "c": 0.2, "d": 0.1, "<eos>": 0.05}
SEVERAL = {
    "plain": ({}, P),
    "cold": ({"temperature": 0.5}, {word: p**2 for word, p in P.items()}),
    "hot": ({"temperature": 2.0}, {word: p**0.5 for word, p in P.items()}),
    "top_k": ({"top_k": 3}, {"a": 0.4, "b": 0.25, "c": 0.2}),
    "top_p": ({"top_p": 0.7}, {"a": 0.4, "b": 0.25, "c": 0.2}),
    "top_p of a colder one": ({"temperature": 0.5, "top_p": 0.7}, {"a": 0.4**2, "b": 0.25**2}),
    "no end yet": ({"min_new_tokens": 1}, {word: p for word, p in P.items() if word != "<eos>"}),
}


def chi_square(counts, weights, draws):
    whole = sum(weights.values())
    expected = {word: draws * p / whole for word, p in weights.items()}
    assert not set(counts) - set(expected), "a token without probability was drawn"
    return sum((counts[word] - e) ** 2 / e for word, e in expected.items())


@pytest.mark.parametrize(("options", "weights"), SEVERAL.values(), ids=SEVERAL)
def test_first_tokens_follow_the_distribution_in_closed_form(chain, open_lm, options, weights):
    lm, draws = open_lm(chain({"go": P})), 4000
    prompt = lm.tokenizer("go")["input_ids"]
    seeds = [fold("first", place) for place in range(draws)]
    found = generate(lm, [prompt] * draws, seeds, decoding(max_new_tokens=1, **options))
    words = Counter(lm.tokenizer.convert_ids_to_tokens(tokens[0]) for tokens, _ in found)
    # the 99.9% quantile of chi-square with 4 degrees of freedom is 18.5
    assert chi_square(words, weights, draws) < 18.5
    wrong = dict(zip(weights, list(weights.values())[::-1], strict=True))
    assert chi_square(words, wrong, draws) > 100
    for tokens, logprobs in found[:50]:  # under the model itself, whatever bent the draw
        assert math.exp(logprobs[0]) == pytest.approx(P[lm.tokenizer.convert_ids_to_tokens(tokens[0])], abs=1e-5)


def test_tokens_of_one_answer_are_drawn_independently(chain, open_lm):
    """Pairs of tokens follow the product: one row's random numbers are not used twice."""
    half = {"a": 0.5, "b": 0.3, "c": 0.2}
    lm, draws = open_lm(chain({"go": half, "a": half, "b": half, "c": half})), 4000
    prompt = lm.tokenizer("go")["input_ids"]
    found = generate(lm, [prompt] * draws, [fold("pair", n) for n in range(draws)], decoding(max_new_tokens=2))
    pairs = Counter(lm.text(tokens) for tokens, _ in found)
    weights = {f"{x} {y}": p * q for x, p in half.items() for y, q in half.items()}
    assert chi_square(pairs, weights, draws) < 26.1  # 99.9%, 8 degrees of freedom


def test_neighbouring_seeds_draw_independently(chain, open_lm):
    """Candidates 2n and 2n + 1 of one prompt: their pairs follow the product."""
    half = {"a": 0.6, "b": 0.4}
    lm, draws = open_lm(chain({"go": half})), 4000
    prompt = lm.tokenizer("go")["input_ids"]
    found = generate(lm, [prompt] * draws, [fold(0, "p", n) for n in range(draws)], decoding(max_new_tokens=1))
    words = [lm.text(tokens) for tokens, _ in found]
    pairs = Counter(f"{x} {y}" for x, y in zip(words[::2], words[1::2], strict=True))
    weights = {f"{x} {y}": p * q for x, p in half.items() for y, q in half.items()}
    assert chi_square(pairs, weights, draws // 2) < 16.3  # 99.9%, 3 degrees of freedom


LOUD = {
    "do_sample": True,
    "temperature": 0.1,
    "top_k": 1,
    "top_p": 0.1,
    "repetition_penalty": 5.0,
    "no_repeat_ngram_size": 1,
    "suppress_tokens": [7, 8],
    "begin_suppress_tokens": [5],
    "bad_words_ids": [[9]],
    "min_new_tokens": 9,
    "min_length": 20,
    "max_length": 5,
    "num_beams": 3,
    "num_return_sequences": 2,
    "forced_eos_token_id": 10,
    "length_penalty": 3.0,
    "exponential_decay_length_penalty": [1, 3.0],
    "renormalize_logits": True,
}


def test_what_the_models_own_generation_settings_say_does_not_bend_our_draws(lm, lm_folder, changed, open_lm):
    """The library merges them into the settings that it is called with."""
    loud = open_lm(changed(lm_folder, "generation_config.json", eos_token_id=2, **LOUD))
    assert loud.model.generation_config.no_repeat_ngram_size == 1
    for strategy in ("sample", "greedy"):
        how = decoding(strategy=strategy, repetition_penalty=1.2)
        same(generate(loud, PROMPTS, SEEDS, how), generate(lm, PROMPTS, SEEDS, how), tolerance=0)
    assert search(loud, PROMPTS[0], decoding(), count=3) == search(lm, PROMPTS[0], decoding(), count=3)
    assert loud.model.generation_config.no_repeat_ngram_size == 1  # as it was, for who exports the model


# -- the searches


def theirs(lm, prompt, **options):
    from transformers import GenerationConfig

    config = GenerationConfig(max_new_tokens=12, eos_token_id=list(lm.eos), pad_token_id=lm.pad, **options)
    return lm.model.generate(
        torch.tensor([prompt]), generation_config=config, return_dict_in_generate=True, output_scores=True
    )


def ended(row, lm):
    return row[: row.index(2) + 1] if 2 in row else row


def test_greedy_is_the_librarys_greedy(lm, gpt2):
    for model in (lm, gpt2):
        for prompt in PROMPTS:
            expected = theirs(model, prompt, do_sample=False).sequences[0, len(prompt) :].tolist()
            ((tokens, _),) = generate(model, [prompt], [0], decoding(strategy="greedy"))
            assert tokens == ended(expected, model)


def test_beam_search_is_the_librarys_with_its_scores(lm):
    for prompt in PROMPTS:
        options = {"do_sample": False, "num_beams": 4, "num_return_sequences": 4}
        expected = theirs(lm, prompt, **options)
        found = search(lm, prompt, decoding(strategy="beam", beams=4), count=4)
        assert found == [ended(row, lm) for row in expected.sequences[:, len(prompt) :].tolist()]
        means = torch.stack(
            [lp.mean() for lp in score(lm, [Row(tuple(prompt), tuple(r)) for r in found], batch_size=4)]
        )
        torch.testing.assert_close(means, expected.sequences_scores, rtol=0, atol=1e-5)
        assert means.tolist() == sorted(means.tolist(), reverse=True)


def test_a_beam_search_is_as_wide_as_answers_are_asked_for_and_no_filter_narrows_it(lm):
    found = search(lm, PROMPTS[0], decoding(strategy="beam", beams=1), count=5)
    assert len({tuple(row) for row in found}) == 5
    narrow = decoding(strategy="beam", beams=1, top_k=1, top_p=0.1, temperature=0.2)
    assert search(lm, PROMPTS[0], narrow, count=5) == found


def test_beam_search_finds_the_best_answers_of_a_small_tree(chain, open_lm):
    """Greedy goes to b (.6), whose best end has .6 * .4; the best answer is c (.4) and then surely d."""
    split = {"e": 0.4, "f": 0.35, "g": 0.25}
    lm = open_lm(chain({"go": {"b": 0.6, "c": 0.4}, "b": split, "c": {"d": 1.0}}))
    prompt = lm.tokenizer("go")["input_ids"]
    found = search(lm, prompt, decoding(strategy="beam", beams=6), count=4)
    assert [lm.text(row) for row in found] == ["c d", "b e", "b f", "b g"]
    ((tokens, _),) = generate(lm, [prompt], [0], decoding(strategy="greedy"))
    assert lm.text(tokens) == "b e"


def slow_diverse(lm, prompt, count, how):
    """One answer after the other at each step, a full forward pass for each, no cache and no padding."""
    answers = [[] for _ in range(count)]
    for _ in range(how.max_new_tokens):
        taken = Counter()
        for answer in answers:
            if answer and (answer[-1] == 2 or any(text in lm.text(answer) for text in how.stop)):
                continue
            logits = lm.model(torch.tensor([[*prompt, *answer]])).logits[0, -1]
            lp = (logits / how.temperature).log_softmax(-1)
            for token, times in taken.items():
                lp[token] -= how.diversity_penalty * times
            answer.append(int(lp.argmax()))
            taken[answer[-1]] += 1
    return answers


@pytest.mark.parametrize("options", [{}, {"temperature": 0.8}, {"diversity_penalty": 0.3}, {"stop": ["was", "good"]}])
def test_diverse_beam_is_a_slow_one_written_down(lm, options):
    how = decoding(strategy="diverse_beam", **options)
    count, ends = 4, set()
    prompts = [prompt for prompt in PROMPTS for _ in range(count)]
    found = [tokens for tokens, _ in generate(lm, prompts, [0] * len(prompts), how, group=count)]
    for place, prompt in enumerate(PROMPTS):
        assert found[count * place :][:count] == slow_diverse(lm, prompt, count, how)
        ends |= {len(row) for row in found[count * place :][:count]}
    assert len(ends) > 1  # some have ended while others went on


def test_an_answer_that_has_ended_penalizes_nobody(chain, open_lm):
    """The first answer says "x" and stops. The others' second tokens are free to be what it would have said next."""
    lm = open_lm(chain({"go": {"x": 0.5, "y": 0.4}, "x": {"z": 1.0}, "y": {"z": 0.6, "w": 0.4}}))
    prompt = lm.tokenizer("go")["input_ids"]
    how = decoding(strategy="diverse_beam", diversity_penalty=2.0, stop=["x"], max_new_tokens=2)
    assert [lm.text(tokens) for tokens, _ in generate(lm, [prompt] * 2, [0, 0], how, group=2)] == ["x", "y z"]
    going = how.model_copy(update={"stop": []})
    assert [lm.text(tokens) for tokens, _ in generate(lm, [prompt] * 2, [0, 0], going, group=2)] == ["x z", "y w"]


def test_diverse_beam_differs_from_beam_and_a_huge_penalty_makes_every_first_token_another(lm):
    how = decoding(strategy="diverse_beam", diversity_penalty=1e4)
    found = [tokens for tokens, _ in generate(lm, [PROMPTS[0]] * 6, [0] * 6, how, group=6)]
    assert len({row[0] for row in found}) == 6
    assert found != search(lm, PROMPTS[0], decoding(strategy="beam", beams=6), count=6)
    none = decoding(strategy="diverse_beam", diversity_penalty=0)
    assert len({tuple(tokens) for tokens, _ in generate(lm, [PROMPTS[0]] * 6, [0] * 6, none, group=6)}) == 1


def test_a_repetition_penalty_counts_what_the_answer_said_and_not_its_prompt_or_padding(lm, pad_is_eos):
    how = decoding(strategy="greedy", repetition_penalty=3.0)
    for model in (lm, pad_is_eos):
        for prompt, (tokens, _) in zip(PROMPTS, generate(model, PROMPTS, SEEDS, how), strict=True):
            answer = []
            while len(answer) < 12 and 2 not in answer:
                logits = model.model(torch.tensor([[*prompt, *answer]])).logits[0, -1].clone()
                for token in set(answer):
                    logits[token] *= 3.0 if logits[token] < 0 else 1 / 3.0
                answer.append(int(logits.argmax()))
            assert tokens == answer


# -- where an answer ends


def test_an_answer_that_repeats_its_prompt_is_cut_off_by_count(chain, open_lm):
    lm = open_lm(chain({"go": {"a": 1.0}, "a": {"b": 1.0}, "b": {"go": 1.0}}))
    prompt = lm.tokenizer("go a b")["input_ids"]
    ((tokens, _),) = generate(lm, [prompt], [0], decoding(max_new_tokens=7))
    assert lm.text(tokens) == "go a b go a b go"


def test_the_end_token_is_part_of_the_answer_once_even_where_it_pads(chain, open_lm, changed):
    folder = chain({"go": {"a": 1.0}, "a": {"b": 1.0}, "b": {"<eos>": 1.0}})
    lm = open_lm(changed(folder, "tokenizer_config.json", pad_token="<eos>"))
    assert lm.pad == lm.eos[0] == 2
    long, short = lm.tokenizer("go")["input_ids"], lm.tokenizer("b")["input_ids"]
    found = generate(lm, [long, short], [0, 1], decoding())
    assert [tokens for tokens, _ in found] == [[index(lm, "a"), index(lm, "b"), 2], [2]]
    assert [len(logprobs) for _, logprobs in found] == [3, 1]


def test_each_of_several_end_tokens_ends_and_a_cut_answer_has_none(lm, lm_folder, changed, open_lm):
    many = open_lm(changed(lm_folder, "generation_config.json", eos_token_id=[2, 7, 9]))
    found = generate(many, [[1, 4, 5]] * 64, list(range(64)), decoding(max_new_tokens=6))
    seen = set()
    for tokens, _ in found:
        ends = [place for place, token in enumerate(tokens) if token in (2, 7, 9)]
        assert ends == [len(tokens) - 1] or (not ends and len(tokens) == 6)
        seen |= {tokens[-1]} if ends else {"cut"}
    assert seen == {2, 7, 9, "cut"}
    whole = generate(lm, [[1, 4, 5]] * 64, list(range(64)), decoding(max_new_tokens=6))
    assert all(theirs[: len(mine)] == mine for (mine, _), (theirs, _) in zip(found, whole, strict=True))


def test_no_end_before_the_fewest_tokens_and_no_token_after_the_most(lm, lm_folder, changed, open_lm):
    many = open_lm(changed(lm_folder, "generation_config.json", eos_token_id=[2, 7, 9, 10]))
    how = decoding(min_new_tokens=4, max_new_tokens=6)
    lengths = {len(tokens) for tokens, _ in generate(many, [[1, 4, 5]] * 64, list(range(64)), how)}
    assert lengths == {5, 6}
    assert {len(t) for t, _ in generate(lm, [[1, 4]] * 9, list(range(9)), decoding(max_new_tokens=1))} == {1}


ROUND = {"go": {"Human": 1.0}, "Human": {":": 1.0}, ":": {"yes": 1.0}, "yes": {"Human": 1.0}}


def test_a_stop_text_ends_an_answer_at_the_token_that_completes_it(chain, open_lm):
    lm = open_lm(chain(ROUND))
    prompts = [lm.tokenizer(text)["input_ids"] for text in ("go", "Human : yes go", ":")]
    for strategy in ("sample", "greedy", "diverse_beam"):
        found = generate(lm, prompts, [0, 1, 2], decoding(strategy=strategy, stop=["Human :"]))
        told = [lm.text(tokens) for tokens, _ in found]
        assert told == ["Human :", "Human :", "yes Human :"]
        assert [cut(text, ["Human :"]) for text in told] == ["", "", "yes "]
        assert [len(logprobs) for _, logprobs in found] == [2, 2, 3]
    (found,) = search(lm, prompts[2], decoding(strategy="beam", stop=["Human :"]), count=1)
    assert lm.text(found) == "yes Human :"


def test_a_stop_text_that_begins_in_the_prompt_does_not_end_the_answer(chain, open_lm):
    lm = open_lm(chain(ROUND))
    prompt = lm.tokenizer("go Human")["input_ids"]
    ((tokens, _),) = generate(lm, [prompt], [0], decoding(stop=["Human :"], max_new_tokens=8))
    assert lm.text(tokens) == ": yes Human :"


def test_the_first_of_several_stop_texts_ends(chain, open_lm):
    lm = open_lm(chain(ROUND))
    prompt = lm.tokenizer("go")["input_ids"]
    for stop in (["yes", ":"], [":", "yes"], [": yes", "an :"]):
        ((tokens, _),) = generate(lm, [prompt], [0], decoding(stop=stop))
        assert lm.text(tokens) == "Human :"
    assert cut("a b c", ["c", "b"]) == "a "
    assert cut("a b c", ["d"]) == cut("a b c", []) == "a b c"


def test_a_special_token_may_be_a_stop_text(chain, open_lm):
    """Texts are without special tokens, so it has to be looked for among the ids."""
    lm = open_lm(chain({"go": {"a": 1.0}, "a": {"<unk>": 1.0}, "<unk>": {"a": 1.0}}))
    prompt = lm.tokenizer("go")["input_ids"]
    for strategy in ("sample", "greedy", "diverse_beam"):
        ((tokens, _),) = generate(lm, [prompt], [0], decoding(strategy=strategy, stop=["<unk>", "go"]))
        assert tokens == [index(lm, "a"), 3]
    assert search(lm, prompt, decoding(strategy="beam", stop=["<unk>"]), count=1) == [[index(lm, "a"), 3]]
    assert Ending(lm, ["<unk>"]).ids == (2, 3)


def test_stop_texts_change_nothing_before_them(lm):
    prompts, seeds = [[1, 4, 5]] * 64, list(range(64))
    free = generate(lm, prompts, seeds, decoding())
    stopped = generate(lm, prompts, seeds, decoding(stop=["yes no", "fine"]))
    shorter = 0
    for (tokens, _), (whole, _) in zip(stopped, free, strict=True):
        assert whole[: len(tokens)] == tokens
        assert not any(text in lm.text(tokens[:-1]) for text in ("yes no", "fine"))
        done = any(text in lm.text(tokens) for text in ("yes no", "fine"))
        assert done or tokens == whole
        shorter += len(tokens) < len(whole)
    assert 10 < shorter < 60


# -- what is refused


def test_more_tokens_than_the_model_has_positions_is_a_sentence(gpt2):
    prompt = [1] + [5] * 30
    ((tokens, _),) = generate(gpt2, [prompt], [0], decoding(max_new_tokens=9, min_new_tokens=9))
    assert len(tokens) == 9
    for call in (
        lambda how: generate(gpt2, [[1], prompt], [0, 1], how),
        lambda how: search(gpt2, prompt, how.model_copy(update={"strategy": "beam"}), count=2),
    ):
        with pytest.raises(UserError, match="a prompt of 31 tokens and 10 new ones are more than the 40 that '.*' is"):
            call(decoding(max_new_tokens=10))


def test_exact_draws_are_those_from_the_model_itself():
    assert DecodingConfig().exact
    assert DecodingConfig(max_new_tokens=5, stop=["x"]).exact  # these end an answer, and bend no draw
    for bent in (
        {"temperature": 0.9},
        {"top_p": 0.9},
        {"top_k": 5},
        {"repetition_penalty": 1.1},
        {"min_new_tokens": 1},
        {"strategy": "greedy"},
        {"strategy": "beam"},
        {"strategy": "diverse_beam"},
    ):
        assert not DecodingConfig(**bent).exact


@pytest.mark.parametrize("strategy", ["sample", "greedy", "diverse_beam", "beam"])
def test_rows_that_a_table_is_filled_up_with_are_never_drawn(lm, lm_folder, open_lm, strategy):
    """A table of 24 rows for 16 tokens; the others are likelier than any token."""
    filled = open_lm(lm_folder)
    filled.model.resize_token_embeddings(24)
    filled.model.get_input_embeddings().weight.data[16:] = 3 * filled.model.get_input_embeddings().weight.data[4]
    assert filled.nameless == list(range(16, 24))
    assert lm.nameless == []
    how = decoding(strategy=strategy, max_new_tokens=8)
    if strategy == "beam":
        answers = search(filled, [1, 5, 6], how, count=3)
    else:
        answers = [tokens for tokens, _ in generate(filled, [[1, 5, 6]] * 6, range(6), how, group=3)]
    assert all(token < 16 for answer in answers for token in answer)


def test_a_model_that_computes_nan_is_told_when_it_draws(lm_folder, open_lm):
    broken = open_lm(lm_folder)
    broken.model.model.norm.weight.data.fill_(math.nan)
    with pytest.raises(UserError, match="the model's probabilities are no numbers: its training diverged"):
        generate(broken, [[1, 5]], [0], decoding())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"stop": ["User:", ""]}, "decoding: stop.1: this should have at least 1 letter"),
        ({"temperature": 1e-300}, "decoding: temperature: this should be at least 0.001"),
        ({"temperature": math.nan}, "decoding: temperature: .*finite number"),
        ({"repetition_penalty": 1e-300}, "decoding: repetition_penalty: this should be at least 0.01"),
        ({"top_p": math.inf}, "decoding: top_p"),
    ],
)
def test_settings_that_no_draw_can_follow_are_told(options, told):
    with pytest.raises(UserError, match=told):
        check(DecodingConfig, options, "decoding")


@pytest.mark.parametrize("top_p", [0.1, 0.9, 0.99, 1e-6])
@pytest.mark.parametrize("scales", [[8.0, 8.0], [0.1, 8.0, 2.0]], ids=["narrow", "some wide"])
def test_a_nucleus_is_the_librarys_without_its_sort(scales, top_p):
    """Where it is found among the likeliest thousand tokens, and where a row is so flat that it is not."""
    drawn = torch.randn(len(scales), 5000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    scores = drawn * torch.tensor(scales)[:, None]
    found = nucleus(torch.empty(0), scores, top_p=top_p)
    peer = TopPLogitsWarper(top_p)(torch.empty(0), scores)
    p = scores.softmax(-1)
    # which token is the last one in is a matter of rounding, and no more than that
    assert (p * (found.isfinite() != peer.isfinite())).sum(-1).max() < 1e-6
    assert ((p * found.isfinite()).sum(-1) > top_p - 1e-6).all()
    assert torch.equal(found[found.isfinite()], scores[found.isfinite()])
    assert found.isfinite().any(-1).all()
