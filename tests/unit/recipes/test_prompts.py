"""Prompts: three texts each, files of two kinds, and a sentence for every mistake."""

from pathlib import Path

import pytest

from raftdiff.errors import UserError
from raftdiff.recipes.prompts import PromptsConfig, build, inline, read_file


def test_magic_is_sampled_the_caption_is_scored_and_learnt() -> None:
    config = PromptsConfig(captions=["a cat", "a dog"], magic=["{caption}, sharp", "best {caption}"], negative="blurry")
    cat, dog = build(config)
    assert (cat.id, cat.caption, cat.sampling, cat.learning) == ("a-cat", "a cat", "a cat, sharp", "a cat")
    assert (dog.sampling, dog.negative) == ("best a dog", "blurry")


def test_coupled_learns_what_was_sampled() -> None:
    (cat,) = build(PromptsConfig(captions=["a cat"], magic=["{caption}, sharp"], decouple=False))
    assert (cat.caption, cat.learning) == ("a cat", "a cat, sharp")


def test_a_line_may_bring_its_own_texts() -> None:
    row = {"caption": "a cat", "id": "tom", "sampling": "tom, 8k", "negative": "dog", "split": "in"}
    (cat,) = build(PromptsConfig(captions=[row]))
    assert (cat.id, cat.sampling, cat.negative, cat.meta) == ("tom", "tom, 8k", "dog", {"split": "in"})


def test_files_are_read_and_held_inline(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("# words\n\na cat\n a dog \n")
    (tmp_path / "p.jsonl").write_text('{"caption": "a cat"}\n')
    held = inline(PromptsConfig(file="p.txt"), tmp_path)
    assert (held.file, held.captions) == (None, ["a cat", "a dog"])
    assert inline(PromptsConfig(file="p.jsonl"), tmp_path).captions == [{"caption": "a cat"}]


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("p.txt", "\n# nothing\n", "this prompt file is empty"),
        ("p.jsonl", '{"caption": "a"}\n{oops\n', r"p\.jsonl:2: this line is not valid JSON"),
        ("p.jsonl", "[1]", "expected an object such as"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, name: str, text: str, sentence: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=sentence):
        read_file(tmp_path / name)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no file 'gone\.txt'"):
        inline(PromptsConfig(file="gone.txt"), tmp_path)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (PromptsConfig(), "there is no prompt"),
        (PromptsConfig(captions=["A cat", "a cat!"]), "prompts 1 and 2 have the same id 'a-cat'"),
        (PromptsConfig(captions=[{"id": "../x", "caption": "x"}]), "cannot name a file"),
        (PromptsConfig(captions=[{"id": "x"}]), "prompt 1 has no caption"),
        (PromptsConfig(captions=[{"caption": 3}]), "'caption' is not a text"),
        (PromptsConfig(captions=["x"], magic=["sharp"]), "lacks {caption}"),
        (PromptsConfig(captions=["x"], magic=[]), "list of templates is empty"),
        (PromptsConfig(captions=["x"], file="y.txt"), "both given"),
    ],
)
def test_a_wrong_prompt_is_named(config: PromptsConfig, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=sentence):
        build(inline(config, tmp_path))
