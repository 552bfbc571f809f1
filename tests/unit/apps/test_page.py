"""The door, and what may stand on a page: who is let in, how mistakes are told, that typed text stays text."""

import builtins
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from raftdiff.apps import page
from raftdiff.cli.main import main
from raftdiff.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore")  # of Gradio's own making


def test_the_door_is_this_machines_alone_and_says_nothing() -> None:
    door = page.Door()
    assert door.host == "127.0.0.1"
    assert door.warning() is None
    assert door.login() is None


@pytest.mark.parametrize(
    ("door", "words"),
    [
        (page.Door(host="0.0.0.0"), "anybody on your network and comes by; set one with --auth"),
        (page.Door(host="0.0.0.0", user="ada:secret"), "anybody on your network and knows the password"),
        (page.Door(share=True), "anybody on the internet who has the address and comes by"),
    ],
)
def test_an_open_door_is_said(door: page.Door, words: str) -> None:
    assert words in (door.warning() or "")


@pytest.mark.parametrize("user", ["ada", "ada:", ":secret"])
def test_half_a_login_is_a_sentence(user: str) -> None:
    with pytest.raises(UserError, match="--auth: write NAME:PASSWORD"):
        page.Door(user=user).login()


def test_without_gradio_the_pages_say_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *rest: Any) -> Any:
        if name == "gradio":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.delitem(sys.modules, "gradio", raising=False)
    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(UserError, match=r"pip install 'raftdiff\[apps\]'"):
        page.blocks("title")


def test_mistakes_are_told_as_text() -> None:
    import gradio

    def wrong() -> None:
        raise UserError("<b>no</b>")

    def gone() -> None:
        raise FileNotFoundError(2, "No such file", "/run/<x>.png")

    with pytest.raises(gradio.Error, match="&lt;b&gt;no&lt;/b&gt;"):
        page.told(wrong)()
    with pytest.raises(gradio.Error, match="&lt;x&gt;.png: this file is gone"):
        page.told(gone)()


def test_typed_text_is_neither_html_nor_a_placeholder() -> None:
    evil = "<script>{{x}} ${y}"
    made = page.view("question", caption=evil, left="data:,", right="data:,", at=0, of=1)
    assert "<script>" not in made
    assert not set("{}$") & set(made)


def test_pictures_travel_inside_the_page(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), (1, 2, 3)).save(tmp_path / "it.png")
    assert page.uri(tmp_path / "it.png").startswith("data:image/png;base64,")


@pytest.mark.parametrize("command", [["watch"], ["compare"], ["label"], ["label", "--eval"]])
def test_a_page_of_no_run_is_a_sentence(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command[0], str(tmp_path), *command[1:]]) == 2
    assert "this is not a run directory" in capsys.readouterr().err


def test_a_port_that_is_taken_is_a_sentence() -> None:
    class Taken:
        def queue(self, **options: Any) -> None: ...

        def launch(self, **options: Any) -> None:
            raise OSError("Cannot find empty port in range: 7000-7000")

    with pytest.raises(UserError, match="The page cannot be served at 127.0.0.1, port 7000: Cannot find empty port"):
        page.serve(Taken(), page.Door(port=7000))
