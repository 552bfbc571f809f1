"""The instructions: what is held out follows from a rule, and what is written is right."""

from pathlib import Path

import pytest

from raftdiff.embedded.instructions.grammar import (
    held_out_prompts,
    instructions,
    kinds_held_out,
    parsed,
    training_prompts,
)

PROMPTS = Path(__file__).parents[4] / "configs" / "prompts"


def test_nothing_is_trained_on_and_held_out() -> None:
    trained, held = training_prompts(), held_out_prompts()
    assert len(instructions()) == len({one.text for one in instructions()}) == 14 * 12
    assert (len(trained), len(held)) == (11 * 8, 14 * 4)
    assert not set(trained) & set(held)
    kinds = {one.kind for one in map(parsed, trained) if one}
    assert kinds_held_out() == {"colour", "opposite", "sentence"}
    assert not kinds & kinds_held_out(), "of some kinds nobody has seen one"


def test_the_files_that_ship_hold_them() -> None:
    assert (PROMPTS / "instructions_train.txt").read_text().splitlines() == training_prompts()
    assert (PROMPTS / "instructions_held_out.txt").read_text().splitlines() == held_out_prompts()


@pytest.mark.parametrize(
    ("text", "right", "not_wrong", "written"),
    [
        ("What is the capital of Italy?", "rome", "italy", "The capital of Italy is Rome."),
        ("Which is bigger, a mouse or an elephant?", "elephant", "elephant", "An elephant is bigger than a mouse."),
        ("What is 7 plus 5?", "12", "seven", "7 plus 5 is twelve."),
        ("Name two drinks.", "tea", "water", "Two drinks are water and tea."),
        ("What comes after June?", "july", "june", "After June comes July."),
        ("  What is the plural of  'mouse'?", "mice", "mouse", "The plural of 'mouse' is 'mice'."),
    ],
)
def test_an_instruction_knows_its_answer(text: str, right: str, not_wrong: str, written: str) -> None:
    asked = parsed(text)
    assert asked is not None
    assert right in asked.right
    assert not asked.wrong & (asked.right | {not_wrong}), "what the question says is no wrong answer to it"
    assert asked.written == written


def test_other_texts_are_none_of_them() -> None:
    assert parsed("What is the capital of Atlantis?") is None
