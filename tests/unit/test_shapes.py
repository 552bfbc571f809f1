"""Shapes in signatures are checked in the tests: a wrong one is told at the call."""

import jaxtyping
import numpy as np
import pytest

from raftdiff.selection import advantages


def test_a_table_of_the_wrong_shape_is_refused() -> None:
    with pytest.raises(jaxtyping.TypeCheckError):
        advantages.grpo(np.zeros(3))
    assert advantages.grpo(np.zeros((1, 3))).shape == (1, 3)
