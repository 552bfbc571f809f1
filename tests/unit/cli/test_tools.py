"""Small commands."""

import argparse
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from raftdiff.cli import tools
from raftdiff.cli.llm.tools import _warn_of_strange
from raftdiff.errors import UserError


def redness(images: list[Any], prompts: list[str]) -> list[float]:
    """Higher is redder."""
    return [image.resize((1, 1)).getpixel((0, 0))[0] / 255 for image in images]


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = ModuleType("rewards_of_test_tools")
    module.redness = redness
    monkeypatch.setitem(sys.modules, module.__name__, module)


def check(pictures: Path | None, *overrides: str) -> int:
    return tools.check_reward(
        argparse.Namespace(
            reward="rewards_of_test_tools:redness", overrides=[*overrides], text=False, pictures=pictures
        )
    )


def test_the_scores_stand_beside_the_names_of_the_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tools, "SHOWN", 3)
    for name, colour in (("a.png", "white"), ("b.JPG", "black"), ("c.bmp", (255, 0, 0)), ("d.jfif", "blue")):
        Image.new("RGB", (8, 8), colour).save(tmp_path / name, format="png")
    for name in ("notes.txt", "e.heic", ".hidden"):
        (tmp_path / name).write_text("no picture")
    assert check(tmp_path) == 0
    told = capsys.readouterr()
    assert told.out.splitlines()[:4] == [
        "The reward 'rewards_of_test_tools:redness'",
        "           1  a.png: a picture",
        "           0  b.JPG: a picture",
        "           1  c.bmp: a picture",
    ]
    assert told.err.splitlines() == [
        "left out: 2 files of other kinds (.heic, .txt)",
        "left out: all but the first 3 of 4 pictures",
        "of one colour all over: a.png, b.JPG, c.bmp",
    ]


def test_one_picture_and_a_name_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert check(tmp_path / "clear.png", "name=red") == 0
    told = capsys.readouterr().out
    assert told.startswith("The reward 'red'\n           1  clear.png: a picture\n")
    assert "ok    direction: " in told


def test_a_function_that_does_not_say_what_higher_means_is_told_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redness, "__doc__", None)
    assert check(None) == 0
    assert "note  direction: the docstring should say" in capsys.readouterr().out


def test_a_damaged_picture_and_a_folder_without_any_are_named(tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    with pytest.raises(UserError, match="sampels: nothing is there. Did you mean '.*samples'"):
        check(tmp_path / "sampels")
    with pytest.raises(UserError, match="there is no picture here. Known: .png, "):
        check(tmp_path)
    (tmp_path / "a.png").write_text("<html>")
    with pytest.raises(UserError, match="a.png: this is no whole picture"):
        check(tmp_path)


@pytest.mark.parametrize(
    ("model", "known", "world"),
    [
        ("review-lm", "western about pirates :", "text world"),
        (
            "translate-lm",
            "the modern effects were really dreadful , but the early acting is good :",
            "world of translation",
        ),
        ("code-lm", "if the first is even , the largest plus two ; else the sum :", "world of programs"),
    ],
)
def test_a_small_model_that_ships_is_told_of_what_it_does_not_know(model: str, known: str, world: str) -> None:
    with pytest.warns(
        UserWarning, match=f"{model} knows the prompts of its {world} alone, and answers others at random"
    ):
        _warn_of_strange(model, ["Name two fruits."])
    _warn_of_strange(model, [known])  # a warning would fail the test
    _warn_of_strange("elsewhere", ["Name two fruits."])
