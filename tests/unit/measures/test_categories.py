"""A benchmark's figures by category, against numbers that can be counted by hand."""

import numpy as np
import pytest

from raftdiff.measures.categories import balanced, columns, grouped, line

KINDS = ["counting", "counting", "colors"]
BEFORE = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
AFTER = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])


def test_a_category_has_the_mean_of_its_pictures_and_all_categories_weigh_the_same() -> None:
    found = grouped({"before": BEFORE, "after": AFTER}, KINDS)
    counting, colors = found["categories"]["counting"], found["categories"]["colors"]
    assert list(found["categories"]) == ["counting", "colors"]
    assert (counting["prompts"], colors["prompts"]) == (2, 1)
    assert [counting["scores"][side]["mean"] for side in ("before", "after")] == [0.25, 0.75]
    assert counting["difference"]["mean"] == 0.5
    assert counting["win_rate"] == (1 + 0.5 + 0.5 + 1) / 4
    mean = found["mean"]
    assert [mean["scores"][side]["mean"] for side in ("before", "after")] == [0.625, 0.625]  # not 0.5 and 4 / 6
    assert mean["difference"]["mean"] == 0
    assert mean["win_rate"] == (0.75 + 0.25) / 2


def test_one_prompt_says_nothing_of_others_and_so_has_no_interval() -> None:
    found = grouped({"score": AFTER}, KINDS)
    assert found["categories"]["colors"]["scores"]["score"]["ci95"] is None
    assert found["categories"]["counting"]["scores"]["score"]["ci95"] is not None
    assert found["mean"]["scores"]["score"]["ci95"] is None  # of a category with a single prompt, as of the others
    assert found["categories"]["colors"]["difference"] is None


def test_shares_have_wilsons_interval_and_other_scores_the_bootstraps() -> None:
    """Ten prompts that are all right leave something open; ten scores of 7 do not."""
    low, high = line({"score": np.ones((10, 1))})["scores"]["score"]["ci95"]
    assert [low, high] == pytest.approx([0.7225, 1.0], abs=1e-4)
    assert line({"score": np.full((10, 1), 7.0)})["scores"]["score"]["ci95"] == [7.0, 7.0]


def test_what_is_missing_is_left_out_and_a_mean_of_fewer_categories_is_none() -> None:
    gaps = np.array([[np.nan, 1.0], [np.nan, np.nan], [0.0, 1.0]])
    found = grouped({"score": gaps}, KINDS)
    assert found["categories"]["counting"]["scores"]["score"]["n"] == 1
    assert found["mean"]["scores"]["score"]["mean"] == 0.75
    gone = grouped({"score": np.array([[np.nan], [np.nan], [1.0]])}, KINDS)
    assert gone["categories"]["counting"]["scores"]["score"] is None
    assert gone["mean"] is None


def test_the_interval_of_the_mean_over_categories_has_the_width_that_theory_says() -> None:
    """Two categories of 200 and 50 independent prompts: the variance of the mean of means is the sum of a quarter of
    each one's."""
    random = np.random.default_rng(0)
    tables = [random.normal(0, 1, (200, 1)), random.normal(5, 2, (50, 1))]
    low, high = balanced(tables).ci95
    variance = sum(float(table.var()) / len(table) / 4 for table in tables)
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(variance), rel=0.05)
    assert low < 2.5 < high


def test_columns_that_sort_prompts_are_known_from_notes_and_texts() -> None:
    rows = [{"Category": kind, "Note": f"note {n}", "include": []} for n, kind in enumerate(["a", "b"] * 5)]
    assert columns(rows) == {"Category": {"a": 5, "b": 5}}
    assert columns([]) == {}
    assert columns([{"Category": "a"}, {}]) == {}
