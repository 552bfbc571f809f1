"""What an answer takes up of its prompt, on worked sentences."""

import pytest

from raftdiff.errors import UserError
from raftdiff.recipes.config import check
from raftdiff.rewards.shared_words import SharedWordsConfig, stems
from raftdiff.types import Prompt, Sample

PROMPT = "This thriller about a missing train is"


def shared(answer: str, prompt: str = PROMPT, **options: int) -> float:
    sample = Sample(0, Prompt("a", prompt, prompt, prompt), 0, 0, "policy", answer)
    return float(SharedWordsConfig(**options).build().score([sample])[0])


@pytest.mark.parametrize(
    ("answer", "count"),
    [
        ("thrilling from first to last.", 1),  # without its ending
        ("a ride by train, and the train never stops.", 1),  # once
        ("thrilling, and the train was hard to miss.", 2),
        ("about a life, and this is what it is.", 0),  # common words name nothing
        ("", 0),
        ("это поезд.", 0),
    ],
)
def test_words_that_name_the_matter_count_once_without_their_endings(answer: str, count: int) -> None:
    assert shared(answer) == count


def test_an_echo_gains_no_more_than_the_limit() -> None:
    assert shared("a thriller about a missing train.") == 2
    assert shared("a thriller about a missing train.", limit=3) == 3
    assert shared("a train.", limit=3) == 1


def test_of_a_prompt_without_a_matter_nothing_is_shared() -> None:
    assert stems("It was about this and that, and it's") == frozenset()
    assert shared("It was about this.", prompt="It was about this and that, and it's") == 0


def test_a_limit_of_none_is_refused() -> None:
    with pytest.raises(UserError, match="limit"):
        check(SharedWordsConfig, {"limit": 0}, "reward")
