"""Tables and plot of made-up outcomes."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from raftdiff.diffusion.methods.changes import Cost, Trial
from raftdiff.diffusion.methods.standings import plot, summary, told, written
from raftdiff.diffusion.methods.trials import Baselines, Look, Outcome, Yardstick
from raftdiff.diffusion.recipe import Recipe
from raftdiff.diffusion.recipe_files import load_recipe
from raftdiff.measures.statistics import t_quantile

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def recipe(recipe_file: Callable[..., str]) -> Recipe:
    return load_recipe(recipe_file())


def look(exact: float, clip: float, **more: float) -> Look:
    figures = {"judge.exact": exact, "judge.count": 90.0, "reward.clip": clip, "diversity.vendi": 3.0, "spread": 1.25}
    return Look(figures={**figures, **more}, halves={"judge.exact": 4.0, "reward.clip": 0.5})


BASE = Baselines(
    how="",
    base={"held_out": {"2": look(70.0, 72.0), "1": look(50.0, 70.0)}},
    best={"held_out": {"2": look(80.0, 75.0), "1": look(60.0, 74.0)}},
)


def outcome(method: str, seed: int, guided: float, alone: float, before: float = 65.0) -> Outcome:
    first = {"held_out": {"2": look(before, 71.0)}}
    more = {"drift.prediction": 0.02, "gain.judge.exact": guided - 70.0}
    last = {"held_out": {"2": look(guided, 73.0, **more), "1": look(alone, 72.0)}}
    looks, spent = {0: first, 1: last}, [13_000, 26_000]
    return Outcome(method=method, seed=seed, how="", spent=spent, steps=200, exposures=12.5, seconds=61.0, looks=looks)


OUTCOMES = [
    outcome("raft", 0, 62.0, 70.0),
    outcome("nft", 0, 76.0, 60.0),
    outcome("raft", 1, 64.0, 74.0, before=67.0),
    outcome("nft", 1, 74.0, 61.0),
]


def trial(name: str, recipe: Recipe, total: int = 26_000) -> Trial:
    return Trial(name, recipe, Cost(20_000, total - 20_000))


def cells(text: str, method: str, table: int = 0) -> dict[str, str]:
    """A line of one of the tables by its columns."""
    tables = [part.splitlines() for part in text.split("\n\n") if part.startswith("| method")]
    head, line = (
        [cell.strip() for cell in row.strip("|").split("|")]
        for row in (tables[table][0], next(row for row in tables[table] if row.startswith(f"| {method} |")))
    )
    return dict(zip(head, line, strict=True))


def test_the_table_has_means_over_seeds_with_intervals_and_what_each_spent(recipe: Recipe) -> None:
    text = told(Yardstick(recipe), [trial("raft", recipe), trial("nft", recipe)], BASE, OUTCOMES)
    half = t_quantile(1) * math.sqrt(2) / math.sqrt(2)  # of 62 and 64, whose deviation is the root of 2
    raft = cells(text, "raft")
    assert raft["everything right, %"] == f"63.0 ± {half:.1f}"
    assert raft["above the base"] == f"-7.0 ± {half:.1f}"
    assert (raft["clip"], raft["drift"], raft["spread of latents"]) == ("73.00", "0.0200", "1.25")
    assert (raft["evaluations, learning"], raft["steps"], raft["exposures"]) == ("26,000", "200", "12.5")
    assert "count" not in text, "the judge's aspects stand in methods.json"
    base, best = cells(text, "base"), cells(text, "best of 3, base")
    assert base["everything right, %"] == "70.0 ± 4.0", "over the prompts"
    assert (base["above the base"], cells(text, "nft")["above the base"][:4]) == ("", "+5.0")
    assert (base["drift"], base["steps"], base["evaluations, learning"]) == ("", "", "0")
    assert (base["evaluations, a picture"], best["evaluations, a picture"]) == ("4", "12")
    assert [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")] == [
        *("method", "base", "best of 3, base", "raft", "nft")
    ]
    assert "over 2 training seeds; of the base and its best, over the prompts. 26,000 network evaluations" in text
    assert text.endswith("; 2 seeds.\n")
    fewer = [one for one in OUTCOMES if (one.method, one.seed) != ("nft", 1)]
    text = told(Yardstick(recipe), [trial("raft", recipe), trial("nft", recipe)], BASE, fewer)
    assert text.endswith("; 2 seeds, of some methods 1, whose ± is over the prompts.\n")
    assert "Held-out prompts: 2 x 2 pictures, guidance 2" in text


def test_over_guidance_each_method_stands_at_its_best_and_what_a_picture_then_costs(recipe: Recipe) -> None:
    text = told(Yardstick(recipe, (1.0,)), [trial("raft", recipe)], BASE, OUTCOMES)
    raft, nft, base = (cells(text, name, 1) for name in ("raft", "nft", "base"))
    assert (raft["1"][:4], raft["2"][:4], raft["at its best"][:4]) == ("72.0", "63.0", "72.0")
    assert (raft["which is"], raft["evaluations, a picture"]) == ("1", "2")
    assert (nft["at its best"][:4], nft["which is"], nft["evaluations, a picture"]) == ("75.0", "2", "4")
    assert (base["at its best"], base["which is"]) == ("70.0 ± 4.0", "2")


def test_a_single_seed_has_its_intervals_over_the_prompts_and_unequal_costs_are_told(recipe: Recipe) -> None:
    trials = [trial("raft", recipe), trial("nft", recipe, 25_990)]
    text = told(Yardstick(recipe), trials, BASE, OUTCOMES[:2])
    assert cells(text, "raft")["everything right, %"] == "62.0 ± 4.0"
    assert "interval over the prompts. 25,990 to 26,000 network evaluations a method and seed" in text


def test_the_plot_begins_at_the_base_and_ends_where_the_table_does(recipe: Recipe) -> None:
    svg = ElementTree.fromstring(plot(Yardstick(recipe), BASE, OUTCOMES))
    lines = [path.get("d") or "" for path in svg.iter(f"{SVG}path") if path.get("class") == "line"]
    (raft, nft) = ([tuple(map(float, point.split())) for point in line[1:].split("L")] for line in lines)
    assert [len(raft), len(nft)] == [3, 3], "the base, and after each round"
    assert raft[0] == nft[0]
    assert raft[1][1] > raft[0][1] > nft[2][1], "up is more: 66 is below the base's 70, and 75 above it"
    assert (raft[1][0] - raft[0][0]) == pytest.approx(raft[2][0] - raft[1][0], abs=0.2)
    title = svg[0].text or ""
    assert "everything right, %: held-out prompts, guidance 2." in title
    assert "raft: 63 ± 13 at 26,000; nft: 75 ± 13 at 26,000. base: 70; best of 3, base: 80." in title


def test_everything_is_written_for_programs_too(recipe: Recipe, tmp_path: Path) -> None:
    text = written(tmp_path, Yardstick(recipe, (1.0,)), [trial("raft", recipe), trial("nft", recipe)], BASE, OUTCOMES)
    assert (tmp_path / "table.md").read_text() == text
    found = json.loads((tmp_path / "methods.json").read_text())
    assert found["planned"]["nft"] == {"sampling": 20_000, "tuning": 6_000, "total": 26_000}
    assert [Outcome.model_validate(one) for one in found["outcomes"]] == OUTCOMES
    assert found["outcomes"][0]["looks"]["1"]["held_out"]["2"]["figures"]["judge.count"] == 90.0
    assert found["evaluations_a_picture"] == {"2": 4, "1": 2}
    ElementTree.parse(tmp_path / "methods.svg")


def test_a_run_in_a_line(recipe: Recipe) -> None:
    line = "nft, seed 1: everything right, % 74.00, clip 73.00; 26,000 network evaluations, 1 min 1 s"
    assert summary(Yardstick(recipe), OUTCOMES[3]) == line
