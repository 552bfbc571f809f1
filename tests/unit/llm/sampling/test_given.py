"""Answers that are there already: numbered as the data have them, matched by id or text, refused where they changed."""

import json
from pathlib import Path
from typing import Any

import pytest

from raftdiff.errors import UserError
from raftdiff.llm.data.prompts import DataConfig, read_prompts
from raftdiff.llm.sampling.given import DatasetSampler, DatasetSamplerConfig, FolderSampler, FolderSamplerConfig
from raftdiff.seeds import fold
from raftdiff.testing.conformance import check_sampler
from raftdiff.types import Prompt, Sample, Sampler

NOW: dict[str, Any] = {"seed": 5, "round": 2, "done": frozenset()}


def prompts(*rows: Any) -> list[Prompt]:
    return read_prompts(DataConfig(captions=list(rows)), Path(), "prompts")


def seen(samples: Any) -> list[tuple[str, int, str]]:
    return [(sample.prompt.id, sample.index, sample.media) for sample in samples]


def write(path: Path, *rows: dict[str, Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


ASKED = prompts({"prompt": "Why?", "answers": ["a", "b", "c"]}, {"prompt": "How?", "answers": ["d", "e"]})


def test_the_dataset_sampler_keeps_its_contract() -> None:
    sampler = DatasetSamplerConfig().build()
    assert isinstance(sampler, Sampler)
    check_sampler(sampler, ASKED).demand()


def test_candidate_k_is_answer_k_and_the_missing_are_not_yielded() -> None:
    found = list(DatasetSampler().sample(ASKED, per_prompt=3, **NOW))
    assert seen(found) == [("why", 0, "a"), ("why", 1, "b"), ("why", 2, "c"), ("how", 0, "d"), ("how", 1, "e")]
    assert found[4] == Sample(2, ASKED[1], 1, fold(5, "how", 1), "dataset", "e")
    assert seen(DatasetSampler().sample(ASKED, per_prompt=1, **NOW)) == [("why", 0, "a"), ("how", 0, "d")]


def test_what_is_done_is_not_yielded_again() -> None:
    done = frozenset({("why", 0), ("how", 1)})
    left = DatasetSampler().sample(ASKED, per_prompt=3, seed=5, round=2, done=done)
    assert seen(left) == [("why", 1, "b"), ("why", 2, "c"), ("how", 0, "d")]


def test_prompts_without_answers_are_passed_over_but_not_if_all_are() -> None:
    mixed = [*ASKED, *prompts("When?")]
    assert len(seen(DatasetSampler().sample(mixed, per_prompt=2, **NOW))) == 4
    DatasetSampler().check(mixed)
    with pytest.raises(UserError, match="not one of the 1 prompts has an answer in the data"):
        DatasetSampler().check(prompts("When?"))


def folder_sampler(path: Path, **options: Any) -> FolderSampler:
    return FolderSamplerConfig(path=str(path), **options).build(Path())


def test_the_folder_sampler_keeps_its_contract(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", *[{"id": name, "text": f"{name} {k}"} for k in range(2) for name in ("why", "how")])
    sampler = folder_sampler(tmp_path / "a.jsonl")
    assert isinstance(sampler, Sampler)
    check_sampler(sampler, ASKED).demand()
    check_sampler(folder_sampler(tmp_path, source="human"), ASKED).demand()


def test_answers_are_found_by_id_or_by_text_in_the_order_of_the_files(tmp_path: Path) -> None:
    write(tmp_path / "two.jsonl", {"prompt": " Why? ", "text": "3"}, {"prompt": "Other?", "text": "x"})
    write(tmp_path / "one.jsonl", {"id": "how", "prompt": "Why?", "response": "1"}, {"prompt": "Why?", "text": "2"})
    (tmp_path / "notes.txt").write_text("not answers")
    found = list(folder_sampler(tmp_path, source="human").sample(ASKED, per_prompt=3, **NOW))
    assert seen(found) == [("why", 0, "2"), ("why", 1, "3"), ("how", 0, "1")]
    assert {sample.source for sample in found} == {"human"}


def test_equal_prompts_are_told_apart_by_their_ids(tmp_path: Path) -> None:
    asked = prompts("Yes", "Yes")
    write(tmp_path / "a.jsonl", {"id": "yes-2", "text": "second"}, {"prompt": "Yes", "text": "both"})
    found = seen(folder_sampler(tmp_path).sample(asked, per_prompt=2, **NOW))
    assert found == [("yes", 0, "both"), ("yes-2", 0, "second"), ("yes-2", 1, "both")]


def test_the_samples_of_a_round_are_answers(tmp_path: Path) -> None:
    row = {"prompt_id": "why", "index": 0, "caption": "Why?", "text": "Since.", "seed": 7, "reward_length": 1.0}
    write(tmp_path / "metadata.jsonl", row, {**row, "index": 1, "text": ""})
    assert seen(folder_sampler(tmp_path).sample(ASKED, per_prompt=2, **NOW)) == [("why", 0, "Since.")]


def test_an_answer_that_was_cut_off_is_taken_as_one(tmp_path: Path) -> None:
    rows = [{"id": "why", "text": "Since", "cut": True}, {"id": "why", "text": "It is.", "cut": False}]
    write(tmp_path / "a.jsonl", *rows, {"id": "how", "text": "So.", "cut": "Ideal"})
    (tmp_path / "b.csv").write_text("id,text,cut\nhow,Like,true\n")
    found = folder_sampler(tmp_path).sample(ASKED, per_prompt=2, **NOW)
    assert [sample.cut for sample in found] == [True, False, False, True]


def test_answers_to_nothing_that_is_asked_are_said(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", {"id": "other", "text": "x"})
    with pytest.raises(UserError, match="answers not one of the 2 prompts; its rows name them by"):
        folder_sampler(tmp_path).check(ASKED)
    write(tmp_path / "a.jsonl", {"id": "how", "text": "x"})
    folder_sampler(tmp_path).check(ASKED)


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"id": "why"}, r'a\.jsonl:1: there is no answer; write it as "text"'),
        ({"id": "why", "text": 3}, "there is no answer"),
        ({"text": "x"}, r'a\.jsonl:1: this answer names no prompt; give its "id"'),
        ({"id": "", "prompt": " ", "text": "x"}, "names no prompt"),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, row: dict[str, Any], sentence: str) -> None:
    write(tmp_path / "a.jsonl", row)
    with pytest.raises(UserError, match=sentence):
        folder_sampler(tmp_path / "a.jsonl")


def test_a_missing_or_empty_place_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"sampler.path: there is no 'gone'"):
        FolderSamplerConfig(path="gone").build(tmp_path)
    with pytest.raises(UserError, match=r"there is no \.jsonl, \.ndjson, .* file in"):
        folder_sampler(tmp_path)


def test_a_sealed_config_refuses_other_answers(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", {"id": "why", "text": "x"})
    kept = FolderSamplerConfig(path="a.jsonl").sealed(tmp_path)
    assert kept.path == str(tmp_path / "a.jsonl")
    assert seen(kept.build(Path("/elsewhere")).sample(ASKED, per_prompt=1, **NOW)) == [("why", 0, "x")]
    write(tmp_path / "a.jsonl", {"id": "why", "text": "y"})
    with pytest.raises(UserError, match="are not those that the run began with. Put the old ones back"):
        kept.build(Path())
