"""The rewards on text that need no model and no server: sentiment, length, regex, json, translation, given."""

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from raftdiff.chat.dialogue import cut, dialogue, fill, messages, spoken, whole
from raftdiff.errors import UserError
from raftdiff.recipes.config import Config, check
from raftdiff.rewards.given import GivenConfig
from raftdiff.rewards.json_valid import JsonConfig, strict
from raftdiff.rewards.length import LengthConfig, length
from raftdiff.rewards.regex import RegexConfig
from raftdiff.rewards.sentiment import SentimentConfig, SentimentReward, sentences
from raftdiff.rewards.translation import TranslationConfig
from raftdiff.testing.conformance import check_reward
from raftdiff.types import Prompt, Reward, Sample


def samples(*texts: str, **meta: Any) -> list[Sample[str]]:
    prompt = Prompt("p", "How are you?", "", "", meta=meta)
    return [Sample(0, prompt, index, index, "policy", text) for index, text in enumerate(texts)]


def scores(config: type[Config], texts: list[str], **options: Any) -> list[float]:
    reward: Reward[str] = check(config, options).build()  # type: ignore[attr-defined]
    return reward.score(samples(*texts)).tolist()


ANSWERS = samples(
    "I am so happy for you, this is wonderful!",
    '{"mood": "bad", "level": 3}',
    "I am only a language model. I hate it.",
    "",
    "```json\n[1, 2]\n```",
    answers=[{"text": "", "score": 2.0}, {"text": "I am only a language model. I hate it.", "score": -1}],
    reference=["I am happy for you.", "```json\n[1]\n```"],
)


@pytest.mark.parametrize(
    "build",
    [
        SentimentConfig().build,
        SentimentConfig(direction="negative", unit="sentence").build,
        LengthConfig(target=4).build,
        LengthConfig(unit="characters", direction="more").build,
        RegexConfig(pattern="[aeiou]", mode="count").build,
        RegexConfig(pattern="[aeiou]", mode="fraction", negate=True).build,
        JsonConfig(required={"mood": "string"}).build,
        TranslationConfig().build,
        TranslationConfig(metric="bleu").build,
        GivenConfig().build,
    ],
)
def test_they_keep_the_contract(build: Callable[[], Reward[str]]) -> None:
    report = check_reward(build(), ANSWERS)
    assert all(check.passed for check in report.checks), str(report)


def test_sentiment_is_vaders_own_compound() -> None:
    """The examples of the package's own documentation."""
    texts = [
        "VADER is smart, handsome, and funny.",
        "VADER is not smart, handsome, nor funny.",
        "Today sux",
        "The table.",
    ]
    found = scores(SentimentConfig, texts)
    assert found == pytest.approx([0.8316, -0.7424, -0.3612, 0.0], abs=2e-6)
    assert scores(SentimentConfig, texts, direction="negative") == [-value for value in found]


def test_sentiment_by_sentences_does_not_saturate() -> None:
    once, often = "It is good. It is a chair.", "It is good. It is a chair. " * 20
    by_text = scores(SentimentConfig, [once, often])
    by_sentence = scores(SentimentConfig, [once, often], unit="sentence")
    assert by_text[1] > 2 * by_text[0] > 0
    assert by_sentence == pytest.approx([0.4404 / 2] * 2, abs=2e-6)
    assert sentences('He said "no." Then he left!\n\n- ...\nAt 3.5 km') == [
        'He said "no.',
        "Then he left!",
        "At 3.5 km",
    ]


@pytest.mark.parametrize(
    ("config", "module", "package"),
    [
        (SentimentConfig, "vaderSentiment.vaderSentiment", "vaderSentiment"),
        (TranslationConfig, "sacrebleu.metrics", "sacrebleu"),
    ],
)
def test_a_missing_package_names_the_extra(
    config: type[Config], module: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"The reward '\w+' needs {package} \(.*\): pip install 'raftdiff\[llm\]'\."):
        config().build()  # type: ignore[attr-defined]


def test_length_counts_what_people_count() -> None:
    text = "It's a well-known “fact”, 42 — n'est-ce pas?\n"
    assert scores(LengthConfig, [text, ""], direction="more") == [7, 0]
    assert scores(LengthConfig, [text, ""], direction="more", unit="tokens") == [8, 0]
    assert scores(LengthConfig, [text, "日本語"], direction="more", unit="characters") == [len(text), 3]


def test_length_towards_a_target_and_beyond_it() -> None:
    texts = ["", "a b", "a b c", "a b c d e"]
    assert scores(LengthConfig, texts, target=3) == [-3, -1, 0, -2]
    assert scores(LengthConfig, texts, direction="more", target=3) == [0, 2, 3, 3]
    assert scores(LengthConfig, texts, direction="fewer", target=3) == [-3, -3, -3, -5]
    assert scores(LengthConfig, texts, direction="fewer") == [0, -2, -3, -5]
    with pytest.raises(UserError, match="'target' is required here, unless direction is more or fewer"):
        check(LengthConfig, {})


def test_regex_modes() -> None:
    texts = ["aXbX", "XX", "ab", ""]
    assert scores(RegexConfig, texts, pattern="X") == [1, 1, 0, 0]
    assert scores(RegexConfig, texts, pattern="X+", mode="whole") == [0, 1, 0, 0]
    assert scores(RegexConfig, texts, pattern="X", mode="count") == [2, 2, 0, 0]
    assert scores(RegexConfig, texts, pattern="X", mode="count", limit=1) == [1, 1, 0, 0]
    assert scores(RegexConfig, texts, pattern="X", mode="fraction") == [0.5, 1, 0, 0]
    assert scores(RegexConfig, texts, pattern="X", negate=True) == [0, 0, 1, 1]
    assert scores(RegexConfig, texts, pattern="X", mode="count", negate=True) == [-2, -2, 0, 0]
    assert scores(RegexConfig, texts, pattern="x", ignore_case=True) == [1, 1, 0, 0]
    assert scores(RegexConfig, ["a\nb", "b\na"], pattern="^b", multiline=True) == [1, 1]
    assert scores(RegexConfig, ["a\nb"], pattern="a.b", dot_all=True) == [1]
    assert scores(RegexConfig, ["a\nb"], pattern="a.b") == [0]


def test_a_pattern_that_explodes_is_given_up() -> None:
    found = scores(RegexConfig, ["a" * 40 + "b", "aaa"], pattern="^(a|aa)+$", seconds=0.2)
    assert math.isnan(found[0])
    assert found[1] == 1


def test_a_wrong_pattern_gets_a_sentence() -> None:
    with pytest.raises(UserError, match=r"The reward 'regex': '\(a' is not a regular expression: missing \)"):
        RegexConfig(pattern="(a").build()


def test_json_is_read_strictly() -> None:
    valid = ['{"a": [1, null]}', " 3 ", '"x"', 'Sure:\n```json\n{"a": 1}\n```\nDone.', "```\n[]\n```"]
    assert scores(JsonConfig, valid) == [1] * 5
    wrong = [
        "",
        "{a: 1}",
        "{'a': 1}",
        "[1,]",
        "NaN",
        "[-Infinity]",
        '{"a": 1, "a": 2}',
        "1 2",
        "[" * 100_000,
        "9" * 9999,
    ]
    assert scores(JsonConfig, wrong) == [0] * 10
    assert scores(JsonConfig, valid, block=False) == [1, 1, 1, 0, 0]
    with pytest.raises(ValueError, match="a key is given twice"):
        strict('[{"a": {"b": 1, "b": 1}}]')


def test_json_scores_what_was_asked_for() -> None:
    required = {"name": "string", "age": "integer", "pet.kind": "any", "tags": "array"}
    texts = [
        '{"name": "A", "age": 3, "pet": {"kind": null}, "tags": []}',
        '{"name": "A", "age": 3.0, "pet.kind": 1, "tags": {}}',
        '{"name": 1, "age": true, "pet": "kind", "tags": []}',
        "[]",
        "no",
    ]
    assert scores(JsonConfig, texts, required=required) == pytest.approx([1, 4 / 5, 2 / 5, 1 / 5, 0])
    assert scores(JsonConfig, ["{}", "[]", "1", "x"], root="object") == [1, 0.5, 0.5, 0]
    kinds = {
        "object": "{}",
        "array": "[]",
        "string": '""',
        "number": "1.5",
        "integer": "1",
        "boolean": "false",
        "null": "null",
    }
    for kind, right in kinds.items():
        expected = [1.0 if other == kind or (kind, other) == ("number", "integer") else 0.5 for other in kinds]
        assert scores(JsonConfig, list(kinds.values()), root=kind) == expected, (kind, right)
    with pytest.raises(UserError, match="required.age: this should be 'any', 'object'.* and 'int' is read here"):
        check(JsonConfig, {"required": {"age": "int"}})


def test_translation_is_sacrebleus_own_score() -> None:
    import sacrebleu

    texts = ["The cat sat on a mat.", "the dog", "", "The cat sat on the mat."]
    references = ["The cat sat on the mat.", "A cat was sitting on the mat."]
    for metric, wanted in {
        "chrf": lambda text: sacrebleu.sentence_chrf(text, references).score,
        "chrf++": lambda text: sacrebleu.sentence_chrf(text, references, word_order=2).score,
        "bleu": lambda text: sacrebleu.sentence_bleu(text, references).score,
    }.items():
        found = TranslationConfig(metric=metric).build().score(samples(*texts, reference=references))  # type: ignore[arg-type]
        torch.testing.assert_close(found, torch.tensor([wanted(text) for text in texts]))
        assert found[3] == pytest.approx(100)
        assert found.argmax() == 3
        assert found[2] == 0


def test_one_reference_or_several_in_any_column() -> None:
    one = TranslationConfig(column="target").build().score(samples("Guten Tag", target="Guten Tag"))
    assert one.tolist() == [pytest.approx(100)]
    for missing in ({}, {"reference": ""}, {"reference": []}, {"reference": [None]}, {"reference": 3}):
        with pytest.raises(UserError, match="prompt 'p' has no text under 'reference' to compare with"):
            TranslationConfig().build().score(samples("x", **missing))
        with pytest.raises(UserError, match="prompt 'p' has no text under 'reference' to compare with"):
            TranslationConfig().build().check_prompts([samples("x", **missing)[0].prompt])


def test_chinese_is_cut_by_characters() -> None:
    found = [
        TranslationConfig(metric="bleu", tokenize=way)
        .build()
        .score(samples("我喜欢这部电影", reference="我喜欢那部电影"))
        for way in ("13a", "zh")
    ]
    assert found[1] > found[0]


def test_given_scores_follow_the_text_not_the_number() -> None:
    answers = [{"text": "a", "score": 3}, {"text": "b", "score": None}, {"text": "c"}, {"text": "a", "score": 5.5}]
    found = GivenConfig().build().score(samples("c", "a", "b", "a", "new", answers=answers))
    torch.testing.assert_close(
        found, torch.tensor([math.nan, 3.0, math.nan, 5.5, math.nan]), equal_nan=True, msg="a mixture numbers anew"
    )
    assert GivenConfig().build().score(samples("a")).isnan().all()
    for wrong in ("4", True, math.inf):
        with pytest.raises(UserError, match=f"prompt 'p': the score {wrong!r} of an answer is not a finite number"):
            GivenConfig().build().score(samples("a", answers=[{"text": "a", "score": wrong}]))
    two = [{"text": "a", "score": math.nan}, {"text": "b"}]
    assert GivenConfig().build().score(samples("a", answers=two)).isnan().all()


def test_one_unrated_answer_is_the_answer() -> None:
    for unrated in ({}, {"score": None}, {"score": math.nan}):
        found = GivenConfig().build().score(samples("a", "new", answers=[{"text": "a", **unrated}]))
        torch.testing.assert_close(found, torch.tensor([1.0, math.nan]), equal_nan=True)
    assert GivenConfig().build().score(samples("a", answers=[{"text": "a", "score": 0.0}])).tolist() == [0.0]


def test_a_prompt_as_a_conversation() -> None:
    history = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
    prompt = Prompt("p", "How are you?", "", "", meta={"system": "Be kind.", "history": history})
    assert [turn["role"] for turn in messages(prompt)] == ["system", "user", "assistant", "user"]
    assert dialogue(prompt) == "System: Be kind.\nUser: Hi.\nAssistant: Hello.\nUser: How are you?"
    assert spoken(prompt) == "User: Hi.\nAssistant: Hello.\nUser: How are you?"
    alone = Prompt("p", "How are you?", "", "", meta={"system": "Be kind."})
    assert dialogue(alone) == "System: Be kind.\nUser: How are you?"
    assert spoken(alone) == dialogue(replace(alone, meta={})) == "How are you?"
    assert len({whole(one) for one in (prompt, alone, replace(alone, meta={}), replace(alone, id="q"))}) == 3


def test_slots_are_filled_at_once_and_braces_stay() -> None:
    assert fill("{a}{b}{c} {} {0}", {"a": "{b}", "b": "\\1 {a}"}) == "{b}\\1 {a}{c} {} {0}"
    assert cut("a Human: b Assistant: c", ["Assistant:", "Human:"]) == "a "
    assert cut("a", ["", "Human:"]) == "a"


def test_sentiment_says_nothing_of_another_script():
    reward = SentimentReward()
    said = [
        Sample(0, Prompt("p", "p", "p", "p"), n, 0, "policy", text)
        for n, text in enumerate(
            ("我很高兴", "Я счастлив", "I am happy", "very happy 好", "🙂", "naïve café, wonderful")
        )
    ]
    scores = reward.score(said)
    assert scores[:2].isnan().all()
    assert scores[2:].isfinite().all()
    assert scores[2] > 0
    assert scores[5] > 0


def test_a_chinese_answer_has_a_word_a_character():
    assert length("我很高兴，谢谢") == 6
    assert length("我 love 你们") == 4
