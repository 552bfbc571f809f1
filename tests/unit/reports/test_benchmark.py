"""The table of a benchmark in three forms, from one outcome."""

import numpy as np

from raftdiff.diffusion.suites.outcome import outcome
from raftdiff.reports.benchmark import latex, markdown, plain
from raftdiff.types import Prompt, Reason


def prompts(tags: list[str]) -> list[Prompt]:
    return [Prompt(f"p-{n}", "a cat", "a cat", "a cat", meta={"tag": tag}) for n, tag in enumerate(tags)]


def found():  # type: ignore[no-untyped-def]
    before, after = np.array([[0.0, 1.0], [0.0, 0.0], [1.0, 1.0]]), np.array([[1.0, 1.0], [0.0, 1.0], [1.0, 1.0]])
    tables = {"before": {"geneval": before}, "after": {"geneval": after}}
    return outcome("geneval", "run_1", prompts(["color_attr", "color_attr", "counting"]), tables, {})


def test_the_benchmarks_own_figure_is_the_last_line_of_each_table() -> None:
    """GenEval's: the mean over the tags, (0.25 + 1) / 2 before and (0.75 + 1) / 2 after; 3 and 5 of 6 pictures."""
    lines = [line.split("|") for line in markdown(found()).splitlines() if line.startswith("| ")]
    told = {cells[1].strip(): [cell.strip() for cell in cells[2:5]] for cells in lines}
    assert told["color_attr"] == ["2", "0.250", "0.750"]
    assert told["all pictures"] == ["3", "0.500", "0.833"]
    assert told["prompts with any right"] == ["3", "0.667", "1.000"]
    assert list(told)[-1] == "overall (mean of categories)"
    assert told["overall (mean of categories)"] == ["3", "0.625", "0.875"]
    assert "GenEval, run_1: 3 prompts x 2, the same prompts and seeds before and after" in plain(found())


def test_latex_has_as_many_cells_in_each_line_and_no_bare_signs() -> None:
    text = latex(found())
    body = [line for line in text.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
    assert {line.count(" & ") for line in body} == {6}
    assert r"color\_attr & 2 & 0.250 & 0.750 & $+0.500$" in text
    assert r"GenEval, run\_1" in text
    assert "95% " not in text.replace(r"95\%", "")


def test_without_categories_there_is_one_line_over_all_prompts() -> None:
    tables = {"score": {"hps": np.array([[25.0], [27.0]])}}
    text = plain(outcome("imagereward", "sd", prompts(["", ""]), tables, {}))
    assert "overall (all prompts)" in text
    assert "26.00" in text
    assert "all pictures" not in text
    assert "before" not in text


def explained():  # type: ignore[no-untyped-def]
    """Four pictures of color_attr and two of counting; each reason by its kind."""
    few, many = Reason("too few", "1"), Reason("too many", "9")
    hue, hue2 = (Reason("another colour", it) for it in ("red", "blue"))
    told = {
        "before": {("p-0", 0): (few,), ("p-0", 1): (hue, hue2), ("p-1", 0): (few, hue), ("p-1", 1): (few,)},
        "after": {("p-0", 0): (), ("p-0", 1): (hue,), ("p-1", 0): (), ("p-1", 1): ()},
    }
    told["before"] |= {("p-2", 0): (many,), ("p-2", 1): ()}
    told["after"] |= {("p-2", 0): (), ("p-2", 1): ()}
    tables = {side: {"geneval": np.zeros((3, 2))} for side in told}
    asked = prompts(["color_attr", "color_attr", "counting"])
    reasons = {side: {"geneval": it} for side, it in told.items()}
    return outcome("geneval", "run_1", asked, tables, {}, reasons=reasons)


def test_reasons_are_counted_by_category_and_kind_the_commonest_first() -> None:
    """A picture with two reasons of a kind has that kind once."""
    lines = [line.split("|") for line in markdown(explained()).split("| what is wrong")[1].splitlines()[2:]]
    assert [[cell.strip() for cell in cells[1:5]] for cells in lines] == [
        ["**geneval**", "", "", ""],
        ["color_attr: another colour", "4", "50.0%", "25.0%"],
        ["color_attr: too few", "4", "75.0%", "0.0%"],
        ["counting: too many", "2", "50.0%", "0.0%"],
    ]
    assert "counting: too many" in plain(explained())
    assert "what is wrong" not in latex(explained())
    assert "what is wrong" not in plain(found())


def test_of_a_category_the_three_commonest_are_shown_and_all_are_kept() -> None:
    told = {("p-0", n): tuple(Reason(kind, "") for kind in "abcd"[: n + 1]) for n in range(4)}
    tables = {"score": {"geneval": np.zeros((1, 4))}}
    it = outcome("geneval", "m", prompts(["x"]), tables, {}, reasons={"score": {"geneval": told}})
    assert [why["kind"] for why in it["reasons"]["geneval"]] == ["a", "b", "c", "d"]
    assert [line.split(" ")[1] for line in plain(it).splitlines() if line.startswith("x: ")] == ["a", "b", "c"]


def test_where_nothing_is_wrong_it_is_said() -> None:
    told = {"score": {"g": {("p-0", 0): ()}}}
    it = outcome("geneval", "m", prompts(["x"]), {"score": {"g": np.ones((1, 1))}}, {}, reasons=told)
    assert plain(it).splitlines()[-4:] == ["what is wrong  pictures  share", "", "g", "nothing"]
