"""The sampler of a language model keeps the contract of samplers, with text, tokens and log-probabilities in it."""

from collections import Counter

import pytest
import torch

from raftdiff.errors import UserError
from raftdiff.llm.model.rows import row_of, score
from raftdiff.llm.sampling.generation import DecodingConfig
from raftdiff.llm.sampling.policy import LMSampler, MagicConfig, PolicySamplerConfig, TeacherSamplerConfig
from raftdiff.scoring import in_order
from raftdiff.seeds import fold
from raftdiff.testing.conformance import check_sampler
from raftdiff.types import Prompt

TEXTS = {"a": "the film", "b": "good", "c": "the film was long was long was long", "d": "yes no", "e": "dull film"}
PROMPTS = [Prompt(name, text, text, text) for name, text in TEXTS.items()]
STRATEGIES = {
    "sample": {},
    "bent": {"temperature": 0.8, "top_p": 0.9, "repetition_penalty": 1.2, "stop": ["was"]},
    "greedy": {"strategy": "greedy"},
    "beam": {"strategy": "beam"},
    "diverse": {"strategy": "diverse_beam", "temperature": 0.8},
}


def decoding(**options):
    return DecodingConfig(**{"max_new_tokens": 8} | options)


def policy(lm, batch_size=64, **options):
    return PolicySamplerConfig(decoding=decoding(**options), batch_size=batch_size).build(lm)


def draw(sampler, prompts=PROMPTS, per_prompt=4, seed=5, done=frozenset()):
    return {one.key: one for one in sampler.sample(prompts, per_prompt=per_prompt, seed=seed, round=1, done=done)}


@pytest.mark.parametrize("options", STRATEGIES.values(), ids=STRATEGIES)
@pytest.mark.parametrize("batch_size", [3, 64])
def test_it_keeps_the_contract_of_samplers(lm, options, batch_size):
    check_sampler(policy(lm, batch_size, **options), PROMPTS, per_prompt=3).demand()


@pytest.mark.parametrize("options", STRATEGIES.values(), ids=STRATEGIES)
def test_an_answer_is_the_same_in_any_batch_any_order_and_any_company(lm, options):
    whole = draw(policy(lm, 64, **options))
    others = {
        "one by one": draw(policy(lm, 1, **options)),
        "in threes": draw(policy(lm, 3, **options)),
        "backwards": draw(policy(lm, 7, **options), PROMPTS[::-1]),
    }
    assert len(whole) == 20
    for found in others.values():
        assert found.keys() == whole.keys()
        for key, sample in found.items():
            assert sample.media == whole[key].media
            assert torch.equal(sample.aux["tokens"], whole[key].aux["tokens"])
            torch.testing.assert_close(sample.aux["logprobs"], whole[key].aux["logprobs"], rtol=0, atol=1e-5)


def test_a_prompt_alone_has_the_answers_that_it_has_among_others(lm):
    whole = draw(policy(lm))
    for key, sample in draw(policy(lm, 2), PROMPTS[2:3]).items():
        assert sample.media == whole[key].media
        assert torch.equal(sample.aux["tokens"], whole[key].aux["tokens"])


def test_prompts_of_like_length_are_drawn_together_and_the_longest_first(lm):
    sampler = policy(lm, 4)
    found = list(sampler.sample(PROMPTS, per_prompt=2, seed=5, round=1, done=frozenset()))
    assert [one.prompt.id for one in found] == ["c", "c", "a", "a", "d", "d", "e", "e", "b", "b"]
    batches = sampler.batches(PROMPTS, per_prompt=2, round=1)
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert [key for batch in batches for key in batch] == [(one.prompt.id, one.index) for one in found]
    ordered = in_order(found, PROMPTS)
    assert [(one.prompt.id, one.index) for one in ordered] == [(name, k) for name in TEXTS for k in range(2)]


@pytest.mark.parametrize("options", [{}, {"strategy": "diverse_beam"}, {"strategy": "beam"}])
def test_what_is_done_is_skipped_and_the_rest_is_the_same_to_the_bit(lm, options):
    sampler = policy(lm, 5, **options)
    whole = draw(sampler)
    before = sampler.network_evaluations()
    done = {("c", index) for index in range(4)} | {("a", 0), ("b", 1), ("e", 3)}  # the longest prompt comes first
    rest = draw(sampler, done=done)
    assert {(key.prompt, key.index) for key in whole} - {(key.prompt, key.index) for key in rest} == done
    for key, sample in rest.items():
        assert sample.media == whole[key].media
        assert all(torch.equal(sample.aux[name], whole[key].aux[name]) for name in ("tokens", "logprobs"))
    assert sampler.network_evaluations() < 2 * before  # whole batches are not drawn at all


@pytest.mark.parametrize("options", STRATEGIES.values(), ids=STRATEGIES)
def test_a_sample_carries_its_tokens_and_their_log_probabilities(lm, options):
    samples = draw(policy(lm, **options))
    expected = score(lm, [row_of(lm, sample, learning=False) for sample in samples.values()], batch_size=4)
    for sample, lp in zip(samples.values(), expected, strict=True):
        tokens = sample.aux["tokens"]
        assert (tokens.dtype, sample.aux["logprobs"].dtype) == (torch.int64, torch.float32)
        assert 1 <= len(tokens) <= 8
        assert 2 not in tokens[:-1]
        torch.testing.assert_close(sample.aux["logprobs"], lp, rtol=0, atol=1e-4)
        assert sample.media == lm.text(tokens.tolist()).split("was" if "stop" in options else "<never>")[0].strip()


@pytest.mark.parametrize("config", [PolicySamplerConfig, TeacherSamplerConfig])
def test_a_letter_that_lacks_bytes_is_no_part_of_an_answer_that_was_cut(lm, config, monkeypatch):
    monkeypatch.setattr(
        type(lm), "text", lambda lm, ids: "".join("yes"[i : i + 1] or "\ufffd" for i in range(len(ids)))
    )
    sampler = LMSampler(lm, decoding(), 64, "policy" if config is PolicySamplerConfig else "teacher")
    found = list(draw(sampler, per_prompt=8).values())
    cut = [one for one in found if one.cut]
    assert {one.media for one in cut} == {"yes"}
    assert all("tokens" not in one.aux or len(one.aux["tokens"]) == 8 for one in cut)
    assert any(one.media.endswith("\ufffd") for one in found if not one.cut), "an ended one is as it was said"


def test_seeds_rounds_and_the_count_of_tokens_are_recorded(lm):
    sampler = policy(lm)
    samples = draw(sampler)
    assert all(one.seed == fold(5, one.prompt.id, one.index) and one.round == 1 for one in samples.values())
    assert sampler.network_evaluations() == sum(len(one.aux["tokens"]) for one in samples.values())
    assert draw(sampler, [], per_prompt=2) == {}


def test_the_candidates_of_a_prompt_differ_and_so_do_those_of_another_seed(lm):
    first, second = draw(policy(lm), per_prompt=8, seed=0), draw(policy(lm), per_prompt=8, seed=1)
    per_prompt = Counter(key.prompt for key, text in {(key, one.media) for key, one in first.items()})
    assert min(per_prompt.values()) >= 5
    assert sum(first[key].media != second[key].media for key in first) > 30


def test_the_sampling_text_is_answered_and_not_the_caption(lm):
    magic = Prompt("m", "good", "good film was", "good")
    plain = Prompt("m", "good film was", "good film was", "good film was")
    assert [s.media for s in draw(policy(lm), [magic]).values()] == [
        s.media for s in draw(policy(lm), [plain]).values()
    ]
    (sample, *_) = draw(policy(lm), [magic]).values()
    assert row_of(lm, sample, learning=True).prompt == (1, 7)
    assert row_of(lm, sample, learning=False).prompt == (1, 7, 5, 6)


def test_system_text_and_earlier_turns_reach_the_model(chat_folder, open_lm):
    lm = open_lm(chat_folder)
    turns = [{"role": "user", "content": "yes"}, {"role": "assistant", "content": "no"}]
    told = Prompt("p", "good", "good", "good", meta={"system": "dull", "history": turns})
    bare = Prompt("p", "good", "good", "good")
    with_turns, without = (draw(policy(lm), [one], per_prompt=8) for one in (told, bare))
    assert [s.media for s in with_turns.values()] != [s.media for s in without.values()]
    text = "dull user yes assistant no user good"  # the same turns, spelled out by hand
    by_hand = Prompt("p", text, text, text)
    lm = open_lm(chat_folder, template="system {prompt} assistant")
    plain = LMSampler(lm, decoding(), 64, "policy")
    with_start = draw(plain, [by_hand], per_prompt=8)  # after <bos>, which the chat template leaves out
    assert (
        row_of(lm, next(iter(with_start.values())), learning=False).prompt[1:]
        == row_of(open_lm(chat_folder), next(iter(with_turns.values())), learning=False).prompt
    )


@pytest.mark.parametrize(
    ("roles", "sentence"),
    [
        (["assistant"], "history.0 is the assistant's, and the user's turn comes there"),
        (["user", "user", "assistant"], "history.1 is the user's, and the assistant's turn comes there"),
        (["user", "assistant", "user"], "history ends with the user, and the prompt is the user's turn"),
    ],
)
def test_magic_turns_alternate_as_chat_templates_have_them(roles, sentence):
    with pytest.raises(ValueError, match=sentence):
        MagicConfig(history=[{"role": role, "content": "hello"} for role in roles])


def test_magic_turns_are_read_while_drawing_and_not_learnt_after(chat_folder, open_lm):
    lm = open_lm(chat_folder)
    turns = [{"role": "user", "content": "yes"}, {"role": "assistant", "content": "no"}]
    own = [{"role": "user", "content": "good"}, {"role": "assistant", "content": "dull"}]
    magic = MagicConfig(system="dull", history=turns)
    bare = Prompt("p", "good", "good", "good", meta={"history": own})
    told = Prompt("p", "good", "good", "good", meta={"system": "dull", "history": [*turns, *own]})
    by_magic = draw(LMSampler(lm, decoding(), 64, "policy", magic), [bare], per_prompt=8)
    by_hand = draw(policy(lm), [told], per_prompt=8)
    assert [s.media for s in by_magic.values()] == [s.media for s in by_hand.values()]
    sample = next(iter(by_magic.values()))
    assert sample.prompt == bare, "and so it is learnt"
    assert PolicySamplerConfig(magic=magic).build(lm)._magic == magic


def test_beams_are_the_best_answers_best_first(lm):
    for samples in (draw(policy(lm, 2, strategy="beam"), [prompt]) for prompt in PROMPTS):
        means = [float(one.aux["logprobs"].mean()) for one in samples.values()]
        assert means == sorted(means, reverse=True)
        assert len({tuple(one.aux["tokens"].tolist()) for one in samples.values()}) == 4


def test_an_answer_that_ends_at_once_is_an_empty_text_with_one_token(chain, open_lm):
    lm = open_lm(chain({"go": {"<eos>": 0.7, "a": 0.3}}))
    samples = draw(policy(lm), [Prompt("p", "go", "go", "go")], per_prompt=40)
    empty = [one for one in samples.values() if not one.media]
    assert 20 < len(empty) < 36
    assert all(one.aux["tokens"].tolist() == [2] for one in empty)
    assert all(row_of(lm, one, learning=True).answer == (2,) for one in empty)


def test_a_teacher_gives_text_alone(lm, lm_folder):
    """Its tokens may be another vocabulary's, and its probabilities are not the policy's."""
    config = TeacherSamplerConfig(model={"base": "teacher", "device": "cpu"}, decoding=decoding())
    teacher = config.build(lambda name: str(lm_folder) if name == "teacher" else name)
    assert (teacher.source, teacher.provides) == ("teacher", ())
    found = draw(teacher)
    assert all(one.source == "teacher" and set(one.aux) <= {"cut"} for one in found.values())
    assert [one.media for one in found.values()] == [one.media for one in draw(policy(lm)).values()]
    check_sampler(teacher, PROMPTS).demand()


def test_an_answer_that_reached_its_longest_is_cut_and_a_stop_text_is_an_end(chain):
    folder = chain({"go": {"a": 1.0}, "a": {"b": 1.0}, "b": {"c": 1.0}, "c": {"<eos>": 1.0}})
    config = TeacherSamplerConfig(model={"base": str(folder), "device": "cpu"}, decoding=DecodingConfig())
    teacher = config.build(str)

    def taught(**options):
        teacher.decoding = decoding(**options)
        go = Prompt("go", "go", "go", "go")
        return [
            (one.media, one.cut, row_of(teacher.lm, one, learning=True).answer[-1] == teacher.lm.eos[0])
            for one in draw(teacher, [go], 1).values()
        ]

    assert taught() == [("a b c", False, True)]
    assert taught(max_new_tokens=2) == [("a b", True, False)]
    assert taught(max_new_tokens=3, stop=["c"]) == [("a b", False, True)]
    assert taught(max_new_tokens=2, strategy="beam") == [("a b", True, False)]
    assert taught(max_new_tokens=1, stop=["<unk>"]) == [("a", True, False)]
    on_policy = LMSampler(teacher.lm, decoding(max_new_tokens=2), 64, "policy")
    assert [one.cut for one in draw(on_policy, [Prompt("go", "go", "go", "go")], 1).values()] == [True]


def test_a_teacher_that_was_cut_off_before_it_said_anything_has_no_answer(chain):
    folder = chain({"go": {"<pad>": 1.0}, "<pad>": {"<pad>": 1.0}, "b": {}})
    config = TeacherSamplerConfig(model={"base": str(folder), "device": "cpu"}, decoding=decoding(max_new_tokens=2))
    assert draw(config.build(str), [Prompt("go", "go", "go", "go")], 1) == {}


def test_a_prompt_that_is_too_long_is_named(lm_folder, open_lm):
    with pytest.raises(UserError, match="The prompt 'c' is 9 tokens long, more than model.max_prompt_tokens .5."):
        draw(policy(open_lm(lm_folder, max_prompt_tokens=5)))
