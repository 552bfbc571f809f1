"""Methods side by side: means over seeds, and what is not known of one."""

import math

import pytest

from raftdiff.measures.statistics import t_quantile
from raftdiff.reports.methods import Column, Measured, over_seeds, table

FOUND = [
    Measured("a", 0, {"x": 1.0, "y": 5.0}, {"x": 0.25}),
    Measured("a", 1, {"x": 3.0, "y": 5.0}, {"x": 0.25}),
    Measured("b", 0, {"x": 2.0}, {"x": 0.25}),
]


def test_a_mean_over_seeds_has_student_s_interval_and_one_alone_that_of_its_prompts() -> None:
    assert over_seeds(FOUND, "a", "x") == pytest.approx((2.0, t_quantile(1) * math.sqrt(2) / math.sqrt(2)))
    assert over_seeds(FOUND, "b", "x") == (2.0, 0.25)
    assert over_seeds([*FOUND, Measured("b", 0, {"x": 4.0})], "b", "x") == (4.0, 0.0), "the latest of a seed counts"


def test_what_is_not_known_is_left_empty() -> None:
    text = table(FOUND, {"x": Column("ex", "{:.2f}"), "y": Column("why", "{:.0f}")})
    assert text.splitlines() == [
        "| method | ex | why |",
        "|---|--:|--:|",
        "| a | 2.00 ± 12.71 | 5 |",
        "| b | 2.00 ± 0.25 |  |",
    ]
    assert math.isnan(over_seeds([*FOUND[:1], Measured("a", 1, {})], "a", "x")[0]), "half known is not known"
