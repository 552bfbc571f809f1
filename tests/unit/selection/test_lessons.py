"""Selectors that learn from more than the best: every kind on worked numbers, ties, NaN, and what survives the disk."""

import numpy as np
import pytest

from raftdiff.errors import UserError
from raftdiff.records.rounds import Draft
from raftdiff.selection.best import BestOfK, TopFraction, figures
from raftdiff.selection.lessons import (
    METHODS,
    AdvantageConfig,
    AllConfig,
    BestWorstConfig,
    RankedConfig,
    SoftmaxConfig,
    ThresholdConfig,
)
from raftdiff.types import Item, Key, Prompt, Sample, Scores

NAN = float("nan")
E1 = [[0.1, 0.9, 0.4, 0.2], [1.5, 1.2, 1.4, 1.1], [-0.3, -0.8, -0.1, -0.5]]
CONFIGS = {
    "ranked": RankedConfig(),
    "pairs": BestWorstConfig(),
    "labelled": ThresholdConfig(),
    "weighted": SoftmaxConfig(),
    "advantages": AdvantageConfig(),
    "all": AllConfig(),
}


def scores(table, round=3):
    total = np.array(table, dtype=float)
    return Scores(round, tuple(f"p{row}" for row in range(len(total))), total, {"r": total})


def select(config, table):
    return config.build(seed=0).select(scores(table))


def laid_out(selection, shape):
    """Weights of one-key items in a table; NaN where there is no item."""
    table = np.full(shape, np.nan)
    for item in selection.items:
        (key,) = item.keys
        assert key.round == 3
        table[int(key.prompt[1:]), key.index] = item.weight
    return table


def close(table, expected):
    np.testing.assert_allclose(table, expected, rtol=0, atol=2e-6)


# --- worked numbers ---


def test_local_and_global_ranking():
    """E1: the global picks are all of one prompt, which is why the local ranking is the default."""
    local, whole = BestOfK(1).select(scores(E1)), TopFraction(0.25).select(scores(E1))
    assert [item.keys[0][1:] for item in local.items] == [("p0", 1), ("p1", 0), ("p2", 2)]
    assert {item.keys[0][1:] for item in whole.items} == {("p1", 0), ("p1", 2), ("p1", 1)}
    found = figures(scores(E1), local)
    assert found["selected_mean"] == pytest.approx(0.766667, abs=2e-6)
    assert found["mean"] == pytest.approx(0.425)
    assert found["first_sample_mean"] == pytest.approx(0.433333, abs=2e-6)
    assert figures(scores(E1), whole)["selected_mean"] == pytest.approx(1.366667, abs=2e-6)


def test_pairs():
    """E7: on E1's rewards and a row of ties, which is no preference."""
    found = select(CONFIGS["pairs"], [*E1, [0.5] * 4])
    assert found.kind == "pairs"
    assert [tuple(key[1:] for key in item.keys) for item in found.items] == [
        (("p0", 1), ("p0", 0)),
        (("p1", 0), ("p1", 3)),
        (("p2", 2), ("p2", 1)),
    ]
    close([item.scores[0] - item.scores[1] for item in found.items], [0.8, 0.4, 0.7])
    assert found.left_out == ()
    wide = BestWorstConfig(min_gap=0.5).build(seed=0).select(scores(E1))
    assert [item.keys[0].prompt for item in wide.items] == ["p0", "p2"]


R5, R4 = [[1.0, 0, 0, 1, 0]], [[2.0, 0.5, 1.5, -0.5]]


@pytest.mark.parametrize(
    ("method", "table", "expected"),
    [
        ("grpo", R5, [[1.095245, -0.730163, -0.730163, 1.095245, -0.730163]]),
        ("dr_grpo", R5, [[0.6, -0.4, -0.4, 0.6, -0.4]]),
        ("rloo", R5, [[0.75, -0.5, -0.5, 0.75, -0.5]]),
        ("rloo", R4, [[1.5, -0.5, 0.833333, -1.833333]]),
        ("raft_plus_plus", [[1.0, -1, -1, 1]], [[1.0, 0, 0, 1]]),
        ("reinforce_rej", [[1.0, -1, -1, 1], [1, 1, 1, 1], [-1, -1, -1, -1]], [[1.0, -1, -1, 1], [0] * 4, [0] * 4]),
        (
            "reinforce_plus_plus_baseline",
            [[1.0, 0, 0, 1], [0, 0, 0, 1]],
            [[1.069045, -1.069045, -1.069045, 1.069045], [-0.534522, -0.534522, -0.534522, 1.603567]],
        ),
    ],
)
def test_advantages(method, table, expected):
    """E7, through the selector: every candidate is an item, also of no advantage."""
    found = select(AdvantageConfig(method=method), table)
    assert found.kind == "advantages"
    close(laid_out(found, np.shape(table)), expected)


def test_reward_weighted_regression():
    found = select(SoftmaxConfig(temperature=0.5), R4)
    assert found.kind == "weighted"
    close(laid_out(found, (1, 4)), [[0.702048, 0.034953, 0.258269, 0.00473]])
    close(laid_out(select(SoftmaxConfig(temperature=1e-3), R4), (1, 4)), [[1, 0, 0, 0]])  # RAFT in the limit


def test_rankings():
    found = select(CONFIGS["ranked"], [[0.2, 0.9, NAN, 0.9], [NAN, 1.0, NAN, NAN]])
    assert found.kind == "ranked"
    assert [tuple(key.index for key in item.keys) for item in found.items] == [(1, 3, 0), (1,)]  # ties: lowest first
    assert [item.scores for item in found.items] == [(0.9, 0.9, 0.2), (1.0,)]


def test_everything():
    """Every valid candidate with its own total, in the order of the table; what PPO learns from."""
    found = select(CONFIGS["all"], [[0.2, NAN, -0.9], [NAN, 1.0, NAN]])
    assert [(item.keys, item.weight, item.scores) for item in found.items] == [
        ((Key(3, "p0", 0),), 1.0, (0.2,)),
        ((Key(3, "p0", 2),), 1.0, (-0.9,)),
        ((Key(3, "p1", 1),), 1.0, (1.0,)),
    ]
    assert CONFIGS["all"].count(64, 8) == 512


def test_labels_by_a_threshold():
    found = select(ThresholdConfig(threshold=0.4), E1)
    assert found.kind == "labelled"
    close(laid_out(found, (3, 4)), [[-1, 1, 1, -1], [1] * 4, [-1] * 4])


def test_labels_by_the_mean():
    """From the mean on a candidate is good; rounding does not decide over one that is the mean."""
    table = [[0.1, 0.9, 0.4, 0.2], [0.1, 0.2, 0.3, NAN], [0.0, 1.0, 2.0, 1.0]]
    expected = [[-1, 1, 1, -1], [-1, 1, 1, NAN], [-1, 1, 1, 1]]
    close(laid_out(select(CONFIGS["labelled"], table), (3, 4)), expected)


@pytest.mark.parametrize("level", [0.1, 1 / 3, 1e6 + 0.1, -1e9 / 7])
def test_candidates_that_are_all_equal_are_neither_good_nor_bad(level):
    """Whatever their size: the mean of equal numbers is not always that number."""
    assert select(CONFIGS["labelled"], [[level] * 7]).items == ()
    assert len(select(ThresholdConfig(threshold=level), [[level] * 7]).items) == 7


# --- what all have in common ---


@pytest.mark.parametrize("kind", CONFIGS)
def test_discarded_candidates_are_never_learnt_from_and_their_prompt_is_named(kind):
    found = select(CONFIGS[kind], [[NAN, 1.0, 0.0, NAN], [NAN] * 4, [2.0, NAN, 1.0, 0.5]])
    assert found.kind == kind
    assert found.left_out == ("p1",)
    keys = {key for item in found.items for key in item.keys}
    assert keys <= {Key(3, "p0", 1), Key(3, "p0", 2), Key(3, "p2", 0), Key(3, "p2", 2), Key(3, "p2", 3)}
    assert {key.prompt for key in keys} == {"p0", "p2"}
    assert all(np.isfinite(item.weight) for item in found.items)
    assert all(np.isfinite(item.scores).all() for item in found.items)


@pytest.mark.parametrize("kind", CONFIGS)
def test_discarded_candidates_do_not_change_what_the_others_get(kind):
    with_nan = select(CONFIGS[kind], [[2.0, NAN, 1.0, 0.5]])
    without = select(CONFIGS[kind], [[2.0, 1.0, 0.5]])
    places = {0: 0, 2: 1, 3: 2}
    moved = [
        (tuple(places[key.index] for key in item.keys), round(item.weight, 12), item.scores) for item in with_nan.items
    ]
    assert moved == [
        (tuple(key.index for key in item.keys), round(item.weight, 12), item.scores) for item in without.items
    ]


@pytest.mark.parametrize("method", METHODS)
def test_equal_rewards_have_exactly_no_advantage(method):
    level = -1.0 if method == "raft_plus_plus" else 1.0  # which learns whatever is right
    assert set(laid_out(select(AdvantageConfig(method=method), [[level] * 7]), (1, 7)).ravel()) == {0.0}


@pytest.mark.parametrize("method", ["grpo", "dr_grpo", "rloo", "reinforce_plus_plus_baseline"])
def test_one_valid_candidate_has_nothing_to_be_compared_with(method):
    found = laid_out(select(AdvantageConfig(method=method), [[NAN, 5.0, NAN], [1.0, 0.0, 0.5]]), (2, 3))
    assert found[0, 1] == 0
    assert np.isnan(found[0, [0, 2]]).all()


def test_one_valid_candidate_is_no_pair_and_no_label():
    assert select(CONFIGS["pairs"], [[NAN, 5.0]]).items == ()
    assert select(CONFIGS["labelled"], [[NAN, 5.0]]).items == ()


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_reward_of_another_offset_and_scale_selects_the_same(kind):
    """a(x) + c r with c > 0: the same candidates; weights of a softmax and labels by a number of course differ."""
    rng = np.random.default_rng(0)
    table = rng.normal(size=(5, 4))
    one, other = select(CONFIGS[kind], table), select(CONFIGS[kind], 3 * table + rng.normal(size=(5, 1)))
    assert [item.keys for item in one.items] == [item.keys for item in other.items]
    if kind == "labelled":
        assert [item.weight for item in one.items] == [item.weight for item in other.items]


@pytest.mark.parametrize("kind", CONFIGS)
def test_counts_bound_what_is_selected(kind):
    assert len(select(CONFIGS[kind], np.random.default_rng(1).normal(size=(5, 4))).items) <= CONFIGS[kind].count(5, 4)


def test_a_reward_that_is_nowhere_valid_selects_nothing():
    for config in CONFIGS.values():
        found = select(config, [[NAN, NAN], [NAN, NAN]])
        assert (found.items, found.left_out) == ((), ("p0", "p1"))


@pytest.mark.parametrize("kind", CONFIGS)
def test_what_was_selected_survives_the_run_directory(kind, tmp_path):
    draft = Draft(tmp_path / "003.partial", 3, tmp_path / "003")
    (draft.path / "samples").mkdir(parents=True)
    found = select(CONFIGS[kind], [[0.1, 1 / 3, 0.1, NAN], [NAN] * 4, [0.7, 0.2, 0.5, 0.6]])
    for row in range(3):
        for k in range(4):
            draft.add(Sample(3, Prompt(f"p{row}", "x", "x", "x"), k, k, "policy", f"answer {k}"))
    draft.flush()
    draft.write_selection(found)
    assert draft.folder.selection() == found
    chosen = {key for item in found.items for key in item.keys}
    told = {Key(3, row["prompt_id"], row["index"]) for row in draft.folder.rows() if row["selected"]}
    assert told == chosen


def test_items_without_scores_have_none_after_the_disk_either(tmp_path):
    draft = Draft(tmp_path / "003.partial", 3, tmp_path / "003")
    (draft.path / "samples").mkdir(parents=True)
    found = BestOfK(1).select(scores(E1))
    draft.write_selection(found)
    assert draft.folder.selection().items == tuple(Item(item.keys, 1.0, ()) for item in found.items)


def test_a_temperature_of_nothing_is_refused():
    with pytest.raises(UserError, match="needs one above 0"):
        SoftmaxConfig.model_construct(temperature=0.0).build(seed=0).select(scores(E1))
