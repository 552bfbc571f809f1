"""The text in the picture against the text asked for; the reader is a stand-in, but where readers are tested."""

import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from raftdiff.errors import UserError
from raftdiff.recipes import needs as recipe_needs
from raftdiff.recipes.config import check
from raftdiff.rewards import tiny
from raftdiff.rewards.ocr import OcrConfig, OcrReward, accuracy, edit_distance, texts, unasked
from raftdiff.rewards.ocr_readers import GLANCED, QUESTION, Read, VlmReader, _glancer, glance
from raftdiff.rewards.vlm import LocalVlm, load
from raftdiff.testing.conformance import check_reward
from raftdiff.testing.examples import reward_samples
from raftdiff.testing.servers import chat_server
from raftdiff.types import KeepsReplies, Prompt, Sample

READERS = ("rapidocr", "onnxruntime")


def prompt(caption: str, **meta: Any) -> Prompt:
    return Prompt("p", caption, caption, caption, meta=meta)


def sample(caption: str, **meta: Any) -> Sample[Image.Image]:
    return replace(reward_samples(count=1)[0], prompt=prompt(caption, **meta))


def reading(read: Callable[[Image.Image], str]) -> Read:
    return lambda pictures: list(map(read, pictures))


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
    reward = OcrReward(reading(lambda picture: read))
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
    found = OcrReward(reading(lambda picture: "cat")).score(samples)
    assert (found.isnan().tolist(), float(found[1])) == ([True, False], 1.0)
    assert OcrReward(reading(lambda picture: "cat"), without_text=0.5).score(samples).tolist() == [0.5, 1.0]


def test_prompts_of_which_none_asks_for_text_are_refused_before_anything_is_drawn() -> None:
    blind, silent = OcrReward(reading(lambda picture: "")), [prompt("a cat"), prompt("two dogs")]
    with pytest.raises(UserError, match=r"'ocr': not one of 2 prompts asks for a text, such as 'a cat', so every"):
        blind.check_prompts(silent)
    blind.check_prompts([*silent, prompt("a sign", text="open")])
    blind.check_prompts([])
    OcrReward(reading(lambda picture: ""), without_text=0.5).check_prompts(silent)


def test_the_contract_holds() -> None:
    samples = [replace(one, prompt=prompt('a "red"')) for one in reward_samples(count=4)]
    told = reading(lambda picture: "red" if picture.getpixel((32, 32))[0] > 128 else "blue")  # type: ignore[index]
    reward = OcrReward(told)
    report = check_reward(reward, samples, direction=OcrReward.__doc__)
    assert all(found.passed for found in report.checks), str(report)
    assert reward.score([]).shape == (0,)


def test_without_its_packages_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        return None

    monkeypatch.setattr("raftdiff.rewards.texts.find_spec", absent)
    told = [f"{need.key}: {need.sentence}" for need in recipe_needs.needs(OcrConfig())]
    assert told == [f"reader.type: it needs {it}: pip install 'raftdiff[rewards]'." for it in READERS]
    assert recipe_needs.needs(by_vlm(model="m", server="http://127.0.0.1:1/v1")) == []
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    with pytest.raises(UserError, match=r"The reward 'ocr' needs rapidocr \(.*\): pip install 'raftdiff\[rewards\]'"):
        OcrConfig().build()


@pytest.mark.skipif(not all(map(importlib.util.find_spec, READERS)), reason="the extra raftdiff[rewards] is not there")
def test_rapidocr_reads_what_is_written() -> None:
    """One letter is missing; the ground is transparent, and white as it is looked at."""
    written, blank = Image.new("RGBA", (256, 256), (0, 0, 0, 0)), Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(written).text((20, 100), "Helo World", "black", ImageFont.load_default(36))
    samples = [replace(sample('a sign "Hello World"'), media=picture) for picture in (written, blank)]
    torch.testing.assert_close(OcrConfig().build().score(samples), torch.tensor([0.9, 0.0]))


@pytest.mark.parametrize(
    ("caption", "read", "letters"),
    [
        ("a cat", "a cat ○", 4),
        ('a sign "STOP"', "Stop!", 0),
        ('a sign "STOP"', "STQP", 0),  # asked for, and misspelt
        ('a sign "STOP"', "stop a sign 24", 7),
        ("a cat", "", 0),
    ],
)
def test_letters_that_a_prompt_asks_for_are_not_counted(
    caption: str, read: str, letters: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raftdiff.rewards.ocr.glance", lambda pictures: [read for _ in pictures])
    assert unasked([sample(caption)]) == [letters]
    assert unasked([replace(sample(caption), prompt=prompt(caption, text=7.0))]) == [sum(map(str.isalnum, read))]


def test_without_an_ocr_nothing_is_known_of_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    _glancer.cache_clear()
    assert unasked([sample("a cat")]) is None


@pytest.mark.skipif(not all(map(importlib.util.find_spec, READERS)), reason="the extra raftdiff[rewards] is not there")
def test_at_a_glance_small_letters_of_small_and_large_pictures_are_read() -> None:
    small, large = Image.new("RGB", (80, 80), "white"), Image.new("RGB", (1024, 512), "lightblue")
    ImageDraw.Draw(small).text((1, 66), "a blue sketch", "black")
    ImageDraw.Draw(large).text((20, 400), "a cat on a mat", "black", ImageFont.load_default(48))
    blank = Image.new("RGB", (64, 64), "white")
    assert glance([small, large, blank]) == ["a blue sketch", "a cat on a mat", ""]
    assert large.size == (1024, 512), "it is as it was"
    assert GLANCED < 512


def by_vlm(**reader: Any) -> OcrConfig:
    return check(OcrConfig, {"reader": {"type": "vlm", **reader}})


class TestVlm:
    """Random weights say nothing of what is written; the answers are those of the model's own greedy search."""

    @pytest.mark.parametrize("write", [tiny.write_smolvlm, tiny.write_qwen2_vl])
    def test_what_is_read_is_the_models_own_answer(self, write: Callable[[Path], Path], tmp_path: Path) -> None:
        folder = write(tmp_path / "model")
        sizes = [(64, 64), (48, 64), (64, 64)]
        pictures = [one.media.resize(size) for one, size in zip(reward_samples(count=3), sizes, strict=True)]
        expected = [answer(folder, picture, "What stands here?", 6) for picture in pictures]
        vlm = LocalVlm(load(str(folder)), batch_size=2)
        assert vlm.answers(pictures, "What stands here?", max_tokens=6) == expected
        assert len(set(expected)) > 1
        samples = [
            replace(sample("a sign", text=["a0", "bc"]), index=place, media=one) for place, one in enumerate(pictures)
        ]
        config = by_vlm(model=str(folder), batch_size=2, question="What stands here?", max_tokens=6)
        scores = [accuracy(one, ["a0", "bc"]) for one in expected]
        torch.testing.assert_close(config.build().score(samples), torch.tensor(scores))

    def test_the_models_own_settings_of_drawing_do_not_count(self, tmp_path: Path) -> None:
        folder, picture = tiny.write_smolvlm(tmp_path / "model"), reward_samples(count=1)[0].media
        plain = answer(folder, picture, "What?", 8)
        file = folder / "generation_config.json"
        drawing = {"do_sample": True, "temperature": 50.0, "repetition_penalty": 50.0, "max_length": 7}
        file.write_text(json.dumps(json.loads(file.read_text()) | drawing))
        vlm = LocalVlm(load(str(folder)))
        assert [vlm.answers([picture], "What?", max_tokens=8)[0] for _ in range(2)] == [plain, plain]
        assert plain != answer(folder, picture, "What?", 8)

    def test_an_answer_ends_where_the_model_ends_it(self, tmp_path: Path) -> None:
        folder, picture = tiny.write_smolvlm(tmp_path / "model"), reward_samples(count=1)[0].media
        vlm = LocalVlm(load(str(folder)))
        whole = vlm.answers([picture], "What?", max_tokens=4)[0]
        vocabulary = vlm._network.processor.tokenizer.get_vocab()
        vlm._network.model.generation_config.eos_token_id = list(range(len(vocabulary)))
        assert len(vlm.answers([picture], "What?", max_tokens=4)[0]) < len(whole)

    def test_a_server_is_asked_for_the_text_and_once(self, tmp_path: Path) -> None:
        seen: list[Any] = []

        def said(body: Any) -> str:
            seen.append(body)
            return " OPAN\n"

        with chat_server(said) as url:
            config = by_vlm(model="m", server=url, max_tokens=9, extra={"top_k": 1})
            reward, samples = config.build(), [sample('a sign "open"'), sample("a cat")]
            assert isinstance(reward, KeepsReplies)
            reward.keep_replies(tmp_path / "replies.jsonl")
            found = [reward.score(samples).tolist() for _ in range(2)]
            again = config.build()
            again.keep_replies(tmp_path / "replies.jsonl")
            found.append(again.score(samples).tolist())
            assert len(seen) == 1
            again.forget()
            again.score(samples)
        assert [scores[0] for scores in found] == [0.75] * 3
        assert len(seen) == 2
        picture, text = seen[0]["messages"][0]["content"]
        assert picture["image_url"]["url"].startswith("data:image/png;base64,")
        assert text["text"] == QUESTION
        assert "open" not in QUESTION
        settings = {key: value for key, value in seen[0].items() if key != "messages"}
        assert settings == {"model": "m", "temperature": 0.0, "max_tokens": 9, "top_k": 1}

    @pytest.mark.parametrize("said", ["no text", "No text.", '"No text"', ""])
    def test_no_text_is_none(self, said: str) -> None:
        assert VlmReader(Saying(said))([Image.new("RGB", (8, 8))]) == [""]

    def test_a_model_that_thinks_is_told(self, tmp_path: Path) -> None:
        with (
            chat_server(lambda body: "<think>\nIt may") as url,
            pytest.raises(UserError, match=r"behind http.* begins its answer with '<think'.*enable_thinking: false"),
        ):
            by_vlm(model="m", server=url).build().score([sample('a "cat"')])

    def test_what_is_missing_is_told_before_a_run_begins(self) -> None:
        (need,) = recipe_needs.needs(by_vlm(model="./nowhere"))
        assert need.key == "reader.model"
        assert "there is no folder or file './nowhere' here." in need.sentence
        (need,) = recipe_needs.needs(by_vlm(model="m", server="http://127.0.0.1:1/v1", api_key_env="NO_SUCH_KEY"))
        assert need.key == "reader.api_key_env"
        with pytest.raises(UserError, match="reader: the key 'type' is required here"):
            check(OcrConfig, {"reader": {"model": "m"}})


class Saying:
    def __init__(self, said: str) -> None:
        self._said = said

    def answers(self, pictures: Sequence[Image.Image], text: str, *, max_tokens: int) -> list[str]:
        return [self._said for _ in pictures]


def answer(folder: Path, picture: Image.Image, text: str, tokens: int) -> str:
    """What a model says of one picture, in transformers' own way."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor, model = AutoProcessor.from_pretrained(folder), AutoModelForImageTextToText.from_pretrained(folder)
    turns = [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": text}]}]
    options: dict[str, Any] = {"add_generation_prompt": True, "return_dict": True, "return_tensors": "pt"}
    inputs = processor.apply_chat_template(turns, tokenize=True, **options)
    said = model.generate(**inputs, max_new_tokens=tokens)[0, inputs["input_ids"].shape[1] :]
    return str(processor.tokenizer.decode(said, skip_special_tokens=True)).strip()
