"""The text in the picture against the text asked for; the reader is a stand-in, but for one test."""

import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from raftdiff.errors import UserError
from raftdiff.rewards.ocr import OcrConfig, OcrReward, accuracy, edit_distance, texts
from raftdiff.testing.conformance import check_reward
from raftdiff.testing.examples import reward_samples
from raftdiff.types import Prompt, Sample


def prompt(caption: str, **meta: Any) -> Prompt:
    return Prompt("p", caption, caption, caption, meta=meta)


def sample(caption: str, **meta: Any) -> Sample[Image.Image]:
    return replace(reward_samples(count=1)[0], prompt=prompt(caption, **meta))


def published(recognised: str, caption: str) -> float:
    """Flow-GRPO's, ``OcrScorer`` of flow_grpo/ocr.py, for a caption with one text in straight quotes."""
    read, wanted = (one.replace(" ", "").lower() for one in (recognised, caption.split('"')[1]))
    distance = 0 if wanted in read else min(by_recursion(read, wanted), len(wanted))
    return 1 - distance / len(wanted)


def by_recursion(one: str, other: str) -> int:
    if not one or not other:
        return len(one) + len(other)
    if one[0] == other[0]:
        return by_recursion(one[1:], other[1:])
    rests = (one[1:], other), (one, other[1:]), (one[1:], other[1:])
    return 1 + min(by_recursion(*rest) for rest in rests)


@pytest.mark.parametrize("read", ["", "open", "OPEN LATE", "0PEN", "oen", "Open 24 h", "xyxyxy", "nepo", "OP EN"])
def test_it_equals_flow_grpos_reward(read: str) -> None:
    caption = 'A shop sign that reads "Open" at night'
    reward = OcrReward(lambda picture: read)
    torch.testing.assert_close(reward.score([sample(caption)]), torch.tensor([published(read, caption)]))


@pytest.mark.parametrize(
    ("one", "other"), [("", ""), ("abc", ""), ("kitten", "sitting"), ("flaw", "lawn"), ("ab", "ba")]
)
def test_the_distance_is_levenshteins(one: str, other: str) -> None:
    assert edit_distance(one, other) == edit_distance(other, one) == by_recursion(one, other)


@pytest.mark.parametrize(
    ("read", "wanted", "score"),
    [
        ("STOP go", ["go", "stop"], 1.0),  # where they stand does not count
        ("STOP gx", ["go", "stop"], 1 - 1 / 6),
        ("go gone", ["gone", "go"], 1.0),
        ("gone", ["go", "gone"], 1 - 2 / 6),  # one of them is in the other, and stands there once
        ("stop stop", ["stop", "stop"], 1.0),
        ("stop", ["stop", "stop"], 0.5),
        ("something else altogether", ["go", "stop"], 0.0),
        ("Ｏｐｅｎ！", ["open!"], 1.0),
        ("Grüße", ["GRÜSSE"], 1.0),
    ],
)
def test_of_several_texts_all_count(read: str, wanted: Sequence[str], score: float) -> None:
    assert accuracy(read, wanted) == pytest.approx(score)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (prompt('a sign "Hello World"'), ["Hello World"]),
        (prompt('a sign "A" beside a sign "B"'), ["A", "B"]),
        (prompt("a sign “Open” and „Zu“"), ["Open", "Zu"]),
        (prompt("the dog's bone, 'bare'"), []),
        (prompt('an unfinished "sign'), []),
        (prompt('blank "  " ""'), []),
        (prompt('a sign "Hello"', text="Bye"), ["Bye"]),
        (prompt("a sign", text=["A", "B"]), ["A", "B"]),
        (prompt('a sign "Hello"', text=""), []),
    ],
)
def test_what_is_asked_for_is_quoted_or_a_column(asked: Prompt, expected: Sequence[str]) -> None:
    assert texts(asked) == expected


@pytest.mark.parametrize("told", [7, ["a", 7], {"a": 1}])
def test_another_column_of_that_name_is_a_sentence(told: Any) -> None:
    with pytest.raises(UserError, match="ocr: the column 'text' of the prompt 'p' holds .* where a text or a list of"):
        texts(prompt("a sign", text=told))


def test_a_prompt_without_text_is_a_discard_or_what_the_recipe_says() -> None:
    samples = [sample("a cat"), sample('a "cat"')]
    found = OcrReward(lambda picture: "cat").score(samples)
    assert (found.isnan().tolist(), float(found[1])) == ([True, False], 1.0)
    assert OcrReward(lambda picture: "cat", without_text=0.5).score(samples).tolist() == [0.5, 1.0]


def test_the_contract_holds() -> None:
    samples = [replace(one, prompt=prompt('a "red"')) for one in reward_samples(count=4)]
    reward = OcrReward(lambda picture: "red" if picture.getpixel((32, 32))[0] > 128 else "blue")  # type: ignore[index]
    report = check_reward(reward, samples, direction=OcrReward.__doc__)
    assert all(found.passed for found in report.checks), str(report)
    assert reward.score([]).shape == (0,)


def test_without_its_packages_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        return None

    monkeypatch.setattr("raftdiff.rewards.texts.find_spec", absent)
    told = [need.sentence for need in OcrConfig().needs(str)]
    assert told == [f"it needs {it}: pip install 'raftdiff[rewards]'." for it in ("rapidocr", "onnxruntime")]
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    with pytest.raises(UserError, match=r"The reward 'ocr' needs rapidocr \(.*\): pip install 'raftdiff\[rewards\]'"):
        OcrConfig().build()


READERS = ("rapidocr", "onnxruntime")


@pytest.mark.skipif(not all(map(importlib.util.find_spec, READERS)), reason="the extra raftdiff[rewards] is not there")
def test_rapidocr_reads_what_is_written() -> None:
    """One letter is missing; the ground is transparent, and white as it is looked at."""
    written, blank = Image.new("RGBA", (256, 256), (0, 0, 0, 0)), Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(written).text((20, 100), "Helo World", "black", ImageFont.load_default(36))
    samples = [replace(sample('a sign "Hello World"'), media=picture) for picture in (written, blank)]
    torch.testing.assert_close(OcrConfig().build().score(samples), torch.tensor([0.9, 0.0]))
