"""Plots are SVG that says what it shows: in its marks, in its words, and to those who cannot see it."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from raftdiff.measures.calibration import Bin
from raftdiff.reports import plots
from raftdiff.reports.plots import BOTTOM, LEFT, RIGHT, TOP, Bar, Course

SVG = "{http://www.w3.org/2000/svg}"


def parsed(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in parsed(svg).iter(f"{SVG}text")]


def points(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"(-?[\d.]+) (-?[\d.]+)", path)]


def test_a_histogram_s_areas_are_the_shares_of_its_groups() -> None:
    svg = plots.histogram({"chosen": np.array([0.0, 0.0, 0.0, 1.0]), "rejected": np.array([1.0, 1.0])}, x="reward")
    outlines = [e.get("d") or "" for e in parsed(svg).iter(f"{SVG}path") if "area" in (e.get("class") or "")]
    highest = [BOTTOM - min(y for _, y in points(outline)) for outline in outlines]
    assert highest[0] / highest[1] == pytest.approx(0.75, abs=0.01), "3 of 4 in one bin, and 2 of 2 in one"
    assert {"reward", "chosen", "rejected", "share of pairs"} <= set(texts(svg))
    assert "chosen: mean 0.25, 4 pairs; rejected: mean 1, 2 pairs" in (parsed(svg)[0].text or "")


def test_a_histogram_keeps_within_its_frame_and_counts_its_tails() -> None:
    values = np.append(np.random.default_rng(0).normal(size=2000), [1e6, np.nan, np.inf])
    svg = plots.histogram({"d": values}, x="difference", zero="undecided")
    (outline,) = [e.get("d") or "" for e in parsed(svg).iter(f"{SVG}path") if "area" in (e.get("class") or "")]
    found = points(outline)
    assert all(LEFT - 0.1 <= x <= RIGHT + 0.1 and TOP - 0.1 <= y <= BOTTOM + 0.1 for x, y in found)

    assert len({y for _, y in found}) > 10, "one value of a million does not squeeze the others into one bin"
    assert "undecided" in texts(svg)
    assert "2001 pairs" in (parsed(svg)[0].text or "")


def test_a_histogram_with_a_zero_line_shows_the_line() -> None:
    svg = plots.histogram({"d": np.array([5.0, 6.0, 7.0])}, x="difference", zero="undecided")
    (mark,) = [e.get("d") or "" for e in parsed(svg).iter(f"{SVG}path") if e.get("class") == "mark"]
    assert LEFT <= float(mark[1:].split()[0]) <= RIGHT
    assert plots.histogram({"d": np.array([2.0, 2.0])}, x="all alike")
    assert plots.histogram({"d": np.array([np.nan])}, x="nothing") == ""


def test_lines_over_an_axis_go_through_their_points_and_say_them() -> None:
    svg = plots.over(
        {"base": [(1.0, 20.0), (3.0, 40.0)], "tuned": [(1.0, 30.0), (3.0, 10.0)]}, x="guidance", y="right, %"
    )
    first, second = (
        points(e.get("d") or "") for e in parsed(svg).iter(f"{SVG}path") if "line" in (e.get("class") or "")
    )
    assert first[0][0] == second[0][0] < first[1][0] == second[1][0]
    assert [first[0][1] > first[1][1], second[0][1] < second[1][1]] == [True, True], "up is more"
    assert (first[0][1] - first[1][1]) == pytest.approx(second[1][1] - second[0][1], abs=0.2)
    assert {"1", "3", "base", "tuned", "guidance", "right, %"} <= set(texts(svg))
    assert "base: 20 at 1, 40 at 3; tuned: 30 at 1, 10 at 3" in (parsed(svg)[0].text or "")
    assert plots.over({"base": [(2.0, 1.0)]}, x="guidance", y="clip")
    assert plots.over({"base": []}, x="guidance", y="clip") == ""


def test_bars_stand_at_their_heights_with_their_whiskers() -> None:
    found = [Bar("−1\n0", 0.25), Bar("0\n1", 0.5, 0.4, 0.6), Bar("1\n2", float("nan"))]
    svg = plots.bars(found, x="mu", y="accuracy", level=0.5, top=1.0)
    heights = [float(e.get("height") or 0) for e in parsed(svg).iter(f"{SVG}rect")]
    assert heights == pytest.approx([(BOTTOM - TOP) / 4, (BOTTOM - TOP) / 2], abs=0.1), "what is not known has no bar"
    (level,) = [e.get("d") or "" for e in parsed(svg).iter(f"{SVG}path") if e.get("class") == "mark"]
    assert float(level.split()[1].split("H")[0]) == pytest.approx((TOP + BOTTOM) / 2, abs=0.1)
    assert {"−1", "0", "mu", "accuracy", "0.0", "1.0"} <= set(texts(svg))
    assert plots.bars([], x="mu", y="accuracy") == ""


def test_a_calibrated_model_s_points_lie_on_the_dashed_line() -> None:
    svg = plots.reliability([Bin(0.5, 0.6, 0.55, 0.55, 40), Bin(0.9, 1.0, 0.95, 0.95, 10)])
    (line,) = [points(e.get("d") or "") for e in parsed(svg).iter(f"{SVG}path") if e.get("class") == "mark"]
    (x0, y0), (x1, y1) = line
    for circle in parsed(svg).iter(f"{SVG}circle"):
        x, y = float(circle.get("cx") or 0), float(circle.get("cy") or 0)
        assert y == pytest.approx(y0 + (y1 - y0) * (x - x0) / (x1 - x0), abs=0.2)
    radii = [float(e.get("r") or 0) - 3 for e in parsed(svg).iter(f"{SVG}circle")]
    assert radii[0] / radii[1] == pytest.approx(2.0, abs=0.05), "areas are counts"
    assert plots.reliability([]) == ""


def test_a_scatter_draws_both_groups_and_no_more_points_than_can_be_seen() -> None:
    rng = np.random.default_rng(0)
    groups = {"chosen": rng.normal(size=(5000, 2)), "rejected": rng.normal(size=(10, 2)) + 3}
    svg = plots.scatter(groups, x="first", y="second")
    kinds = [e.get("class") for e in parsed(svg).iter(f"{SVG}circle")]
    assert kinds.count("a") <= plots.MOST_POINTS
    assert kinds.count("b") == 10
    inside = [(float(e.get("cx") or 0), float(e.get("cy") or 0)) for e in parsed(svg).iter(f"{SVG}circle")]
    assert all(LEFT <= x <= RIGHT and TOP <= y <= BOTTOM for x, y in inside)
    assert plots.scatter({"chosen": np.empty((0, 2))}, x="", y="") == ""


def test_what_a_user_named_is_text_and_never_markup() -> None:
    svg = plots.histogram({"<b>&": np.array([1.0, 2.0]), "other": np.array([1.0])}, x="<script>")
    assert "<script>" in texts(svg)
    assert "<b>&" in texts(svg)


def test_whole_numbers_have_bins_of_whole_numbers() -> None:
    svg = plots.histogram({"words": np.repeat(np.arange(3.0, 20.0), 2)}, x="words")
    (outline,) = [e.get("d") or "" for e in parsed(svg).iter(f"{SVG}path") if "area" in (e.get("class") or "")]
    tops = [y for _, y in points(outline)[1:-1]]
    assert len(tops) == 2 * 17, "a bin for each number"
    assert max(tops) - min(tops) < 0.2, "numbers of one frequency are drawn at one height"


def test_courses_end_beside_each_other_with_their_intervals() -> None:
    groups = {
        "raft": Course([(0.0, 20.0), (50.0, 25.0), (100.0, 30.0)], 2.0),
        "<nft>": Course([(0.0, 20.0), (100.0, 24.0)]),
    }
    svg = plots.courses(groups, {"base": 20.0, "best of 8": 28.0}, x="cost", y="right, %")
    first, second = (points(e.get("d") or "") for e in parsed(svg).iter(f"{SVG}path") if e.get("class") == "line")
    assert first[0] == second[0]
    assert first[1][0] - first[0][0] == pytest.approx(first[2][0] - first[1][0], abs=0.2)
    assert first[0][1] - first[1][1] == pytest.approx(first[1][1] - first[2][1], abs=0.2)
    ends = [e for e in parsed(svg).iter(f"{SVG}circle") if e.get("r") == "5"]
    assert [float(e.get("cy") or 0) for e in ends] == pytest.approx([first[-1][1], second[-1][1]])
    assert [(e[0].text or "") for e in ends] == ["raft: 30 ± 2", "<nft>: 24"]
    (whisker,) = [e.get("d") or "" for e in parsed(svg).iter(f"{SVG}path") if e.get("class") == "whisker"]
    low, high = (float(value) for value in whisker.split()[1].split("V"))
    assert low - high == pytest.approx(4 / 5 * (first[0][1] - first[1][1]), abs=0.2), "two up and two down"
    levels = [e.get("d") or "" for e in parsed(svg).iter(f"{SVG}path") if e.get("class") == "mark"]
    assert float(levels[0].split()[1].split("H")[0]) == pytest.approx(first[0][1], abs=0.1)
    assert {"raft", "<nft>", "base", "best of 8", "cost", "right, %", "100"} <= set(texts(svg))
    assert plots.courses({}, {"base": 1.0}, x="", y="") == ""


def test_more_courses_than_colours_are_dashed() -> None:
    svg = plots.courses({str(n): Course([(0.0, 0.0), (1.0, float(n))]) for n in range(9)}, {}, x="", y="")
    lines = [e for e in parsed(svg).iter(f"{SVG}path") if e.get("class") == "line"]
    looks = [(line.get("stroke"), line.get("stroke-dasharray")) for line in lines]
    assert len(set(looks)) == 9
    assert looks[8] == (looks[0][0], "7 4")
