"""What people chose between answers: named, shown and written down like pictures, and read back as pairs of texts."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raftdiff.apps import label
from raftdiff.errors import UserError
from raftdiff.llm.data.prompts import DataConfig, read_prompts
from raftdiff.recipes.config import Config
from raftdiff.records.entries import found, of_evaluation, of_round
from raftdiff.records.labels import Ballot, Pair, ballots, candidate_pairs, evaluation_pairs, points, preferences, tally
from raftdiff.records.media import prompt_of
from raftdiff.records.run import Run
from raftdiff.rewards.labels import LabelsConfig
from raftdiff.types import Item, Key, Prompt, Sample, Scores, Selection

EVIL = "<img src=x onerror=\"document.title='gone'\"> {{constructor}} ${alert(1)}\n</div><script>alert(2)</script>"
ANSWERS = {
    "cat-1.5": ["It purrs.", "It purrs. ", "two\n\nlines\u2028and a third", EVIL],
    "dog": ["", "שלום, אני כלב", "It barks at everything.", "woof " * 2000],
    "owl": ["Hoot.", "Hoot.", "Hoot.", "Hoot."],
}
HISTORY = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hello. What is it?"}]
META: dict[str, dict[str, Any]] = {"dog": {"system": "Be <b>kind</b>.", "history": HISTORY, "answers": []}}


class Toy(Config):
    name: str = "toy"


def named(prompt: str, index: int) -> str:
    return f"rounds/000/samples/{prompt}-{index:03d}"


def pair(prompt: str, one: int, two: int) -> Pair:
    return Pair(f"What of a {prompt}?", named(prompt, one), named(prompt, two))


def candidate(prompt: str, index: int) -> Sample[str]:
    text = f"What of a {prompt}?"
    asked = Prompt(prompt, text, f"{text} Be brief.", text, meta=META.get(prompt, {}))
    return Sample(0, asked, index, 100 * list(ANSWERS).index(prompt) + index, "policy", ANSWERS[prompt][index])


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """One finished round in which candidate k of every prompt has the total k, and an evaluation of two prompts."""
    run = Run.create(tmp_path / "run", Toy(), seed=0)
    draft = run.draft(0)
    for prompt, answers in ANSWERS.items():
        for index in range(len(answers)):
            draft.add(candidate(prompt, index))
    draft.flush()
    total = np.tile(np.arange(4.0), (3, 1))
    draft.write_scores(Scores(0, tuple(ANSWERS), total, {"length": total}))
    draft.write_selection(Selection("weighted", (Item((Key(0, "dog", 3),)),)))
    draft.commit({})
    write_evaluation(run, [("cat-1.5", {}), ("dog", {"history": HISTORY})])
    return run


def write_evaluation(run: Run, asked: list[tuple[str, dict[str, Any]]]) -> None:
    rows = [
        {"prompt": f"What of a {prompt}?", **context, "prompt_id": prompt, "index": index}
        | {"before": f"{prompt} {index} of old", "after": f"{prompt} {index} of new"}
        for prompt, context in asked
        for index in range(2)
    ]
    (run.path / "eval").mkdir(exist_ok=True)
    (run.path / "eval" / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_an_answer_is_named_like_a_picture_and_found_by_its_name(run: Run) -> None:
    names = [entry.name for entry in of_round(run.round(0))]
    assert names[:5] == [named("cat-1.5", index) for index in range(4)] + [named("dog", 0)]
    assert prompt_of(names[0]) == "cat-1.5"
    name = "eval/after/dog-001"
    held = found(run, {named("dog", 1), name, "rounds/000/samples/nobody-000", "../../etc/passwd-000"})
    assert {entry.name: entry.media for entry in held.values()} == {
        named("dog", 1): ANSWERS["dog"][1],
        name: "dog 1 of new",
    }
    assert held[named("dog", 1)].total == 1
    assert held[name].prompt.meta == {"history": HISTORY}


def test_answers_in_the_same_words_are_no_pair(run: Run) -> None:
    """Of "cat-1.5" the first two differ in a space, all of "owl" are alike: 5 and 6 and 0 pairs are left."""
    pairs = candidate_pairs(run, 0, per_prompt=9, seed=0)
    captions = [one.caption for one in pairs]
    assert {caption: captions.count(caption) for caption in captions} == {
        "What of a cat-1.5?": 5,
        "What of a dog?": 6,
    }
    assert all(len({prompt_of(name) for name in one.names}) == 1 for one in pairs)


def test_before_and_after_come_with_shuffled_sides(run: Run) -> None:
    sides = [one.left.split("/")[1] for seed in range(200) for one in evaluation_pairs(run, None, seed=seed)]
    assert len(sides) == 800
    assert 0.45 < sides.count("after") / len(sides) < 0.55


def test_an_evaluation_that_does_not_name_its_prompts_is_a_sentence(run: Run) -> None:
    (run.path / "eval" / "answers.jsonl").write_text('{"prompt": "a", "before": "b", "after": "c"}\n')
    with pytest.raises(UserError, match="do not name their prompts.*run again: raftdiff eval"):
        of_evaluation(run, "eval")
    with pytest.raises(UserError, match="no evaluation is here; run: raftdiff eval"):
        of_evaluation(run, "eval/other")


def test_preferences_are_pairs_of_texts_with_the_turns_before_them(run: Run) -> None:
    ada = Ballot(run, "ada")
    ada.choose(pair("dog", 1, 2), "right")
    ada.choose(pair("cat-1.5", 0, 3), "left")
    ada.choose(pair("cat-1.5", 0, 2), "tie")
    ada.choose(Pair("What of a dog?", "eval/before/dog-000", "eval/after/dog-000"), "left")
    assert preferences(run) == [
        {
            "rater": "ada",
            "prompt": "What of a dog?",
            "system": "Be <b>kind</b>.",
            "history": HISTORY,
            "chosen": "It barks at everything.",
            "rejected": "שלום, אני כלב",
        },
        {"rater": "ada", "prompt": "What of a cat-1.5?", "chosen": "It purrs.", "rejected": EVIL},
        {
            "rater": "ada",
            "prompt": "What of a dog?",
            "history": HISTORY,
            "chosen": "dog 0 of old",
            "rejected": "dog 0 of new",
        },
    ]


def test_the_data_format_pairs_reads_every_preference_back(run: Run, tmp_path: Path) -> None:
    """An empty answer and two in the same words have no place in it, and are left out; so is what is gone."""
    ada = Ballot(run, "ada")
    for one, two in ((0, 1), (0, 3), (2, 3)):
        ada.choose(pair("cat-1.5", one, two), "left")
    ada.choose(pair("dog", 0, 1), "right")
    ada.choose(pair("dog", 2, 1), "left")
    ada.choose(pair("dog", 7, 1), "left")
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in preferences(run)))
    prompts = read_prompts(DataConfig(file=str(file)), tmp_path, "prompts")
    read = [(one.caption, [answer["text"] for answer in one.meta["answers"]]) for one in prompts]
    cats, dogs = ANSWERS["cat-1.5"], ANSWERS["dog"]
    assert read == [
        ("What of a cat-1.5?", [cats[0], cats[3]]),
        ("What of a cat-1.5?", [cats[2], cats[3]]),
        ("What of a dog?", [dogs[2], dogs[1]]),
    ]
    assert [answer["score"] for answer in prompts[0].meta["answers"]] == [1.0, 0.0]
    assert (prompts[2].meta["system"], prompts[2].meta["history"]) == (META["dog"]["system"], HISTORY)


def test_points_agreement_and_wins_are_counted_as_for_pictures(run: Run) -> None:
    """Totals rise with the index: the first choice agrees with them, the second does not."""
    ada = Ballot(run, "ada")
    ada.choose(pair("dog", 1, 3), "right")
    ada.choose(pair("cat-1.5", 2, 3), "left")
    ada.choose(Pair("", "eval/before/dog-000", "eval/after/dog-000"), "right")
    ada.choose(Pair("", "eval/after/cat-1.5-001", "eval/before/cat-1.5-001"), "tie")
    ada.veto(named("dog", 0))
    scores, vetoes = points(run)
    assert (scores[named("dog", 3)], scores[named("dog", 1)], vetoes) == (1.0, -1.0, {named("dog", 0)})
    said = tally(run, ballots(run))
    assert said.agreement is not None
    assert said.after_wins is not None
    assert (said.agreement.mean, said.agreement.n) == (0.5, 2)
    assert said.after_wins.mean == 0.75
    assert said.lines[0] == "4 choices, of them 1 tie; 1 vetoed."


def test_as_a_reward_people_rank_answers_and_a_veto_discards(run: Run) -> None:
    Ballot(run, "ada").choose(pair("dog", 2, 1), "left")
    Ballot(run, "ada").veto(named("dog", 3))
    reward = LabelsConfig(run=str(run.path)).build()
    scores = reward.score([candidate("dog", index) for index in (2, 1, 0, 3)]).tolist()
    assert scores[:3] == [1.0, -1.0, 0.0]
    assert math.isnan(scores[3])


def test_the_page_shows_conversation_and_answers_as_text(run: Run) -> None:
    pairs = [Pair("What of a dog?", named("dog", 0), named("dog", 1))]
    shown = label.question(run, pairs, Ballot(run, "ada"))
    for words in ("system", "Be &lt;b&gt;kind&lt;/b&gt;.", "Hello. What is it?", "What of a dog?", "an empty answer"):
        assert words in shown
    assert "0 of 1 answered" in shown
    evil = label.question(run, [pair("cat-1.5", 3, 0)], Ballot(run, "ada"))
    assert "<img" not in evil
    assert "<script" not in evil
    assert not set("{}$") & set(evil)
    assert ">user<" not in evil, "a prompt without turns before it needs no names"


def test_nothing_on_the_page_tells_the_sides_apart(run: Run) -> None:
    """With both answers in the same words, the page is the same whichever side before stands on."""
    both = ("eval/before/dog-000", "eval/after/dog-000")
    alike = (run.path / "eval/answers.jsonl").read_text().replace("of old", "").replace("of new", "")
    (run.path / "eval/answers.jsonl").write_text(alike)
    one, other = (
        label.question(run, [Pair("", *names)], Ballot(run, "ada")) for names in (both, tuple(reversed(both)))
    )
    assert one == other
    assert not re.search("before|after", one)


def test_a_pair_that_is_gone_is_a_sentence(run: Run) -> None:
    pairs = evaluation_pairs(run, None, seed=0)
    write_evaluation(run, [])
    with pytest.raises(UserError, match="is gone: was the evaluation made again"):
        label.question(run, pairs, Ballot(run, "ada"))
