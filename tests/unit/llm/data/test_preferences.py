"""Preference pairs: from data of every format that has them, from a run's rounds, from what people chose."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from raftdiff.errors import UserError
from raftdiff.llm.data.preferences import PairsConfig, _digest, answered, build, from_rounds, row, sealed
from raftdiff.llm.data.prompts import DataConfig
from raftdiff.recipes.config import Config, check
from raftdiff.records.labels import Ballot, candidate_pairs
from raftdiff.records.run import Run
from raftdiff.types import Item, Key, Prompt, Sample, Scores, Selection


class TextRun(Config):
    media: str = "text"


def rows(*held, **options):
    return build(PairsConfig(data=DataConfig(captions=[*held], **options)), Path(), "pairs")


def pair(**more):
    return {"prompt": "Hello?", "chosen": "Hi!", "rejected": "Go away.", **more}


@pytest.fixture
def run(tmp_path):
    """A run of two rounds on texts. Round 0: three prompts, of which one has a tie and one a single valid answer."""
    found = Run.create(tmp_path / "run", TextRun(), seed=0)
    totals = ([[0.5, 2.0, -1.0], [1.0, 1.0, 1.0], [np.nan, np.nan, 3.0]], [[4.0, np.nan, 5.0]] * 3)
    history = {"history": [{"role": "user", "content": "before"}], "score": 1}
    for t, table in enumerate(totals):
        draft, prompts = found.draft(t), ("ant", "bee", "cat")
        for name in prompts:
            asked = Prompt(name, f"a {name}", "magic", "learnt", meta=history if name == "ant" else {})
            for k in range(3):
                draft.add(Sample(t, asked, k, 100 * t + k, "policy", f"{name} {t}{k}"))
        draft.flush()
        draft.note(candidates=9)
        held = np.array(table)
        draft.write_scores(Scores(t, prompts, held, {"r": held}))
        draft.write_selection(Selection("weighted", (Item((Key(t, "ant", 0),)),)))
        draft.commit({})
    return found


def unsealed(run):
    """The run as older versions left theirs, without checksums, so that a round can be written over."""
    facts = json.loads((run.path / "run.json").read_text())
    del facts["rounds"]
    (run.path / "run.json").write_text(json.dumps(facts))
    for sums in run.path.glob("rounds/*/SHA256SUMS"):
        sums.unlink()


# From data


def test_a_pair_keeps_prompt_turns_and_other_columns():
    (found,) = rows(pair(id="x", truth=1, system="Be kind.", mu=0.25, sigma="0.5"))
    assert (found.id, found.prompt.caption, found.chosen, found.rejected) == ("x", "Hello?", "Hi!", "Go away.")
    assert (found.mu, found.sigma, dict(found.meta)) == (0.25, 0.5, {"truth": 1})
    assert found.prompt.meta == {"system": "Be kind."}


def test_hh_transcripts_with_the_published_strength():
    talk = "\n\nHuman: One?\n\nAssistant: Two.\n\nHuman: Three?\n\nAssistant: "
    columns = {"mean preference difference": -0.133109, "std preference difference": 0.755961}
    (found,) = rows({"chosen": f"{talk}Four.", "rejected": f"{talk}Five.", **columns})
    assert (found.prompt.caption, found.chosen, found.rejected) == ("Three?", "Four.", "Five.")
    assert (found.mu, found.sigma, found.meta) == (-0.133109, 0.755961, {})
    assert [turn["content"] for turn in found.prompt.meta["history"]] == ["One?", "Two."]


def test_the_label_counts_also_where_scores_say_otherwise():
    with pytest.warns(UserWarning, match="in 1 of 1 rows the rejected answer is rated as high"):
        (found,) = rows(pair(score_chosen=1.0, score_rejected=1.0), format="pairs")
    assert found.chosen == "Hi!"


def test_answers_labelled_one_by_one_are_paired_by_their_prompt():
    said = [("a", "yes", True), ("a", "no", False), ("a", "fine", True), ("b", "alone", 1), ("a", "never", 0)]
    held = [{"prompt": asked, "completion": text, "label": label} for asked, text, label in said]
    with pytest.warns(UserWarning, match="1 of 5 labelled answers were left out: a pair is a good and a bad answer"):
        found = rows(*held)
    assert [(one.prompt.caption, one.chosen, one.rejected) for one in found] == [
        ("a", "yes", "no"),
        ("a", "fine", "never"),
    ]
    assert len({one.id for one in found}) == 2
    with (
        pytest.warns(UserWarning, match="2 of 2 labelled answers"),
        pytest.raises(UserError, match="not one pair of answers"),
    ):
        rows(held[0], held[3])


def test_of_several_scored_answers_the_best_and_the_worst_are_taken():
    (found,) = rows({"prompt": "x", "answers": ["a", "b", "c", "d"], "scores": [2, 5, 1, None]})
    assert (found.chosen, found.rejected) == ("b", "c")
    (listed,) = rows({"prompt": "x", "answers": ["best", "middle", "worst"]})
    assert (listed.chosen, listed.rejected) == ("best", "worst")


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ({"prompt": "y", "answers": ["a", "b"], "scores": [1, 1]}, "its answers are rated alike, so none is better"),
        ({"prompt": "y", "answers": ["a", "b"], "scores": [1, None]}, "1 of its answers are rated"),
        ({"prompt": "y", "answers": ["a", "a "], "scores": [1, 2]}, "its best and its worst answer are the same"),
        ({"prompt": "y", "answers": ["a", "b"], "scores": [1, 2], "mu": "strong"}, "the score 'strong' is no number"),
    ],
)
def test_rows_that_say_nothing_stop_or_are_left_out(broken, reason):
    good = {"prompt": "x", "answers": ["a", "b"], "scores": [1, 2]}
    with pytest.raises(UserError, match=rf"pairs\.data: the prompt 'y': {reason}.*pairs\.data\.broken to skip"):
        rows(good, broken)
    with pytest.warns(UserWarning, match=rf"1 prompts were left out, the first 'y': {reason}"):
        assert [one.id for one in rows(good, broken, broken="skip")] == ["x"]


def test_chosen_and_rejected_in_the_same_words_are_refused():
    with pytest.raises(UserError, match="the chosen and the rejected answer are the same"):
        rows(pair(rejected=" Hi! "))


def test_data_without_any_comparison_is_a_sentence():
    with (
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(UserError, match=r"pairs\.data: there is not one pair of answers of which one is better"),
    ):
        rows({"prompt": "y", "answers": ["a", "b"], "scores": [1, 1]}, broken="skip")


def test_no_more_than_the_limit():
    captions = [pair(prompt=f"{k}?") for k in range(5)]
    found = build(PairsConfig(data=DataConfig(captions=captions), limit=2), Path(), "pairs")
    assert [one.prompt.caption for one in found] == ["0?", "1?"]


def test_a_row_is_read_again_as_it_was(run):
    held = [*rows(pair(truth=1, mu=0.25, history=[{"role": "user", "content": "then"}])), *from_rounds(run)]
    for one, again in zip(held, rows(*map(row, held)), strict=True):
        assert (again.id, again.chosen, again.rejected, again.mu) == (one.id, one.chosen, one.rejected, one.mu)
        assert (again.prompt.caption, again.prompt.meta) == (one.prompt.caption, one.prompt.meta)
        assert again.meta == one.meta


# From a run's rounds


def test_the_best_against_the_worst_valid_answer_of_each_prompt(run):
    found = from_rounds(run)
    assert [(one.id, one.chosen, one.rejected) for one in found] == [
        ("000-ant", "ant 01", "ant 02"),  # the tie and the single valid answer are passed over
        ("001-ant", "ant 12", "ant 10"),
        ("001-bee", "bee 12", "bee 10"),
        ("001-cat", "cat 12", "cat 10"),
    ]
    assert found[0].prompt.caption == "a ant"
    assert found[0].prompt.meta == {"history": [{"role": "user", "content": "before"}]}
    assert found[0].meta == {"round": 0, "total_chosen": 2.0, "total_rejected": -1.0}
    assert found[0].mu is None


def test_several_pairs_of_a_prompt_use_each_answer_once_and_leave_out_ties(tmp_path):
    made = Run.create(tmp_path / "run", TextRun(), seed=0)
    table = np.array([[0.0, 3.0, 1.0, 3.0, 2.0, np.nan], [1.0, 1.0, 1.0, 0.0, 1.0, 1.0]])
    draft, prompts = made.draft(0), ("ant", "bee")
    for name in prompts:
        for k in range(table.shape[1]):
            draft.add(Sample(0, Prompt(name, name, name, name), k, k, "policy", f"{name} {k}"))
    draft.flush()
    with pytest.raises(UserError, match="this round has no scores yet; run 'raftdiff score' first"):
        from_rounds(made)
    draft.write_scores(Scores(0, prompts, table, {"r": table}))
    found = from_rounds(made, per_prompt=9)  # of the round that is being made, since none is finished
    assert [(one.id, one.chosen, one.rejected) for one in found] == [
        ("000-ant", "ant 1", "ant 0"),
        ("000-ant-1", "ant 3", "ant 2"),
        ("000-bee", "bee 0", "bee 3"),
    ]
    assert found[:1] == from_rounds(made)[:1]
    every = from_rounds(made, per_prompt="all")
    assert [(one.chosen[-1], one.rejected[-1]) for one in every if one.prompt.id == "ant"] == [
        *(("1", "0"), ("1", "2"), ("3", "0"), ("1", "4"), ("3", "2"), ("4", "0")),
        *(("3", "4"), ("4", "2"), ("2", "0")),  # all ten pairs of five answers but the two that are alike
    ]
    assert [(one.chosen[-1], one.rejected[-1]) for one in every if one.prompt.id == "bee"] == [
        (place, "3") for place in "01245"
    ]
    assert len({one.id for one in every}) == len(every)
    with pytest.raises(UserError, match="per_prompt is for the answers of a run"):
        check(PairsConfig, {"data": {"file": "x"}, "per_prompt": 2}, "pairs")
    with pytest.raises(UserError, match="per_prompt"):
        check(PairsConfig, {"run": "x", "per_prompt": "every"}, "pairs")


def test_rounds_are_chosen_and_missing_ones_are_sentences(run, tmp_path):
    assert [one.id for one in build(PairsConfig(run="run", rounds=[1], limit=1), tmp_path, "pairs")] == ["001-ant"]
    with pytest.raises(UserError, match="there is no finished round 7"):
        build(PairsConfig(run=str(run.path), rounds=[7]), tmp_path, "pairs")
    twice = PairsConfig(run=str(run.path), rounds=[0, 1, 1])
    with pytest.raises(UserError, match=r"^pairs.rounds: round 1 is named twice, and its pairs count once"):
        sealed(twice, tmp_path, "pairs")
    assert build(twice, tmp_path, "pairs"), "a run that an earlier version began goes on"


def test_the_round_of_a_run_that_was_only_scored_is_named_as_any_other(run):
    whole = from_rounds(run, [0])
    shutil.rmtree(run.path / "rounds/001")
    (run.path / "rounds/000").rename(run.path / "rounds/000.partial")
    assert whole
    assert from_rounds(run, [0]) == from_rounds(run) == whole
    with pytest.raises(UserError, match="drawn and scored alone, its round 0; there is no round 1"):
        from_rounds(run, [0, 1])


def test_answers_in_the_same_words_are_no_pair(run):
    unsealed(run)
    lines = [json.loads(line) for line in (run.path / "rounds/000/samples/metadata.jsonl").read_text().splitlines()]
    alike = [{**line, "text": "same"} if line["prompt_id"] == "ant" else line for line in lines]
    (run.path / "rounds/000/samples/metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in alike))
    assert from_rounds(run, [0]) == []
    with pytest.raises(UserError, match=r"pairs\.run: '.*run': there is not one pair"):
        build(PairsConfig(run=str(run.path), rounds=[0]), run.path, "pairs")


def test_a_pair_with_an_empty_answer_is_left_out_of_a_run_as_out_of_its_file(run, tmp_path):
    unsealed(run)
    file = run.path / "rounds/000/samples/metadata.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    silent = [{**line, "text": ""} if (line["prompt_id"], line["index"]) == ("ant", 2) else line for line in lines]
    file.write_text("".join(json.dumps(line) + "\n" for line in silent))
    every = from_rounds(run)
    assert (every[0].chosen, every[0].rejected) == ("ant 01", "")
    config = PairsConfig(run=str(run.path))
    with pytest.warns(UserWarning, match="^pairs: 1 of 4 pairs have an empty answer and were left out"):
        assert build(config, tmp_path, "pairs") == answered(every) == every[1:]
    with pytest.warns(UserWarning, match="1 of 4 pairs"):
        assert build(sealed(config, tmp_path, "pairs"), tmp_path, "pairs") == every[1:]
    assert build(config.model_copy(update={"sha256": _digest(every)}), tmp_path, "pairs") == every, "begun before"
    with pytest.raises(UserError, match="pairs: 1 of 1 pairs have an empty answer, and nothing can be learnt"):
        build(PairsConfig(run=str(run.path), rounds=[0]), tmp_path, "pairs")


# From people


def test_what_people_chose(run, tmp_path):
    pairs = candidate_pairs(run, 0, per_prompt=1, seed=0)
    ballot = Ballot(run, "ada")
    for one, chosen in zip(pairs, ("left", "right", "tie"), strict=True):
        ballot.choose(one, chosen)
    found = build(PairsConfig(labels=str(run.path)), tmp_path, "pairs")
    assert len(found) == 2
    texts = {"a ant": {f"ant 0{k}" for k in range(3)}, "a bee": {f"bee 0{k}" for k in range(3)}}
    texts["a cat"] = {f"cat 0{k}" for k in range(3)}
    for one in found:
        assert {one.chosen, one.rejected} < texts[one.prompt.caption]
        assert one.meta["rater"] == "ada"
    assert len({one.id for one in found}) == 2
    turned = Ballot(run, "bob")  # disagrees with all of it, and both are kept
    for one, chosen in zip(pairs, ("right", "left", "tie"), strict=True):
        turned.choose(one, chosen)
    both = build(PairsConfig(labels=str(run.path)), tmp_path, "pairs")
    answered = {(one.chosen, one.rejected) for one in both}
    assert len(both) == 4
    assert answered == {(b, a) for a, b in answered}


def test_labels_without_an_answer_are_a_sentence(run, tmp_path):
    with pytest.raises(UserError, match=r"pairs\.labels: '.*run': there is not one pair"):
        build(PairsConfig(labels=str(run.path)), tmp_path, "pairs")


def test_runs_on_pictures_are_refused(tmp_path):
    Run.create(tmp_path / "run", Config(), seed=0)
    for source in ("run", "labels"):
        with pytest.raises(UserError, match="this is no run on texts, and a reward model reads texts"):
            build(PairsConfig(**{source: "run"}), tmp_path, "pairs")
    with pytest.raises(UserError, match="this is not a run directory"):
        build(PairsConfig(run="elsewhere"), tmp_path, "pairs")


# Sealed


def test_a_sealed_run_is_known_by_what_it_holds(run, tmp_path):
    config = sealed(PairsConfig(run="run", limit=2), tmp_path, "pairs")
    assert config.run == str(run.path.resolve())
    assert len(build(config, tmp_path / "elsewhere", "pairs")) == 2
    shutil_round(run)
    with pytest.raises(UserError, match="holds is no longer what this run began with"):
        build(config, tmp_path, "pairs")
    named = sealed(PairsConfig(run="run", rounds=[0]), tmp_path, "pairs")
    assert len(build(named, tmp_path, "pairs")) == 1


def shutil_round(run):
    """One answer of round 1 in other words."""
    unsealed(run)
    file = run.path / "rounds/001/samples/metadata.jsonl"
    file.write_text(file.read_text().replace("cat 12", "cat, another"))


def test_a_sealed_file_is_known_by_its_checksum(tmp_path):
    (tmp_path / "pairs.jsonl").write_text(json.dumps(pair()) + "\n")
    config = sealed(PairsConfig(data=DataConfig(file="pairs.jsonl")), tmp_path, "pairs")
    assert len(build(config, tmp_path / "elsewhere", "pairs")) == 1
    (tmp_path / "pairs.jsonl").write_text(json.dumps(pair(chosen="Hello!")) + "\n")
    with pytest.raises(UserError, match="is not what the run began with"):
        build(config, tmp_path, "pairs")


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({}, r"name exactly one of data, run and labels \(none given\)"),
        ({"run": "a", "labels": "b"}, r"exactly one of data, run and labels \(run and labels given\)"),
        ({"data": {"file": "x"}, "run": "a"}, r"\(data and run given\)"),
        ({"labels": "b", "rounds": [1]}, "rounds are those of a run"),
    ],
)
def test_exactly_one_source(given, sentence):
    with pytest.raises(UserError, match=sentence):
        check(PairsConfig, given)
