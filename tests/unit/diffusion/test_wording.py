"""What of a prompt nobody reads, or nobody reads as another program would."""

from typing import NamedTuple

import pytest

from raftdiff.diffusion.wording import Reading, cut, foreign, limits, marks, signs, unread
from raftdiff.types import Prompt


class Words(NamedTuple):
    """Reads so many words."""

    token_limit: int

    def reads_whole(self, text: str) -> bool:
        return len(text.split()) <= self.token_limit


def prompt(caption: str, sampling: str = "", negative: str = "") -> Prompt:
    return Prompt(caption, caption, sampling or caption, caption, negative)


def sampler(limit: int) -> Reading:
    return Reading("the sampler", Words(limit), lambda it: it.sampling)


@pytest.mark.parametrize(
    ("text", "rest"),
    [("", ""), ("a b c", ""), ("a b c d e", "d e"), ("a  b\nc \n d ", "d"), ("日本 猫 の 絵", "絵"), ("a" * 500, "")],
)
def test_the_rest_begins_where_reading_ends(text: str, rest: str) -> None:
    assert unread(text, Words(3).reads_whole) == rest


def test_a_reader_of_letters_stops_within_a_word() -> None:
    assert unread("abcdef", lambda text: len(text) <= 4) == "ef"


def test_what_is_cut_is_counted_and_named_for_each_reader() -> None:
    prompts = [prompt("a red cat\non a mat"), prompt("a cat"), prompt("a blue dog on a big mat")]
    learner = Reading("the fine-tuner", Words(50), lambda it: it.learning)
    (line,) = cut(prompts, [sampler(4), learner])
    assert line == (
        "the sampler reads 4 tokens, and 2 of 3 prompts are longer: of 'a red cat on a mat' it does not read 'a mat'"
    )


@pytest.mark.parametrize(
    ("sampling", "lost"),
    [
        ("a cat on a mat, high quality", True),
        ("a cat on a mat", False),  # there is no magic
        ("high quality, a cat on a mat", False),  # it is the caption that is cut
    ],
)
def test_magic_words_that_change_nothing_are_said_aloud(sampling: str, lost: bool) -> None:
    lines = cut([prompt("a cat on a mat", sampling)], [sampler(4)])
    assert any("NONE OF THE MAGIC WORDS of 1 of these" in line for line in lines) == lost
    assert len(lines) == 1 + lost


def test_magic_words_that_are_read_in_part_are_not_called_lost() -> None:
    (line,) = cut([prompt("a cat", "a cat , high quality")], [sampler(4)])
    assert "does not read 'quality'" in line


def test_a_text_is_asked_once_of_a_reader() -> None:
    asked: list[str] = []

    class Counted:
        token_limit = 9

        def reads_whole(self, text: str) -> bool:
            asked.append(text)
            return True

    reader = Counted()
    prompts = [prompt("a cat"), prompt("a dog")]
    assert not cut(prompts, [Reading(who, reader, lambda it: it.caption) for who in ("the sampler", "the fine-tuner")])
    assert asked == ["a cat", "a dog"]


@pytest.mark.parametrize(
    ("text", "mark"),
    [
        ("a (cat:1.3) on a mat", "(cat:1.3)"),
        ("(worst quality: 1.4), ugly", "(worst quality: 1.4)"),
        ("(SD 1.5:1.2)", "(SD 1.5:1.2)"),
        ("((cat))", "((cat))"),
        ("[[dog]]", "[[dog]]"),
        ("{{cat}}", "{{cat}}"),
        ("[cat:dog:0.5]", "[cat:dog:0.5]"),
        ("[cat|dog]", "[cat|dog]"),
        ("a cat BREAK a dog", "BREAK"),
        ("a cat AND a dog", "AND"),
        ("<lora:ink_v2:0.8>", "<lora:ink_v2:0.8>"),
        ("<hypernet:x:1>", "<hypernet:x:1>"),
        ("ugly, embedding:EasyNegative", "embedding:EasyNegative"),
        ("a cat --ar 16:9", "--ar 16:9"),
        ("a cat --n low quality --w 512", "--n low"),
        ("a cat, --tile", "--tile"),
        ("a {red|blue} cat", "{red|blue}"),
        ("an __animals/pets__ on a mat", "__animals/pets__"),
    ],
)
def test_signs_of_other_programs_are_known(text: str, mark: str) -> None:
    assert list(marks(text).values()) == [mark]


@pytest.mark.parametrize(
    "text",
    [
        "a cat (small) on a mat",
        "[deformed], ugly",
        "a clock (at 12:30)",
        "(John 3:16) in gold",
        "a film still (16:9)",
        "C++ logo",
        "CATS AND DOGS",
        "BREAK TIME",
        "a cat -- on a mat",
        "a cat--striped",
        "the --sitting-- cat",
        "snake__case__name",
        "x = [1:2]",
        "a {red} cat",
        "i <3 cats: many",
    ],
)
def test_ordinary_texts_have_none(text: str) -> None:
    assert marks(text) == {}


DOUBTFUL = ["((cat))", "[[dog]]", "{{cat}}", "a cat BREAK a dog", "cats AND dogs", "[a|b]", "{a|b}"]


@pytest.mark.parametrize("text", DOUBTFUL)
def test_what_people_also_write_for_themselves_may_be_a_sign(text: str) -> None:
    (line,) = foreign([prompt(text)])
    assert "', which may be a" in line
    (sure,) = foreign([prompt("a (cat:1.3)")])
    assert sure == "'(cat:1.3)', a weight elsewhere, in 1 of 1 prompt"
    assert foreign([prompt("((cat:1.3))")]) == [sure]


def test_signs_are_counted_by_kind_over_all_texts_of_a_prompt() -> None:
    prompts = [prompt("a (cat:1.3)", negative="(ugly:1.4) --w 512"), prompt("a (dog:1.1)"), prompt("a fox")]
    assert foreign(prompts) == [
        "'(cat:1.3)', a weight elsewhere, in 2 of 3 prompts",
        "'(ugly:1.4)', a weight elsewhere, in the negative prompt, in 1 of 3 prompts",
        "'--w 512', an option elsewhere, in the negative prompt, in 1 of 3 prompts",
    ]


def test_nothing_is_said_where_all_is_read() -> None:
    assert limits("prompts", [prompt("a cat")], [sampler(4)]) == []
    assert signs("prompts", [prompt("a cat")]) == []
    (note,) = limits("mine.txt", [prompt("a cat on a mat")], [sampler(4)])
    assert note.startswith("mine.txt: words beyond a reader's limit")
