"""The pages of a run on texts in a real browser: long answers, other scripts, markup, nothing at all."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raftdiff.apps import label, watch
from raftdiff.recipes.config import Config
from raftdiff.records.labels import Ballot, ballots, candidate_pairs, evaluation_pairs, tally
from raftdiff.records.run import Run
from raftdiff.types import Item, Key, Prompt, Sample, Scores, Selection

pytestmark = [
    pytest.mark.browser,
    pytest.mark.filterwarnings("ignore"),  # of Gradio's own making
]

Serve, Visit = Callable[[Any], str], Callable[..., Any]
EVIL = '<img src=x onerror="document.title=1"> {{constructor}} ${alert(1)}'
LONG = "\n\n".join(f"{number}. The film is long, and so is this answer about it. " * 6 for number in range(40))
HEBREW = "שלום! הסרט היה טוב מאוד."
ASKED: Mapping[str, tuple[str, list[str]]] = {
    "long": ("Tell me all about the film.", [LONG, "It is long.\n\n- It has pirates.\n- They sail home."]),
    "script": ("מה דעתך על הסרט?", [HEBREW, "I cannot read that."]),
    "markup": ("Write a picture's tag.", [EVIL, "<b>bold</b>"]),
    "empty": ("Say nothing.", ["", "Nothing."]),
}
HISTORY = [
    {"role": "user", "content": "Can you keep a secret?"},
    {"role": "assistant", "content": "I can.\nI think."},
]
META: Mapping[str, Any] = {"empty": {"system": "You are quiet.", "history": HISTORY}}


class Loop(Config):
    rounds: int = 1
    candidates: int = 2
    prompts_per_round: int | None = None


class Toy(Config):
    media: str = "text"
    name: str = "toy"
    loop: Loop = Loop()
    prompts: Mapping[str, Any] = {"captions": []}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """One finished round with awkward answers, the longer of which were selected, and an evaluation."""
    run = Run.create(tmp_path / "run", Toy(), seed=0)
    draft = run.draft(0)
    samples = [
        Sample(0, Prompt(name, text, text, text, meta=META.get(name, {})), index, index, "policy", answer)
        for name, (text, answers) in ASKED.items()
        for index, answer in enumerate(answers)
    ]
    for sample in samples:
        draft.add(sample)
    draft.flush()
    total = np.array([[float(len(answer)) for answer in answers] for _, answers in ASKED.values()])
    draft.write_scores(Scores(0, tuple(ASKED), total, {"length": total}))
    best = [Key(0, name, int(row.argmax())) for name, row in zip(ASKED, total, strict=True)]
    draft.write_selection(Selection("weighted", tuple(Item((key,)) for key in best)))
    for name, side in (("held_out_base", 0), ("held_out", 1)):
        draft.keep(name, [sample for sample in samples if sample.index == side])
    diversity = {"distinct_2": 0.625}
    draft.note(mean=1.0, first_sample_mean=1.0, selected_mean=2.0, diversity_all=diversity, candidates=8)
    draft.commit({})
    (run.path / "eval").mkdir()
    rows = [
        {"prompt": text, "prompt_id": name, "index": 0, "before": answers[0], "after": answers[1]}
        for name, (text, answers) in ASKED.items()
    ]
    (run.path / "eval" / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


def answers(tab: Any) -> list[str]:
    return [tab.locator(".texts .scrolled").nth(place).inner_text() for place in (0, 1)]


def test_answers_stand_side_by_side_word_for_word(run: Run, serve: Serve, visit: Visit) -> None:
    pairs = candidate_pairs(run, 0, per_prompt=1, seed=0)
    tab = visit(serve(label.build(run, pairs, rater="ada")))
    for done, (name, (text, held)) in enumerate(ASKED.items()):
        tab.get_by_text(f"{done} of 4 answered").wait_for()
        assert sorted(answers(tab)) == sorted(answer or "an empty answer" for answer in held)
        assert text in tab.locator(".prompt").inner_text()
        left, right = (tab.locator(".texts figure").nth(place).bounding_box() for place in (0, 1))
        assert left["width"] == right["width"] > 400
        assert left["y"] == right["y"]
        assert tab.locator("#key-tie").is_visible()
        assert tab.evaluate("document.documentElement.scrollHeight <= 1.35 * innerHeight"), f"{name}: out of reach"
        tab.keyboard.press("ArrowLeft")
    tab.get_by_text("All 4 pairs are answered").wait_for()
    assert [choice.better for choice in Ballot(run, "ada").choices()] == [pair.left for pair in pairs]


def test_markup_in_an_answer_is_text(run: Run, serve: Serve, visit: Visit) -> None:
    pairs = [pair for pair in candidate_pairs(run, 0, per_prompt=1, seed=0) if "markup" in pair.left]
    tab = visit(serve(label.build(run, pairs, rater="ada")))
    tab.get_by_text("0 of 1 answered").wait_for()
    assert EVIL in answers(tab)
    assert tab.locator("img[src=x], .words b").count() == 0
    assert tab.title() == "raftdiff label"


def test_another_script_runs_its_own_way(run: Run, serve: Serve, visit: Visit) -> None:
    pairs = [pair for pair in candidate_pairs(run, 0, per_prompt=1, seed=0) if "script" in pair.left]
    tab = visit(serve(label.build(run, pairs, rater="ada")))
    tab.get_by_text("0 of 1 answered").wait_for()
    ways = {
        tab.locator(".texts .words").nth(place).inner_text(): tab.locator(".texts .words")
        .nth(place)
        .evaluate("it => getComputedStyle(it).direction")
        for place in (0, 1)
    }
    assert ways == {HEBREW: "rtl", "I cannot read that.": "ltr"}


def test_turns_before_the_prompt_are_shown_with_who_speaks(run: Run, serve: Serve, visit: Visit) -> None:
    pairs = [pair for pair in candidate_pairs(run, 0, per_prompt=1, seed=0) if "empty" in pair.left]
    tab = visit(serve(label.build(run, pairs, rater="ada")))
    tab.get_by_text("0 of 1 answered").wait_for()
    assert tab.locator(".prompt").inner_text().split("\n") == [
        *("system", "You are quiet.", "user", "Can you keep a secret?"),
        *("assistant", "I can.", "I think.", "user", "Say nothing."),
    ]


def test_the_down_key_in_a_long_answer_scrolls_it_and_elsewhere_says_a_tie(
    run: Run, serve: Serve, visit: Visit
) -> None:
    pairs = [pair for pair in candidate_pairs(run, 0, per_prompt=1, seed=0) if "long" in pair.left]
    tab = visit(serve(label.build(run, pairs, rater="ada")))
    tab.get_by_text("0 of 1 answered").wait_for()
    place = [len(text) > 1000 for text in answers(tab)].index(True)
    tab.locator(".texts .scrolled").nth(place).click()
    tab.keyboard.press("ArrowDown")
    tab.wait_for_function("place => document.querySelectorAll('.texts .scrolled')[place].scrollTop > 0", arg=place)
    assert Ballot(run, "ada").choices() == []
    tab.locator(".texts .scrolled").nth(1 - place).click()
    tab.keyboard.press("ArrowDown")
    tab.get_by_text("All 1 pairs are answered").wait_for()
    assert [choice.chosen for choice in Ballot(run, "ada").choices()] == ["tie"]


def test_before_and_after_are_labelled_blind_vetoed_and_taken_back(run: Run, serve: Serve, visit: Visit) -> None:
    pairs = evaluation_pairs(run, None, seed=0)[:2]
    tab = visit(serve(label.build(run, pairs, rater="ada")))
    tab.get_by_text("0 of 2 answered").wait_for()
    shown = tab.locator("#asked").inner_html()
    assert "before" not in shown
    assert "after" not in shown
    tab.keyboard.press("2")
    tab.get_by_text("1 of 2 answered").wait_for()
    assert Ballot(run, "ada").vetoes() == {pairs[0].right}
    tab.keyboard.press("u")
    tab.get_by_text("0 of 2 answered").wait_for()
    tab.keyboard.press("ArrowRight")
    tab.get_by_text("1 of 2 answered").wait_for()
    tab.keyboard.press("ArrowDown")
    tab.get_by_text("After beats before in").wait_for()
    assert tally(run, ballots(run)).choices == 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_the_answers_stand_one_above_the_other(run: Run, serve: Serve, visit: Visit, scheme: str) -> None:
    pairs = candidate_pairs(run, 0, per_prompt=1, seed=0)
    tab = visit(
        serve(label.build(run, pairs, rater="ada")), viewport={"width": 390, "height": 800}, color_scheme=scheme
    )
    tab.get_by_text("0 of 4 answered").wait_for()
    left, right = (tab.locator(".texts figure").nth(place).bounding_box() for place in (0, 1))
    assert left["y"] + left["height"] <= right["y"]
    choices = [tab.locator(f"#key-{side}").bounding_box() for side in ("left", "tie", "right")]
    assert choices[0]["y"] == choices[1]["y"] == choices[2]["y"]
    assert min(it["height"] for it in choices) >= 40, "wide enough for a thumb"
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_watch_shows_answers_selected_and_rejected_and_one_through_the_rounds(
    run: Run, serve: Serve, visit: Visit
) -> None:
    tab = visit(serve(watch.build(run)))
    tab.get_by_text("1 of 1 rounds done").wait_for()
    assert tab.locator("#state").get_by_text("0.62").count() == 1, "distinct-2 is the diversity of texts"
    kept = tab.locator("#candidates .kept")
    kept.first.wait_for()
    longest = [max(held, key=len) for _, held in ASKED.values()]
    assert [kept.nth(place).locator(".words").inner_text() for place in range(4)] == longest
    assert "selected: length" in kept.first.get_attribute("aria-label")
    assert tab.locator("#candidates figure").count() == 8
    strip = tab.locator("#strip figure")
    strip.nth(1).wait_for()
    assert "1. The film is long" in strip.nth(0).inner_text()
    assert "They sail home" in strip.nth(1).inner_text()
    assert strip.nth(0).get_attribute("aria-label") == "Tell me all about the film., before any fine-tuning"
    assert tab.locator("img[src=x]").count() == 0


def test_a_run_on_texts_that_is_deleted_while_it_is_labelled_is_a_sentence(
    run: Run, serve: Serve, visit: Visit
) -> None:
    pairs = evaluation_pairs(run, None, seed=0)
    tab = visit(serve(label.build(run, pairs, rater="ada")))
    tab.get_by_text("0 of 4 answered").wait_for()
    mistake = tab.locator("#mistake")
    assert mistake.bounding_box() is None, "where there is none it takes no room"
    shutil.rmtree(run.path / "eval")
    tab.keyboard.press("ArrowLeft")
    tab.get_by_text("was the evaluation made again").first.wait_for()
    assert mistake.bounding_box()["height"] > 20
