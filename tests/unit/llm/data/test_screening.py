"""What can be learnt from answers that data bring, and what is said of the rest."""

from pathlib import Path
from typing import Any

import pytest

from raftdiff.errors import UserError
from raftdiff.llm.data.prompts import DataConfig, read_prompts
from raftdiff.llm.data.screening import refuse_mean, screened
from raftdiff.types import Prompt


def of(*rows: Any) -> list[Prompt]:
    return read_prompts(DataConfig(captions=list(rows)), Path(), "prompts")


def test_an_answer_that_was_labelled_bad_is_no_example() -> None:
    held = of(*({"prompt": text, "response": "x", "label": text == "a"} for text in "ab"))
    with pytest.warns(UserWarning, match=r"1 of 2 are left out: their answers are labelled bad"):
        kept = screened(held, "weighted", candidates=1, given=False)
    assert [prompt.id for prompt in kept] == ["a"]
    assert screened(held, "labelled", candidates=1, given=True) == held
    with pytest.raises(UserError, match="all 1 would be left out: their answers are labelled bad"):
        screened(held[1:], "weighted", candidates=1, given=True)


def test_ties_and_single_answers_make_no_pair() -> None:
    held = of(
        {"prompt": "a", "answers": ["x", "y"], "scores": [1, 2]},
        {"prompt": "b", "answers": ["x", "y"], "scores": [2, 2]},
        {"prompt": "c", "answers": ["x", "y"], "scores": [2, None]},
        {"prompt": "d", "answers": ["x"]},
    )
    with pytest.warns(UserWarning, match="3 of 4 are left out: a pair needs two answers, of which the data rate one"):
        assert [one.id for one in screened(held, "pairs", candidates=2, given=True)] == ["a"]
    with pytest.warns(UserWarning, match="1 of 4 are left out: a pair needs two answers"):
        assert [one.id for one in screened(held, "pairs", candidates=2, given=False)] == ["a", "b", "c"]
    with pytest.raises(UserError, match="all 1 would be left out: a pair needs two answers"):
        screened(held[3:], "pairs", candidates=2, given=True)


def test_answers_beyond_the_candidates_are_not_looked_at_and_it_is_said() -> None:
    (one,) = of({"prompt": "a", "answers": ["x", "y", "z"], "scores": [1, 1, 2]})
    with (
        pytest.warns(UserWarning, match=r"1 of 1 bring more answers than loop.candidates \(2\)"),
        pytest.raises(UserError, match="a pair needs two answers"),
    ):
        screened([one], "pairs", candidates=2, given=True)


def test_the_mean_of_one_answer_is_no_threshold() -> None:
    with pytest.raises(UserError, match=r"ranker\.selector\.threshold: each prompt of the data has one answer"):
        refuse_mean(of({"prompt": "a", "response": "x", "label": 1}))
    refuse_mean(of({"prompt": "a", "answers": ["x", "y"]}))
