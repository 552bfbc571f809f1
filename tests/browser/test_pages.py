"""The pages in a real browser: what a person sees and presses."""

import json
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from raftdiff.apps import compare, desk, door, label, watch
from raftdiff.diffusion.before_after.sidebyside import SideBySide
from raftdiff.records.labels import Ballot, ballots, candidate_pairs, evaluation_pairs, tally
from raftdiff.records.run import Run

pytestmark = [
    pytest.mark.browser,
    pytest.mark.filterwarnings("ignore"),  # of Gradio's own making
]

Serve, Visit = Callable[[Any], str], Callable[..., Any]
FRAMES = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"


def type_into(tab: Any, field: str, text: str) -> None:
    """As a person types, who sees the field first: Gradio shows one a moment before it heeds it, and would put what it
    held in the place of what was typed."""
    tab.locator(field).evaluate(FRAMES)
    tab.locator(field).fill(text)


@pytest.fixture(scope="module")
def comparing(finished: Path, chromium: Any) -> Iterator[str]:
    """The address of one page of comparison for all who only draw: its models are loaded once. It is built beside the
    browser, whose event loop runs: where none does, Gradio leaves some open, and a later test is blamed."""
    served = door.serve(compare.build(SideBySide([Run(finished)])), door.Door(browser=False))
    yield str(served.address)
    served.close()


def test_compare_draws_pictures_that_differ_and_tells_the_scores_of_eval_json(
    finished: Path, comparing: str, visit: Visit
) -> None:
    tab = visit(comparing)
    tab.click("#draw")
    tab.locator(".means").wait_for()
    left, right = (tab.locator(".seam img").nth(place) for place in (0, 1))
    assert left.get_attribute("src") != right.get_attribute("src")
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


def test_all_scores_on_the_page_are_those_of_the_evaluation(finished: Path, comparing: str, visit: Visit) -> None:
    """Every held-out prompt at the evaluation's settings: the means on the page are eval.json's, to a rounding."""
    tab = visit(comparing)
    captions = list(json.loads((finished / "eval/pictures.json").read_text()).values())
    type_into(tab, "#prompts textarea", "\n".join(captions))
    tab.click("#draw")
    tab.locator(".means").wait_for()
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


def test_the_seam_moves_with_the_hand_and_with_the_keyboard(comparing: str, visit: Visit) -> None:
    tab = visit(comparing)
    tab.click("#draw")
    tab.locator(".means").wait_for()
    seam = tab.locator(".seam").first
    seam.scroll_into_view_if_needed()
    before = seam.locator(".over").evaluate("it => getComputedStyle(it).clipPath")
    box = seam.bounding_box()
    tab.mouse.click(box["x"] + 0.8 * box["width"], box["y"] + 0.5 * box["height"])
    dragged = seam.locator(".over").evaluate("it => getComputedStyle(it).clipPath")
    assert dragged != before
    seam.locator("input").focus()
    tab.keyboard.press("ArrowLeft")
    assert seam.locator(".over").evaluate("it => getComputedStyle(it).clipPath") != dragged


def test_both_sides_share_their_settings_until_the_lock_is_taken_off(comparing: str, visit: Visit) -> None:
    """The base on both sides: the same pictures, until the right side has another seed."""
    tab = visit(comparing)

    def sides() -> list[str]:
        return [tab.locator(".seam img").nth(place).get_attribute("src") for place in (0, 1)]

    tab.locator("#right input").click()
    tab.get_by_role("option", name="base").click()
    tab.click("#draw")
    tab.locator(".means").wait_for()
    left, right = sides()
    assert left == right
    tab.get_by_text("Seeds, steps, guidance, size").click()
    tab.locator("#lock input").uncheck()
    type_into(tab, "#right-seed input", "7")
    tab.click("#draw")
    tab.wait_for_function("before => document.querySelectorAll('.seam img')[1].src !== before", arg=right)
    assert sides()[0] == left


def test_what_users_type_is_never_html(comparing: str, visit: Visit) -> None:
    tab = visit(comparing)
    evil = '<img src=x onerror="document.title=1"> {{constructor}} ${alert(1)}'
    type_into(tab, "#prompts textarea", evil)
    tab.click("#draw")
    tab.locator(".means").wait_for()
    assert tab.locator(".card h3").inner_text() == evil
    assert tab.locator("img[src=x]").count() == 0
    assert tab.title() == "raftdiff compare"


def test_mistakes_are_sentences(copy: Path, serve: Serve, visit: Visit) -> None:
    tab = visit(serve(compare.build(SideBySide([Run(copy)]))))
    type_into(tab, "#prompts textarea", "   ")
    tab.click("#draw")
    tab.get_by_text("There is no prompt; type one").wait_for()
    type_into(tab, "#prompts textarea", "x" * 1001)
    tab.click("#draw")
    tab.get_by_text("This prompt has 1001 characters; 1000 are the most.").wait_for()
    shutil.rmtree(copy)
    type_into(tab, "#prompts textarea", "a cat")
    tab.click("#draw")
    tab.get_by_text("not a").first.wait_for()


def test_pictures_can_be_saved(comparing: str, visit: Visit, tmp_path: Path) -> None:
    import zipfile

    tab = visit(comparing)
    tab.click("#draw")
    tab.locator(".means").wait_for()
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
    strip = tab.locator("#strip img")
    strip.first.wait_for()
    said = [strip.nth(place).get_attribute("alt") for place in range(strip.count())]
    assert len(said) == 3
    assert "before any fine-tuning" in said[0]
    assert "-000" not in said[0], "a caption, not the name of a file"


def test_watch_says_how_many_prompts_there_are_and_leads_to_each(
    finished: Path, serve: Serve, visit: Visit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "SHELVES", 3)
    tab = visit(serve(watch.build(Run(finished))))
    tab.locator("#candidates h3").nth(2).wait_for()
    first = set(tab.locator("#candidates h3").all_inner_texts())
    tab.locator("#which input").click()
    tab.get_by_role("option", name="4 to 4 of 4").click()
    tab.wait_for_function("document.querySelectorAll('#candidates h3').length === 1")
    assert tab.locator("#candidates h3").inner_text() not in first


def test_a_picture_that_was_cut_short_is_a_word_in_its_place(copy: Path, serve: Serve, visit: Visit) -> None:
    for picture in (copy / "rounds/000/samples").glob("*.png"):
        picture.write_bytes(picture.read_bytes()[:90])
    tab = visit(serve(watch.build(Run(copy))))
    tab.locator("#candidates").get_by_text("this picture cannot be read").first.wait_for()
    run = Run(copy)
    other = visit(serve(label.build(run, candidate_pairs(run, 0, per_prompt=1, seed=0), rater="ada")))
    other.locator("#asked").get_by_text("cannot be read; was it cut short? Veto it to go on").first.wait_for()
    for picture in (copy / "rounds/000/samples").glob("*.png"):
        Image.new("RGB", (64, 64)).save(picture)
    other.reload()
    other.locator("#asked").get_by_text("is not what it was when its round was finished").first.wait_for()


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


def test_seven_windows_of_one_browser_are_told_their_place_and_all_are_served(
    finished: Path, serve: Serve, chromium: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They share the six connections that a browser opens to a host: none may keep one while it waits."""
    monkeypatch.setattr(desk, "PATIENCE", 3600.0)  # on a busy machine seven windows take longer to open
    beside = SideBySide([Run(finished)])
    address = serve(compare.build(beside))
    context = chromium.new_context()
    context.set_default_timeout(120_000)
    with beside._one_at_a_time:  # nobody is served yet
        tabs = [context.new_page() for _ in range(7)]
        for tab in tabs:
            tab.goto(address)
            tab.click("#draw")
        for ahead, tab in enumerate(tabs[2:], 1):
            tab.get_by_text(f"{ahead + 1} drawing" + "s are before yours").wait_for()
    for tab in tabs:
        tab.locator(".means").wait_for()
    context.close()


def test_a_drawing_can_be_cancelled_and_ends_when_its_window_closes(finished: Path, serve: Serve, visit: Visit) -> None:
    beside = SideBySide([Run(finished)])
    address = serve(compare.build(beside))
    with beside._one_at_a_time:
        first, second, third = visit(address), visit(address), visit(address)
        for tab in (first, second, third):
            tab.click("#draw")
            tab.locator("#standing .view").wait_for()
        third.get_by_text("2 drawings are before yours").wait_for()
        first.locator("#cancel").evaluate(FRAMES)  # shown a moment before it is heeded, as in type_into
        first.click("#cancel")
        first.get_by_text("Cancelled.").wait_for()
        third.get_by_text("1 drawing is before yours").wait_for()
        second.close(run_before_unload=True)
        third.get_by_text("Yours is next").or_(third.get_by_text("Loading the models")).first.wait_for()
    third.locator(".means").wait_for()
    first.locator("#draw").click()
    first.locator(".means").wait_for()


def test_a_size_that_would_block_the_page_is_refused(comparing: str, visit: Visit) -> None:
    tab = visit(comparing)
    tab.get_by_text("Seeds, steps, guidance, size").click()
    type_into(tab, "#width input", "100000")
    tab.click("#draw")
    tab.get_by_text("A picture of 100000 pixels a side is too large").wait_for()
    assert tab.locator("#draw").is_enabled()
    type_into(tab, "#width input", "")
    tab.click("#draw")
    tab.get_by_text("Width is empty; give it a number.").first.wait_for()


def test_compare_opens_with_the_evaluations_pictures_and_shows_them_whole(comparing: str, visit: Visit) -> None:
    tab = visit(comparing)
    tab.get_by_text("From the run's evaluation: 5 of its 10 pairs").wait_for()
    seam = tab.locator(".seam").first
    left, right = (seam.locator("img").nth(place) for place in (0, 1))
    assert left.bounding_box() == right.bounding_box()
    tab.get_by_text("Both pictures whole").click()
    tab.wait_for_function("getComputedStyle(document.querySelector('.seam .over')).clipPath === 'none'")
    one, two = left.bounding_box(), right.bounding_box()
    assert one["x"] + one["width"] <= two["x"]


def test_unlocking_the_right_side_keeps_the_seed(comparing: str, visit: Visit) -> None:
    tab = visit(comparing)
    tab.get_by_text("Seeds, steps, guidance, size").click()
    type_into(tab, "#seed input", "7")
    tab.keyboard.press("Tab")
    tab.locator("#lock input").uncheck()
    tab.wait_for_function("document.querySelector('#right-seed input')?.value === '7'")


def test_no_window_keeps_a_connection_open(copy: Path, serve: Serve, chromium: Any) -> None:
    """Seven windows that stay open leave the eighth a connection, of which a browser has six to a host."""
    address = serve(watch.build(Run(copy)))
    context = chromium.new_context()
    context.set_default_timeout(120_000)
    for _ in range(8):
        tab = context.new_page()
        tab.goto(address)
        tab.get_by_text("2 of 2 rounds done").wait_for()
    context.close()


def test_the_page_is_not_shown_under_a_name_that_another_site_lets_lead_here(
    finished: Path, serve: Serve, visit: Visit
) -> None:
    address = serve(watch.build(Run(finished)))
    tab = visit("about:blank")
    named = address.replace("127.0.0.1", "evil.localhost.example")
    answer = tab.request.get(address, headers={"Host": named.split("/")[2]})
    assert answer.status == 403
    assert "This page is for its own machine" in answer.text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_wide_screen_needs_no_sideways_scrolling(
    finished: Path, serve: Serve, visit: Visit, scheme: str
) -> None:
    tab = visit(serve(watch.build(Run(finished))), viewport={"width": 390, "height": 800}, color_scheme=scheme)
    tab.locator("#candidates .kept img").first.wait_for()
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_every_picture_and_field_has_words_for_a_screen_reader(comparing: str, visit: Visit) -> None:
    tab = visit(comparing)
    tab.click("#draw")
    tab.locator(".means").wait_for()
    assert tab.locator("img:not([alt]), .seam img[alt='']").count() == 0
    assert tab.locator(".seam input:not([aria-label])").count() == 0
    assert tab.get_by_label("Prompts, one a line").count() == 1
