"""A finished run of a small random model, its pages served on loopback, and a browser that presses their buttons."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from raftdiff.cli.main import main
from raftdiff.diffusion.models import tiny
from raftdiff.embedded.scenes.world import draw

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SHORT = (
    "sampler.height=32",
    "sampler.width=32",
    "evaluation.judge=null",
    "loop.rounds=2",
    "loop.candidates=3",
    "loop.prompts_per_round=4",
    "sampler.steps=1",
    "sampler.guidance=1",
    "finetuner.steps=2",
    "finetuner.batch_size=4",
    "finetuner.learning_rate=3e-2",
    "evaluation.samples_per_prompt=1",
    "logging.tracker=null",
)

HELD_OUT = 10
"""Captions of the evaluation."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if CHROMIUM is None:
        for item in items:
            if "browser" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs Chromium, and this machine has none"))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rounds and an evaluation; not to be written to."""
    folder = tmp_path_factory.mktemp("browser")
    run, model = folder / "run", f"model.base={tiny.write_folder(folder / 'sd15', 'sd15')}"
    captions = ", ".join(scene.caption for scene in draw(HELD_OUT, seed=0, held_out=True))
    held_out = ("evaluation.prompts.file=null", f"evaluation.prompts.captions=[{captions}]")
    assert main(["train", "demo", "--out", str(run), model, *SHORT, *held_out]) == 0
    assert main(["eval", str(run)]) == 0
    return run


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """The same, to write to."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A browser for the tests of a file: it keeps an event loop running in this thread, where others want their own."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium: Any) -> Iterator[Callable[..., Any]]:
    """Open an address in a window of its own; errors of the page's scripts fail the test."""
    opened: list[Any] = []
    broken: list[str] = []

    def open_page(address: str, **window: Any) -> Any:
        context = chromium.new_context(**{"viewport": {"width": 1200, "height": 900}, **window})
        context.set_default_timeout(120_000)  # an event is waited for, however busy the machine
        opened.append(context)
        tab = context.new_page()
        tab.on("pageerror", lambda error: broken.append(str(error)))
        tab.goto(address)
        return tab

    yield open_page
    for context in opened:
        context.close()
    assert not broken, broken


@pytest.fixture
def serve() -> Iterator[Callable[[Any], str]]:
    """Serve a page until the test ends; returns its address."""
    from raftdiff.apps import door

    served: list[Any] = []

    def begin(blocks: Any) -> str:
        served.append(door.serve(blocks, door.Door(browser=False)))
        return str(served[-1].address)

    yield begin
    for one in served:
        one.close()
