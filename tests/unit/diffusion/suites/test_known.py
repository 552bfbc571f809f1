"""Benchmarks by name: their files are read whole, and what is no such file is a sentence."""

import json
import os
import warnings
from pathlib import Path

import pytest

from raftdiff.diffusion.suites.known import SUITES, prompts_of, rows_of, suite, told_of
from raftdiff.errors import UserError
from raftdiff.measures.categories import columns
from raftdiff.recipes.prompts import PromptsConfig
from raftdiff.rewards.dpg import graph

SHARED = Path(os.environ.get("RAFTDIFF_SHARED") or Path(__file__).parents[5] / "shared")
FILES = SHARED / "data" / "benchmarks"


def read(name: str, place: Path) -> dict[str, dict[str, int]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prompts = prompts_of(name, rows_of(name, str(place)), PromptsConfig())
    assert told_of(name, len(prompts)) == []  # as many as published
    return columns(prompt.meta for prompt in prompts)


@pytest.mark.skipif(
    not FILES.is_dir(), reason=f"the published files are not at {FILES}; set RAFTDIFF_SHARED to the folder above data/"
)
def test_the_published_files_have_their_published_counts() -> None:
    tags = read("geneval", FILES / "geneval" / "evaluation_metadata.jsonl")["tag"]
    told = {"single_object": 80, "two_object": 99, "counting": 80, "colors": 94, "position": 100, "color_attr": 100}
    assert tags == told
    parti = read("parti", FILES / "partiprompts" / "PartiPrompts.tsv")
    assert (len(parti["Category"]), len(parti["Challenge"])) == (12, 11)
    compbench = read("compbench", FILES / "t2i-compbench")
    assert compbench == {"category": dict.fromkeys(SUITES["compbench"].files, 300)}
    assert read("imagereward", FILES / "imagereward" / "benchmark-prompts.json") == {}


def test_a_folder_of_files_gives_each_prompt_its_files_name(tmp_path: Path) -> None:
    for name in ("anime", "concept-art", "paintings", "photo"):
        (tmp_path / f"{name}.json").write_text(json.dumps([f"{name} of a cat", f"{name} of a dog"]))
    rows = rows_of("hpsv2", str(tmp_path))
    assert rows[2] == {"caption": "concept-art of a cat", "category": "concept-art"}
    assert rows_of("hpsv2", str(tmp_path / "photo.json"))[0]["category"] == "photo"  # type: ignore[index]
    (tmp_path / "photo.json").unlink()
    with pytest.raises(UserError, match=r"there is no photo.json here, which HPSv2 has"):
        rows_of("hpsv2", str(tmp_path))


def test_captions_of_pairs_are_asked_once(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps({"caption": it, "label_0": 1}) + "\n" for it in "aab"))
    assert rows_of("pick-a-pic", str(tmp_path / "pairs.jsonl")) == ["a", "b"]


def test_what_is_no_benchmark_or_not_its_file_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'gen-eval' is none of geneval, parti"):
        suite("gen-eval")
    with pytest.raises(UserError, match="name its prompts with --prompts: PartiPrompts.tsv"):
        rows_of("parti", None)
    (tmp_path / "cats.txt").write_text("a cat\n")
    with pytest.raises(UserError, match="prompt 1 has no 'Category', by which PartiPrompts is reduced"):
        rows_of("parti", str(tmp_path / "cats.txt"))


def test_what_is_not_comparable_with_published_figures_is_told() -> None:
    fewer, sparse = told_of("geneval", 10, 1)
    assert fewer.startswith("GenEval has 553 prompts, and here are 10")
    assert sparse.startswith("GenEval is drawn with 4 pictures a prompt, and here are 1")


def test_questions_of_a_table_become_graphs_of_prompts(tmp_path: Path) -> None:
    head = "item_id,text,keywords,proposition_id,dependency,category_broad,tuple,question_natural_language"
    lines = ['p1,"a cat, and a dog",,1,0,entity,whole (cat),Is there a cat?', "p1,,,2,1,attribute,a,Is the cat black?"]
    lines += ['p1,,,3,"1,2",relation,r,Is it left of the dog?', "p2,a bus,,1,0,entity,e,Is there a bus?"]
    (tmp_path / "dpg_bench.csv").write_text("\n".join([head, *lines]))
    prompts = prompts_of("dpg", rows_of("dpg", str(tmp_path / "dpg_bench.csv")), PromptsConfig())
    assert [(one.id, one.caption) for one in prompts] == [("p1", "a cat, and a dog"), ("p2", "a bus")]
    assert [(it.id, it.text, it.parents) for it in graph(prompts[0])] == [
        (1, "Is there a cat?", ()),
        (2, "Is the cat black?", (1,)),
        (3, "Is it left of the dog?", (1, 2)),
    ]
    (tmp_path / "prompts.csv").write_text("prompt\na cat\n")
    with pytest.raises(UserError, match=r"prompts.csv:2: this is no row of dpg_bench.csv, which has item_id, text"):
        rows_of("dpg", str(tmp_path / "prompts.csv"))
