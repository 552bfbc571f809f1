"""Shapes in signatures are checked in the tests: a wrong one is told at the call."""

import jaxtyping
import numpy as np
import pytest

from raftdiff.selection import advantages
from raftdiff.types import Scores


def test_a_table_of_the_wrong_shape_is_refused() -> None:
    with pytest.raises(jaxtyping.TypeCheckError):
        advantages.grpo(np.zeros(3))
    assert advantages.grpo(np.zeros((1, 3))).shape == (1, 3)


def test_a_score_table_is_one_of_prompts_and_candidates() -> None:
    table = np.zeros((1, 3))
    for total, raw in ((table[0], table), (table, table.T)):
        with pytest.raises(jaxtyping.TypeCheckError):
            Scores(0, ("p",), total, {"one": raw})
    assert Scores(0, ("p",), table, {"one": table}).total.shape == (1, 3)
