"""The pictures of the pages in ``docs/``: compare, watch and label of a finished run, as a browser shows them.

    raftdiff train demo --out runs/demo && raftdiff eval runs/demo
    python tests/benchmarks/page_pictures.py runs/demo

Needs Chromium and Playwright. The run is left as it is: nothing is pressed that writes.
"""

import argparse
import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

from raftdiff.apps import compare, door, label, watch
from raftdiff.diffusion.before_after.sidebyside import SideBySide
from raftdiff.records.labels import candidate_pairs
from raftdiff.records.run import Run

PROMPT = "a cartoon mushroom left of a frog on a blue background"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    given = parser.parse_args()
    run = Run.open(given.run)
    last = run.rounds_done() - 1
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        with window(browser, compare.build(SideBySide([run])), 1100, 720) as tab:
            tab.fill("#prompts textarea", PROMPT)
            tab.get_by_text("Seeds, steps, guidance, size").click()
            tab.locator("#count input[type=number]").fill("4")
            tab.keyboard.press("Tab")
            tab.get_by_text("Seeds, steps, guidance, size").click()
            tab.click("#draw")
            tab.locator(".means").wait_for()
            save(tab, given.out / "compare.png", "#shown")
        with window(browser, watch.build(run), 1100, 960) as tab:
            tab.locator("#candidates .kept img").first.wait_for()
            tab.locator("#strip img").first.wait_for()
            save(tab, given.out / "watch.png")
        pairs = candidate_pairs(run, last, per_prompt=1, seed=0)
        with window(browser, label.build(run, pairs, rater="ada"), 720, 780) as tab:
            tab.locator(".pair img").nth(1).wait_for()
            save(tab, given.out / "label.png")
        browser.close()


@contextmanager
def window(browser: Any, blocks: Any, width: int, height: int) -> Iterator[Any]:
    """A page in a window of this size."""
    served = door.serve(blocks, door.Door(browser=False))
    context = browser.new_context(viewport={"width": width, "height": height})
    context.set_default_timeout(300_000)
    tab = context.new_page()
    try:
        tab.goto(served.address)
        tab.locator(".view").first.wait_for()
        yield tab
    finally:
        context.close()
        served.close()


def save(tab: Any, path: Path, part: str | None = None) -> None:
    """What the window shows, or one part of the page whole."""
    tab.evaluate("document.activeElement.blur()")
    taken = tab.locator(part).screenshot() if part else tab.screenshot()
    picture = Image.open(io.BytesIO(taken)).convert("RGB")
    picture.save(path, optimize=True)
    print(f"{path}: {picture.width}x{picture.height}, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
