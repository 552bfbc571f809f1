"""Prompts: three texts each, files of two kinds, and a sentence for every mistake."""

import datetime
import json
import math
import sys
from pathlib import Path

import pytest
from PIL import Image

from raftdiff.errors import UserError
from raftdiff.recipes.prompts import PromptsConfig, build, find_file, inline, read_captions


def test_magic_is_sampled_the_caption_is_scored_and_learnt() -> None:
    config = PromptsConfig(captions=["a cat", "a dog"], magic=["{caption}, sharp", "best {caption}"], negative="blurry")
    cat, dog = build(config)
    assert (cat.id, cat.caption, cat.sampling, cat.learning) == ("a-cat", "a cat", "a cat, sharp", "a cat")
    assert (dog.sampling, dog.negative) == ("best a dog", "blurry")


def test_coupled_learns_what_was_sampled() -> None:
    (cat,) = build(PromptsConfig(captions=["a cat"], magic=["{caption}, sharp"], decouple=False))
    assert (cat.caption, cat.learning) == ("a cat", "a cat, sharp")


def test_a_line_may_bring_its_own_texts() -> None:
    row = {"caption": "a cat", "id": "tom", "sampling": "tom, 8k", "negative": "dog", "split": "in"}
    (cat,) = build(PromptsConfig(captions=[row]))
    assert (cat.id, cat.sampling, cat.negative, cat.meta) == ("tom", "tom, 8k", "dog", {"split": "in"})


def test_files_are_read_and_held_inline(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("# words\n\na cat\n a dog \n")
    (tmp_path / "p.jsonl").write_text('{"caption": "a cat"}\n')
    held = inline(PromptsConfig(file="p.txt"), tmp_path)
    assert (held.file, held.captions) == (None, ["a cat", "a dog"])
    assert inline(PromptsConfig(file="p.jsonl"), tmp_path).captions == [{"caption": "a cat"}]


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("p.txt", "\n# nothing\n", "this file has no rows"),
        ("p.jsonl", '{"caption": "a"}\n{oops\n', r"p\.jsonl:2: this line is not valid JSON"),
        ("p.jsonl", "[1]", "expected an object such as"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, name: str, text: str, sentence: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=sentence):
        read_captions(tmp_path / name)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no file 'gone\.txt'"):
        inline(PromptsConfig(file="gone.txt"), tmp_path)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (PromptsConfig(), "there is no prompt"),
        (
            PromptsConfig(captions=[{"caption": "a", "id": "x"}, {"caption": "b", "id": "x"}]),
            "prompts 1 and 2 have the same id 'x'",
        ),
        (
            PromptsConfig(captions=[{"caption": "a", "id": "Cat"}, {"caption": "b", "id": "cat"}]),
            "the ids 'Cat' and 'cat' differ by case alone",
        ),
        (PromptsConfig(captions=[{"caption": "a", "id": "x" * 300}]), "of prompt 1 has 300 letters"),
        (PromptsConfig(captions=["a \ud83d cat"]), "prompt 1 holds half a character"),
        (PromptsConfig(captions=["a cat"], negative="\udcff"), "holds half a character"),
        (PromptsConfig(captions=[{"id": "../x", "caption": "x"}]), "cannot name a file"),
        (PromptsConfig(captions=[{"id": "x"}]), r"prompt 1 has no caption \(its keys: id\)"),
        (PromptsConfig(captions=[{"caption": 3}]), "'caption' is not a text"),
        (PromptsConfig(captions=["x"], magic=["sharp"]), "lacks {caption}"),
        (PromptsConfig(captions=["x"], magic=[]), "list of templates is empty"),
        (PromptsConfig(captions=["x"], file="y.txt"), "both given"),
    ],
)
def test_a_wrong_prompt_is_named(config: PromptsConfig, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=sentence):
        build(inline(config, tmp_path))


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (PromptsConfig(), "^{}: there is no prompt"),
        (PromptsConfig(file="gone.txt"), r"^{}.file: there is no file 'gone\.txt'"),
        (PromptsConfig(captions=[{"id": "x"}]), "^{}: prompt 1 has no caption"),
        (PromptsConfig(captions=[{"caption": "x", "id": "../x"}]), "^{}: the id '../x' of prompt 1 cannot"),
        (PromptsConfig(captions=[{"caption": "x", "id": "a"}] * 2), "^{}: prompts 1 and 2 have the same id"),
        (PromptsConfig(captions=[{"caption": "x", "id": name} for name in "aA"]), "^{}: the ids 'a' and 'A' differ"),
        (PromptsConfig(captions=["x"], negative="\udcff"), "^{}: a magic or negative prompt holds half"),
        (PromptsConfig(magic=["sharp"]), "^{}.magic: the template 'sharp' lacks"),
        (PromptsConfig(magic=[]), "^{}.magic: the list of templates is empty"),
    ],
)
def test_a_wrong_prompt_is_told_under_the_key_where_it_stands(
    config: PromptsConfig, sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=sentence.replace("{}", "evaluation.prompts")):
        build(inline(config, tmp_path, "evaluation.prompts"), "evaluation.prompts")


PARTI = "Prompt\tCategory\na cat\tAnimals\n"
CELLS = 'id,caption,negative\n,"a cat, red",\ntom,a dog,frame\n'


@pytest.mark.parametrize(
    ("name", "text", "captions"),
    [
        ("p.tsv", PARTI, [{"caption": "a cat", "Category": "Animals"}]),
        ("p.csv", "caption,,\na cat,,\na dog, ,\n", [{"caption": "a cat"}, {"caption": "a dog"}]),
        ("p.csv", CELLS, [{"caption": "a cat, red"}, {"id": "tom", "caption": "a dog", "negative": "frame"}]),
        ("p.json", '[\n"a cat",\n"a dog"\n]\n', [{"caption": "a cat"}, {"caption": "a dog"}]),
        ("p.json", '[{"prompt": "a cat", "negative_prompt": "dog"}]', [{"caption": "a cat", "negative": "dog"}]),
        ("P.JSONL", '{"caption": "a cat"}\n', [{"caption": "a cat"}]),
        ("p.ndjson", '{"prompt": "a cat", "tag": "single"}\n', [{"caption": "a cat", "tag": "single"}]),
        ("p.jsonl", '{"caption": null, "text": "a cat", "id": null}\n', [{"caption": "a cat"}]),
        ("p.jsonl", '{"caption": "a cat", "negative": ""}\n', [{"caption": "a cat", "negative": ""}]),
        ("P.TXT", "a cat\ra dog\r", ["a cat", "a dog"]),
    ],
)
def test_a_prompt_set_is_read_as_it_was_downloaded(tmp_path: Path, name: str, text: str, captions: object) -> None:
    (tmp_path / name).write_text(text, newline="")
    assert inline(PromptsConfig(file=name), tmp_path).captions == captions


def test_a_tsv_file_without_quoting_keeps_its_quotes(tmp_path: Path) -> None:
    """As PartiPrompts has it: a cell begins with a quote that ends before the cell does."""
    rows = ['"G I G G L E" painted on a wall\tIllustrations', 'a sign that says "Yes"\tWorld Knowledge']
    (tmp_path / "p.tsv").write_text("\n".join(["Prompt\tCategory", *rows]) + "\n")
    assert [row["caption"] for row in read_captions(tmp_path / "p.tsv")] == [row.split("\t")[0] for row in rows]
    (tmp_path / "q.tsv").write_text("\n".join(["Prompt\tCategory", *rows, '"a cat, red"\tAnimals']) + "\n")
    with pytest.warns(UserWarning, match=r"quote begins a cell of line 2 and does not end it, so .* as in line 4\."):
        assert read_captions(tmp_path / "q.tsv")[-1] == {"caption": '"a cat, red"', "Category": "Animals"}
    (tmp_path / "r.tsv").write_text('Prompt\tCategory\n"a cat, red"\tAnimals\n')
    assert read_captions(tmp_path / "r.tsv") == [{"caption": "a cat, red", "Category": "Animals"}]
    (tmp_path / "s.tsv").write_text(f"Prompt\tCategory\n{rows[0]}\na dog\n")
    with pytest.raises(UserError, match=r"s\.tsv:3: this row has 1 cell, and the first line names 2 columns"):
        read_captions(tmp_path / "s.tsv")


def test_a_folder_has_a_prompt_in_each_text_file(tmp_path: Path) -> None:
    """As DPG has it."""
    texts = {"10.txt": "a dog", "2.TXT": "a cat,\nasleep \n", "b 1.txt": "a fox", "._2.txt": "no", "LICENSE": "no"}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    found = [{"id": "2", "caption": "a cat, asleep"}, {"id": "10", "caption": "a dog"}, {"caption": "a fox"}]
    assert inline(PromptsConfig(file="."), tmp_path).captions == found
    assert [prompt.id for prompt in build(PromptsConfig(captions=list(found)))] == ["2", "10", "a-fox"]
    (tmp_path / "3.txt").write_text(" \n")
    with pytest.raises(UserError, match=r"3\.txt: this file is empty, and should hold a prompt"):
        read_captions(tmp_path)
    (tmp_path / "bare").mkdir()
    with pytest.raises(UserError, match=r"bare: this folder has no \.txt files, with a prompt in each"):
        read_captions(tmp_path / "bare")


def test_other_columns_stay_with_the_prompt_as_json_holds_them(tmp_path: Path) -> None:
    """As GenEval has it; a table's dates and missing numbers are none of JSON's."""
    include = [{"class": "dog", "count": 2}, {"class": "bench", "count": 1, "position": ["left of", 0]}]
    row = {"tag": "position", "include": include, "exclude": [], "prompt": "two dogs left of a bench"}
    (tmp_path / "g.jsonl").write_text(json.dumps(row) + "\n" + '{"tag": 3, "level": NaN, "prompt": "a cow"}\n')
    dogs, cow = build(inline(PromptsConfig(file="g.jsonl"), tmp_path))
    assert dogs.meta == {"tag": "position", "include": include, "exclude": []}
    assert cow.meta == {"tag": 3, "level": None}
    day = datetime.date(2024, 5, 1)
    (dated,) = build(PromptsConfig(captions=[{"caption": "a cat", "seen": day, "boxes": [(1, math.inf)]}]))
    assert json.loads(json.dumps(dated.meta)) == dated.meta == {"seen": "2024-05-01", "boxes": [[1, None]]}


def test_a_column_beside_the_caption_that_could_be_one_is_kept(tmp_path: Path) -> None:
    (tmp_path / "o.jsonl").write_text('{"prompt": "a sign that says STOP", "text": "STOP"}\n')
    told = r"o\.jsonl:1: the caption is read from 'prompt', not from 'text', which differs\.$"
    with pytest.warns(UserWarning, match=told):
        assert read_captions(tmp_path / "o.jsonl") == [{"caption": "a sign that says STOP", "text": "STOP"}]
    (tmp_path / "same.csv").write_text("Prompt,caption\na cat, a  cat\n,a dog\n")
    assert [row["caption"] for row in read_captions(tmp_path / "same.csv")] == [" a  cat", "a dog"]


def test_lmflow_instances_are_read(tmp_path: Path) -> None:
    (tmp_path / "l.json").write_text('{"type": "text_only", "instances": [{"text": "a cat"}, {"text": "a dog"}]}')
    assert read_captions(tmp_path / "l.json") == [{"caption": "a cat"}, {"caption": "a dog"}]


def test_how_to_fetch_a_data_set_is_said(tmp_path: Path) -> None:
    fetch = r"If it is a data set on the hub, write hub:nateraw/parti-prompts\."
    with pytest.raises(UserError, match=rf"no file 'nateraw/parti-prompts', .*{fetch}"):
        inline(PromptsConfig(file="nateraw/parti-prompts"), tmp_path)
    with pytest.raises(UserError, match=r"there is no file 'files/p\.txt', neither in .* nor in this folder\.$"):
        inline(PromptsConfig(file="files/p.txt"), tmp_path)
    with pytest.raises(UserError, match=r"--prompts: there is no file 'p\.txt', in this folder\.$"):
        find_file("p.txt", Path(), "--prompts")


def test_parquet_is_read(tmp_path: Path) -> None:
    table = pytest.importorskip("pyarrow").table({"Prompt": ["a cat"], "level": [3]})
    import pyarrow.parquet

    pyarrow.parquet.write_table(table, tmp_path / "p.parquet")
    assert read_captions(tmp_path / "p.parquet") == [{"caption": "a cat", "level": 3}]
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match=r"bad\.parquet: cannot read this file"):
        read_captions(tmp_path / "bad.parquet")
    shown = {"text": ["a cat"], "jpg_0": [b"\x89"], "image": [{"bytes": b"\x89", "path": "a.jpg"}], "label_0": [0.5]}
    pyarrow.parquet.write_table(pyarrow.table(shown), tmp_path / "i.parquet")
    with pytest.warns(UserWarning, match=r"i\.parquet: left out, for it holds bytes, .*: 'jpg_0', 'image'\."):
        assert read_captions(tmp_path / "i.parquet") == [{"caption": "a cat", "label_0": 0.5}]


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("p.md", b"a cat\n", r"p\.md: a file of prompts or data ends in .*With one prompt a line, name it \.txt"),
        ("p", b"a cat\n", "name it .txt"),
        (
            "p.csv",
            b"a cat\na dog\n",
            r"p\.csv: no column is called 'caption' or 'prompt'. The first line of .*p\.csv was read as the names of "
            r"the columns \('a cat'\). If it is a row like the others, put a line of names .* name the file \.txt",
        ),
        (
            "p.csv",
            b"caption;id\na cat, red;tom\n",
            r"p\.csv:1: the first line, 'caption;id', was read as the name of a single column: a \.csv file has ',' "
            r"between the cells, and here are ';'. Save it with ','",
        ),
        ("p.csv", b"caption\tid\na cat\ttom\n", "a .csv file has ',' between the cells, and here are tabs. Save it"),
        ("p.tsv", b"caption,id\na cat,tom\n", "a .tsv file has tabs between the cells, and here are ','. Save it"),
        ("p.csv", b"a cat; asleep\na dog\n", "if a cell has ';' in it and there is no line of names, put one above"),
        (
            "p.csv",
            b"caption\na cat, red\n",
            r"p\.csv:2: this row has 2 cells, and the first line names 1 column: 'caption'. A text with ',' in",
        ),
        ("p.csv", b"caption,id\na cat\n", r"this row has 1 cell, and the first line names 2 columns: 'caption', 'id'"),
        (
            "p.csv",
            b"a cat\n",
            r"p\.csv: this file has no rows. The first line .* names of the columns \('a cat'\)",
        ),
        ("p.csv", b"cat " * 99, r"\('(cat ){15}\.\.\.'\)"),
        ("p.csv", b"a cat,a cat\n", r"p\.csv:1: two columns are called 'a cat'. The first line of .* was read as"),
        (
            "p.csv",
            b",caption\n0,a cat\n",
            r"p\.csv:1: column 1 has no name, and line 2 has something in it\. Give it a",
        ),
        ("p.csv", b"caption,,\na cat,,\na dog,,x\n", r"p\.csv:1: column 3 has no name, and line 3 has something in it"),
        ("p.csv", b",\n,\n", r"p\.csv:1: this line names no columns"),
        ("p.csv", b"caption,id\n,tom\n", r"p\.csv:2 has no caption \(its keys: id\)"),
        ("p.jsonl", b'{"caption": "a"}\n{"tag": 1}\n', r"p\.jsonl:2 has no caption \(its keys: tag\); write it as"),
        ("p.jsonl", b'{"caption": 1984}\n', r"p\.jsonl:1: 'caption' is not a text but 1984"),
        ("p.jsonl", b'{"caption": "a \\ud800"}\n', r"p\.jsonl:1 holds half a character"),
        ("p.txt", "a cat\n".encode("utf-16"), r"p\.txt: this file is UTF-16, .*; save it as UTF-8"),
        ("p.txt", "a cat\n".encode("utf-16-le"), r"p\.txt: this file is UTF-16"),
        ("p.txt", "a cat\n".encode("utf-32"), r"p\.txt: this file is UTF-32"),
        ("p.txt", "a cat\nKöln\n".encode("cp1252"), r"p\.txt:2: this line is not UTF-8 .*'Köln'\); save the file"),
    ],
)
def test_what_is_no_prompt_file_is_named_with_its_place(tmp_path: Path, name: str, data: bytes, sentence: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=sentence):
        read_captions(tmp_path / name)


def test_a_comment_that_looks_like_a_prompt_is_said(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("# words\na cat\n#1 dad mug\n")
    with pytest.warns(UserWarning, match=r"2 lines that begin with '#' were passed over.* line 3: '#1 dad mug'"):
        assert read_captions(tmp_path / "p.txt") == ["a cat"]


def test_captions_that_slug_alike_get_numbered_ids() -> None:
    captions = ["a cat", "A cat.", "a ((cat))", "C logo", "C++ logo", {"caption": "any", "id": "Dog"}, "dog"]
    ids = [prompt.id for prompt in build(PromptsConfig(captions=captions))]
    assert ids == ["a-cat", "a-cat-2", "a-cat-3", "c-logo", "c-logo-2", "Dog", "dog-2"]


def test_a_caption_that_stands_twice_is_asked_twice_and_said_once_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a cat\na dog\na cat\n")
    with pytest.warns(UserWarning, match="more than once") as told:
        config = inline(PromptsConfig(file="p.txt"), tmp_path)
    assert [prompt.id for prompt in build(config)] == ["a-cat", "a-dog", "a-cat-2"]  # and nothing more is said
    sentence = "a caption stands more than once ('a cat'); each is asked as often as it stands."
    assert [str(one.message) for one in told] == [f"{tmp_path / 'p.txt'}: {sentence}"]
    with pytest.warns(
        UserWarning, match=r"^evaluation\.prompts\.captions: a caption stands more than once \('a cat'\)"
    ):
        inline(PromptsConfig(captions=["a cat", {"prompt": "a cat "}]), tmp_path, "evaluation.prompts")
    inline(PromptsConfig(captions=[{"caption": "a cat", "id": "a"}, {"caption": "a cat", "id": "b"}]), tmp_path)


def test_a_data_set_of_the_hub_is_read_with_all_its_columns_but_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder stands in for the hub: the library takes one of that name for the data set."""
    datasets = pytest.importorskip("datasets", reason="the package 'datasets' is not installed")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    datasets.disable_progress_bars()
    (tmp_path / "team" / "set").mkdir(parents=True)
    rows = [{"Prompt": "a cat", "Category": "Animals"}, {"Prompt": "a bus", "Category": "Vehicles"}]
    for name in ("train", "test"):
        (tmp_path / "team" / "set" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = inline(PromptsConfig(file="hub:team/set:test"), tmp_path)
    assert found.captions == [{"caption": row["Prompt"], "Category": row["Category"]} for row in rows]
    assert found.file is None
    with pytest.raises(UserError, match=r"prompts.file: 'team/set' has the splits .*; name one: hub:team/set:"):
        inline(PromptsConfig(file="hub:team/set"), tmp_path)
    (tmp_path / "team" / "set" / "test.jsonl").unlink()
    with pytest.raises(UserError, match="prompts.file: cannot load 'team/set', split 'test': "):
        inline(PromptsConfig(file="hub:team/set:test"), tmp_path)
    (tmp_path / "team" / "pictures").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "team" / "pictures" / "1.png")
    (tmp_path / "team" / "pictures" / "metadata.jsonl").write_text('{"file_name": "1.png", "text": "a dog", "n": 2}\n')
    with pytest.warns(UserWarning, match="of 'team/pictures' left out, for it holds pictures or sound: 'image'"):
        found = inline(PromptsConfig(file="hub:team/pictures"), tmp_path)
    assert found.captions == [{"caption": "a dog", "n": 2}]
    monkeypatch.setitem(sys.modules, "datasets", None)
    missing = r"prompts.file: the package 'datasets' is missing; install it: pip install 'raftdiff\[hub\]'"
    with pytest.raises(UserError, match=missing):
        inline(PromptsConfig(file="hub:team/set"), tmp_path)
