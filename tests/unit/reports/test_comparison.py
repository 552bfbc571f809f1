"""An evaluation as a folder: what was drawn is kept though a figure of it is no number."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from raftdiff.errors import UserError
from raftdiff.records.disk import write_text
from raftdiff.reports import comparison


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(comparison, "candidates", lambda run: [])
    monkeypatch.setattr(comparison, "write_report", lambda path, **_: write_text(path, "") or path)
    (tmp_path / "recipe.yaml").write_text("name: toy\n")
    run: Any = SimpleNamespace(path=tmp_path, metrics=lambda: [{}], rollbacks=dict, rounds_done=lambda: 1)
    run.origin, run.round = lambda after: after - 1, lambda index: SimpleNamespace(index=index)

    def written(drawn: Any = None, **figures: Any) -> Path:
        def media(aside: Path) -> None:
            write_text(aside / "answers.jsonl", "{}\n")

        comparison.write_comparison(
            tmp_path / "eval",
            run,
            name="toy",
            evaluation={"drift": {}, **figures},
            drawn=drawn or {},
            media=media,
            pairs=[],
        )
        return tmp_path / "eval"

    return written


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_drift_beyond_all_bounds_is_null_and_told(write: Any, value: float) -> None:
    with pytest.warns(UserWarning, match=rf"^drift\.kl is {value}, .* written as null.*--round"):
        folder = write(drift={"kl": value, "picture": None, "prediction": 0.5})
    told = json.loads((folder / "eval.json").read_text())
    assert told["drift"] == {"kl": None, "picture": None, "prediction": 0.5}
    assert told["round"] == 0
    assert (folder / "answers.jsonl").is_file()


def test_another_figure_that_is_no_number_is_named(write: Any) -> None:
    with pytest.raises(UserError, match=r"no number: text\.length\.before \(nan\)"):
        write(text={"length": {"before": math.nan}})


def test_how_it_was_drawn_is_kept_and_what_was_drawn_otherwise_does_not_go_without_a_word(write: Any) -> None:
    folder = write(drawn={"steps": 8, "guidance": 3.0})
    assert json.loads((folder / "eval.json").read_text())["drawn"] == {"steps": 8, "guidance": 3.0}
    write(drawn={"steps": 8, "guidance": 3.0})
    with pytest.warns(
        UserWarning, match=r"drawn with guidance 3\.0 \(now 1\.0\); this one takes its place\. With --name"
    ):
        write(drawn={"steps": 8, "guidance": 1.0})


@pytest.mark.parametrize("old", ["{", "[]", "{}", '{"drawn": null}', '{"drawn": {"steps": 4}}'])
def test_an_evaluation_that_does_not_say_how_it_was_drawn_is_replaced(write: Any, old: str) -> None:
    folder = write()
    (folder / "eval.json").write_text(old)
    write(drawn={"guidance": 1.0})
    assert json.loads((folder / "eval.json").read_text())["drawn"] == {"guidance": 1.0}
