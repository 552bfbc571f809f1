"""What may stand on a page: how mistakes are told, that typed text stays text, what is said where Gradio is missing."""

import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from raftdiff.apps import page
from raftdiff.cli.main import main
from raftdiff.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore")  # of Gradio's own making


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Gradio is looked for anew."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", os.environ.get("GRADIO_TEMP_DIR", ""))  # set back afterwards
    page.gradio.cache_clear()
    yield monkeypatch
    page.gradio.cache_clear()


def failing(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def importing(name: str, package: str | None = None) -> Any:
        if name == "gradio":
            raise error
        return real(name, package)

    real = importlib.import_module
    monkeypatch.setattr(importlib, "import_module", importing)


@pytest.mark.parametrize("command", ["compare", "watch", "label"])
def test_without_gradio_each_page_says_how_to_get_it(
    command: str, fresh: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(fresh, ModuleNotFoundError("No module named 'gradio'", name="gradio"))
    assert main([command, str(tmp_path), "--no-browser"]) == 2
    assert "pip install 'raftdiff[apps]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ModuleNotFoundError("No module named 'pandas'", name="pandas"), r"does not load \(No module named 'pandas'\)"),
        (ImportError("Using SOCKS proxy, but socksio is missing"), "does not load: Using SOCKS proxy"),
    ],
)
def test_a_gradio_that_does_not_load_is_told_by_its_reason(
    error: Exception, words: str, fresh: pytest.MonkeyPatch
) -> None:
    failing(fresh, error)
    with pytest.raises(UserError, match=words):
        page.blocks("title")


def test_certificates_that_are_not_there_are_named(fresh: pytest.MonkeyPatch) -> None:
    fresh.setenv("SSL_CERT_FILE", "/nowhere/certificates.pem")
    with pytest.raises(UserError, match="SSL_CERT_FILE names /nowhere/certificates.pem, which is not there"):
        page.blocks("title")


def test_gradio_writes_to_a_folder_of_this_process_alone(fresh: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fresh.setenv("GRADIO_TEMP_DIR", str(tmp_path / "somebody-elses"))
    page.gradio()
    assert os.environ["GRADIO_TEMP_DIR"] == str(page.scratch())
    assert page.scratch().stat().st_mode & 0o077 == 0
    assert not (tmp_path / "somebody-elses").exists()


def test_mistakes_are_told_as_text_in_their_place() -> None:
    def wrong() -> None:
        raise UserError("<b>no</b>")

    def gone() -> None:
        raise FileNotFoundError(2, "No such file", "/run/<x>.png")

    assert "&lt;b&gt;no&lt;/b&gt;" in page.told(wrong)()[-1]
    assert "&lt;x&gt;.png: this file is gone" in page.told(gone)()[-1]
    assert len(page.told(wrong, outputs=3)()) == 4
    assert page.told(lambda: ["a", "b"], outputs=2)() == ["a", "b", ""]
    assert page.told(lambda: "a", clears=False)() == ["a", page.gradio().skip()]


@pytest.mark.parametrize("value", [None, "", "7", True, float("nan"), float("inf"), 1e308, -1, [], {}])
def test_what_is_no_number_is_a_sentence(value: Any) -> None:
    with pytest.raises(UserError, match=r"^Steps( is empty|: .* is no number)"):
        page.number(value, "Steps")


def test_bounds_of_a_number_are_told() -> None:
    assert page.number(3, "Steps", 1, 100) == 3
    with pytest.raises(UserError, match="Steps: 101 is no number from 1 to 100"):
        page.number(101, "Steps", 1, 100)


def test_what_is_no_text_is_a_sentence() -> None:
    assert page.words("a cat") == "a cat"
    assert page.words(None) == ""
    with pytest.raises(UserError, match="Here a text belongs, not 7"):
        page.words(7)


def test_typed_text_is_neither_html_nor_a_placeholder() -> None:
    evil = "<script>{{x}} ${y}"
    made = page.view(
        "question", caption=evil, left=page.Shown("data:,", ""), right=page.Shown("data:,", ""), at=0, of=1
    )
    assert "<script>" not in made
    assert not set("{}$") & set(made)


def test_pictures_travel_inside_the_page(tmp_path: Path) -> None:
    Image.new("RGB", (8, 4), (1, 2, 3)).save(tmp_path / "it.png")
    shown = page.picture(tmp_path / "it.png")
    assert shown.uri.startswith("data:image/png;base64,")
    assert shown.shape == "8 / 4"


@pytest.mark.parametrize("content", [b"<html>", b""])
def test_a_picture_that_was_cut_short_is_a_word_in_its_place(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "cut.png").write_bytes(content)
    assert page.picture(tmp_path / "cut.png") == (
        "",
        "cut.png: this picture cannot be read; was it cut short?",
        "1 / 1",
    )
    Image.new("RGB", (64, 64), (1, 2, 3)).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:90])
    assert "cannot be read" in page.picture(tmp_path / "cut.png").text
    with pytest.raises(FileNotFoundError):
        page.picture(tmp_path / "gone.png")


@pytest.mark.parametrize("command", [["watch"], ["compare"], ["label"], ["label", "--eval"]])
def test_a_page_of_no_run_is_a_sentence(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command[0], str(tmp_path), *command[1:]]) == 2
    assert "this is not a run directory" in capsys.readouterr().err
