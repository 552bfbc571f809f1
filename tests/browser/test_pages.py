"""The pages in a real browser: what a person sees and presses."""

import json
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raftdiff.apps import compare, label, watch
from raftdiff.diffusion.bench import Bench
from raftdiff.records.labels import Ballot, ballots, candidate_pairs, evaluation_pairs, tally
from raftdiff.records.run import Run

pytestmark = [
    pytest.mark.browser,
    pytest.mark.filterwarnings("ignore"),  # of Gradio's own making
]

Serve, Visit = Callable[[Any], str], Callable[..., Any]


def test_compare_draws_pictures_that_differ_and_tells_the_scores_of_eval_json(
    finished: Path, serve: Serve, visit: Visit
) -> None:
    tab = visit(serve(compare.build(Bench([Run(finished)]))))
    began = time.monotonic()
    tab.click("#draw")
    tab.wait_for_selector(".seam")
    seconds = time.monotonic() - began
    left, right = (tab.locator(".seam img").nth(place) for place in (0, 1))
    assert left.get_attribute("src") != right.get_attribute("src")
    assert seconds < 30, "the figure for docs/performance.md is measured on a machine alone; this only catches a hang"
    told = json.loads((finished / "eval/eval.json").read_text())
    caption = tab.locator(".card h3").first.inner_text()
    assert caption in left.get_attribute("alt")
    # The first caption alone here, all in eval.json: so compare with the picture's own file.
    before = (
        finished / "eval/before" / next(iter(json.loads((finished / "eval/pictures.json").read_text())))
    ).read_bytes()
    assert before
    assert set(told["rewards"]) == {"clip"}
    assert re.search(r"clip \d+\.\d", left.get_attribute("alt"))


def test_all_scores_on_the_page_are_those_of_the_evaluation(finished: Path, serve: Serve, visit: Visit) -> None:
    """Every held-out prompt at the evaluation's settings: the means on the page are eval.json's, to a rounding."""
    tab = visit(serve(compare.build(Bench([Run(finished)]))))
    captions = list(json.loads((finished / "eval/pictures.json").read_text()).values())
    tab.fill("#prompts textarea", "\n".join(captions))
    tab.click("#draw")
    tab.wait_for_selector(".seam")
    told = json.loads((finished / "eval/eval.json").read_text())["rewards"]["clip"]
    for side, place in (("before", 0), ("after", 1)):
        alts = [
            image.get_attribute("alt")
            for image in tab.locator(".seam").all()
            for image in [image.locator("img").nth(place)]
        ]
        scores = [float(re.search(r"clip (-?\d+\.\d+)", alt)[1]) for alt in alts]  # type: ignore[index]
        assert len(scores) == len(captions)
        assert sum(scores) / len(scores) == pytest.approx(told[side]["mean"], abs=0.06)


def test_the_seam_moves_with_the_hand_and_with_the_keyboard(finished: Path, serve: Serve, visit: Visit) -> None:
    tab = visit(serve(compare.build(Bench([Run(finished)]))))
    tab.click("#draw")
    seam = tab.locator(".seam").first
    seam.wait_for()
    before = seam.locator(".over").evaluate("it => getComputedStyle(it).clipPath")
    box = seam.bounding_box()
    tab.mouse.click(box["x"] + 0.8 * box["width"], box["y"] + 0.5 * box["height"])
    dragged = seam.locator(".over").evaluate("it => getComputedStyle(it).clipPath")
    assert dragged != before
    seam.locator("input").focus()
    tab.keyboard.press("ArrowLeft")
    assert seam.locator(".over").evaluate("it => getComputedStyle(it).clipPath") != dragged


def test_both_sides_share_their_settings_until_the_lock_is_taken_off(
    finished: Path, serve: Serve, visit: Visit
) -> None:
    """The base on both sides: the same pictures, until the right side has another seed."""
    tab = visit(serve(compare.build(Bench([Run(finished)]))))

    def sides() -> list[str]:
        return [tab.locator(".seam img").nth(place).get_attribute("src") for place in (0, 1)]

    tab.locator("#right input").click()
    tab.get_by_role("option", name="base").click()
    tab.click("#draw")
    tab.wait_for_selector(".seam")
    left, right = sides()
    assert left == right
    tab.get_by_text("Seeds, steps, guidance, size").click()
    tab.locator("#lock input").uncheck()
    tab.locator("#right-seed input").fill("7")
    tab.click("#draw")
    tab.wait_for_function("before => document.querySelectorAll('.seam img')[1].src !== before", arg=right)
    assert sides()[0] == left


def test_what_users_type_is_never_html(finished: Path, serve: Serve, visit: Visit) -> None:
    tab = visit(serve(compare.build(Bench([Run(finished)]))))
    evil = '<img src=x onerror="document.title=1"> {{constructor}} ${alert(1)}'
    tab.fill("#prompts textarea", evil)
    tab.click("#draw")
    tab.wait_for_selector(".seam")
    assert tab.locator(".card h3").inner_text() == evil
    assert tab.locator("img[src=x]").count() == 0
    assert tab.title() == "raftdiff compare"


def test_mistakes_are_sentences(copy: Path, serve: Serve, visit: Visit) -> None:
    tab = visit(serve(compare.build(Bench([Run(copy)]))))
    tab.fill("#prompts textarea", "   ")
    tab.click("#draw")
    tab.get_by_text("There is no prompt; type one").wait_for()
    tab.fill("#prompts textarea", "x" * 1001)
    tab.click("#draw")
    tab.get_by_text("This prompt has 1001 characters; 1000 are the most.").wait_for()
    shutil.rmtree(copy)
    tab.fill("#prompts textarea", "a cat")
    tab.click("#draw")
    tab.get_by_text("not a").first.wait_for()


def test_pictures_can_be_saved(finished: Path, serve: Serve, visit: Visit, tmp_path: Path) -> None:
    import zipfile

    tab = visit(serve(compare.build(Bench([Run(finished)]))))
    tab.click("#draw")
    tab.wait_for_selector(".seam")
    with tab.expect_download() as started:
        tab.click("#save")
    started.value.save_as(tmp_path / "saved.zip")
    names = zipfile.ZipFile(tmp_path / "saved.zip").namelist()
    assert "metadata.jsonl" in names
    assert len([name for name in names if name.endswith(".png")]) == 2


def test_watch_shows_the_run_and_what_was_selected(finished: Path, serve: Serve, visit: Visit) -> None:
    tab = visit(serve(watch.build(Run(finished))))
    tab.get_by_text("2 of 2 rounds done").wait_for()
    assert tab.locator("#state svg.curve").count() == 1
    kept = tab.locator("#candidates .kept img")
    kept.first.wait_for()
    assert "selected: clip" in kept.first.get_attribute("alt")
    assert kept.count() == 8, "four prompts, two kept of each"
    tab.locator("#still img").wait_for()
    assert "before any fine-tuning" in tab.locator("#still img").get_attribute("alt")


def test_watch_follows_a_run_that_goes_on(copy: Path, serve: Serve, visit: Visit) -> None:
    shutil.move(copy / "rounds/001", copy / "rounds/001.aside")
    (copy / "rounds/001.aside").rename(copy / "elsewhere")
    tab = visit(serve(watch.build(Run(copy))))
    tab.get_by_text("1 of 2 rounds done").wait_for()
    (copy / "elsewhere").rename(copy / "rounds/001")
    tab.get_by_text("2 of 2 rounds done").wait_for()


def test_a_run_that_is_deleted_while_it_is_watched_is_a_sentence(copy: Path, serve: Serve, visit: Visit) -> None:
    tab = visit(serve(watch.build(Run(copy))))
    tab.get_by_text("2 of 2 rounds done").wait_for()
    shutil.rmtree(copy)
    tab.get_by_text("this is not a run directory").first.wait_for()


def test_a_choice_lands_on_the_disk_at_once_and_undo_takes_it_back(copy: Path, serve: Serve, visit: Visit) -> None:
    run = Run(copy)
    pairs = candidate_pairs(run, 1, per_prompt=1, seed=0)
    tab = visit(serve(label.build(run, pairs, rater="ada")))
    tab.get_by_text("0 of 4 answered").wait_for()
    tab.keyboard.press("ArrowLeft")
    tab.get_by_text("1 of 4 answered").wait_for()
    assert [choice.better for choice in Ballot(run, "ada").choices()] == [pairs[0].left]
    tab.click("#key-undo")
    tab.get_by_text("0 of 4 answered").wait_for()
    assert Ballot(run, "ada").choices() == []
    tab.click("#key-veto-right")
    tab.get_by_text("1 of 4 answered").wait_for()
    assert Ballot(run, "ada").vetoes() == {pairs[0].right}


def test_before_and_after_are_labelled_blind_to_the_end(copy: Path, serve: Serve, visit: Visit) -> None:
    run = Run(copy)
    pairs = evaluation_pairs(run, None, seed=0)[:3]
    tab = visit(serve(label.build(run, pairs, rater="ada")))
    for done, key in enumerate(("ArrowLeft", "ArrowDown", "ArrowRight")):
        tab.get_by_text(f"{done} of 3 answered").wait_for()
        shown = tab.locator("#asked").inner_html()
        assert "before" not in shown
        assert "after" not in shown
        tab.keyboard.press(key)
    tab.get_by_text("All 3 pairs are answered").wait_for()
    tab.get_by_text("After beats before in").wait_for()
    assert tally(run, ballots(run)).choices == 3


def test_nothing_but_what_a_page_hands_out_is_served(finished: Path, serve: Serve) -> None:
    address = serve(watch.build(Run(finished)))
    for path in (finished / "recipe.yaml", Path("/etc/passwd"), finished / "../run/run.json"):
        for route in ("gradio_api/file=", "file=", "file/", "gradio_api/file/"):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(f"{address.rstrip('/')}/{route}{path}")
            assert refused.value.code in (403, 404, 405)


def test_visitors_at_once_are_told_their_place_and_all_are_served(finished: Path, serve: Serve, visit: Visit) -> None:
    """Eight windows: each keeps a core busy with its bar, so that twenty test the machine and not the queue."""
    address = serve(compare.build(Bench([Run(finished)])))
    tabs = [visit(address) for _ in range(8)]
    for tab in tabs:
        tab.click("#draw")
    tabs[-1].get_by_text(re.compile(r"queue: \d+/\d+")).first.wait_for()
    for tab in tabs:
        tab.wait_for_selector(".seam")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_wide_screen_needs_no_sideways_scrolling(
    finished: Path, serve: Serve, visit: Visit, scheme: str
) -> None:
    tab = visit(serve(watch.build(Run(finished))), viewport={"width": 390, "height": 800}, color_scheme=scheme)
    tab.locator("#candidates .kept img").first.wait_for()
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_every_picture_and_field_has_words_for_a_screen_reader(finished: Path, serve: Serve, visit: Visit) -> None:
    tab = visit(serve(compare.build(Bench([Run(finished)]))))
    tab.click("#draw")
    tab.wait_for_selector(".seam")
    assert tab.locator("img:not([alt]), .seam img[alt='']").count() == 0
    assert tab.locator(".seam input:not([aria-label])").count() == 0
    assert tab.get_by_label("Prompts, one a line").count() == 1
