"""Pictures that one already has: which are read, of what prompt each is, how they are ranked, and what is written."""

import csv
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from raftdiff.diffusion.found.ranked import Ranked, best, constant, rank
from raftdiff.diffusion.found.titles import UNTITLED, retitled, titled, untitled
from raftdiff.diffusion.found.written import write
from raftdiff.diffusion.sampling import pictures
from raftdiff.diffusion.sampling.gathering import gathered
from raftdiff.diffusion.sampling.pictures import Found
from raftdiff.errors import UserError
from raftdiff.recipes.prompts import PromptsConfig, build
from raftdiff.rewards.callable import CallableReward
from raftdiff.types import Prompt, Sample


class Redness:
    """The mean of the red channel; pictures whose green is brighter are discarded. Higher is better."""

    name = "redness"

    def score(self, samples: Sequence[Sample[Image.Image]]) -> torch.Tensor:
        mean = [np.asarray(sample.media, dtype=np.float32).mean(axis=(0, 1)) for sample in samples]
        return torch.tensor([float(red) if red >= green else math.nan for red, green, _ in mean])


class Longest:
    """The caption's letters."""

    name = "longest"

    def score(self, samples: Sequence[Sample[Image.Image]]) -> torch.Tensor:
        return torch.tensor([float(len(sample.prompt.caption)) for sample in samples])


def picture(path: Path, red: int, green: int = 0) -> Path:
    values = np.zeros((4, 4, 3), dtype=np.uint8)
    values[..., 0], values[..., 1] = red, green
    values[0, 0] = 255  # or it would be of one colour
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return path


def table(folder: Path, *rows: dict[str, Any]) -> Path:
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def names(ranked: Sequence[Ranked]) -> list[str]:
    return [one.found.picture.stem for one in ranked if isinstance(one.found.picture, Path)]


def asked(*captions: Any) -> list[Prompt]:
    return build(PromptsConfig(captions=list(captions)))


def ranked(folder: Path, *rewards: Any, given: Sequence[Prompt] = ()) -> tuple[list[Ranked], list[str]]:
    found, left = gathered(folder)
    held, strange = titled(found, given)
    scored, damaged = rank(held, [(reward, 1.0) for reward in rewards or (Redness(),)])
    return scored, [*left, *strange, *damaged]


def test_the_best_come_first_and_what_has_no_score_last(tmp_path: Path) -> None:
    for k in range(70):  # more than two batches
        picture(tmp_path / f"p{k}.png", (k * 37) % 200)
    picture(tmp_path / "green.png", 10, 200)
    Image.new("RGB", (4, 4), "red").save(tmp_path / "flat.png")
    heard: list[tuple[int, int]] = []
    found, left = gathered(tmp_path)
    scored, damaged = rank(titled(found)[0], [(Redness(), 2.0)], report=lambda *it: heard.append(it))
    reds = [one.scores["redness"] for one in scored[:70]]
    assert reds == sorted(reds, reverse=True)
    assert [one.total for one in scored[:70]] == [2 * red for red in reds]
    assert set(names(scored)[70:]) == {"green", "flat"}
    assert all(math.isnan(one.total) for one in scored[70:])
    assert (left, damaged, heard[-1]) == ([], [], (72, 72))


def test_a_picture_has_the_same_score_whatever_is_ranked_with_it(tmp_path: Path) -> None:
    for k in range(5):
        picture(tmp_path / f"p{k}.png", 10 * k)
    whole, _ = ranked(tmp_path)
    (tmp_path / "p2.png").unlink()
    fewer, _ = ranked(tmp_path)
    assert {one.found.where: one.total for one in fewer}.items() < {one.found.where: one.total for one in whole}.items()
    assert names(fewer) == ["p4", "p3", "p1", "p0"]


class Rank:
    """Which of its prompt's pictures each is, by redness; it wants all of them at once."""

    name, whole_prompts = "rank", True

    def score(self, samples: Sequence[Sample[Image.Image]]) -> torch.Tensor:
        reds = [(sample.prompt.id, float(np.asarray(sample.media)[1:, :, 0].mean())) for sample in samples]
        return torch.tensor([float(sum(other < red for name, other in reds if name == own)) for own, red in reds])


def test_a_reward_that_compares_sees_all_pictures_of_a_prompt(tmp_path: Path) -> None:
    for k in range(80):  # of two prompts, each more than a batch
        picture(tmp_path / f"p{k:02d}.png", k)
        (tmp_path / f"p{k:02d}.txt").write_text("a fox" if k % 2 else "a cat")
    scored, _ = ranked(tmp_path, Rank())
    assert names(scored) == [f"p{k:02d}" for pair in range(39, -1, -1) for k in (2 * pair, 2 * pair + 1)]
    assert [one.total for one in scored] == [float(place) for place in range(39, -1, -1) for _ in "ab"]


def test_whole_samples_may_be_looked_at_though_no_caption_is_known(tmp_path: Path) -> None:
    for k in range(3):
        picture(tmp_path / f"p{k}.png", 10 * k)

    def widths(samples: Sequence[Any]) -> list[float]:
        return [float(sample.media.width) for sample in samples]

    scored, _ = ranked(tmp_path, CallableReward(widths, function="mine:widths"))
    assert [one.total for one in scored] == [4.0] * 3


def test_what_is_damaged_or_elsewhere_is_named_and_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    for name in ("a", "deep/b"):
        picture(folder / f"{name}.png", 50)
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:60])
    picture(tmp_path / "other" / "secret.png", 200)
    (folder / "link.png").symlink_to(tmp_path / "other" / "secret.png")
    (folder / "linked").symlink_to(tmp_path / "other")
    (folder / "inner.png").symlink_to(folder / "a.png")
    (folder / ".hidden.png").write_bytes(b"")
    (folder / "notes.md").write_text("no picture")
    os.mkfifo(folder / "pipe.png")  # who opens it waits for ever
    (folder / os.fsdecode(b"b\xfcro.png")).write_bytes((folder / "a.png").read_bytes())  # Latin-1
    scored, left = ranked(folder)
    assert f"{folder}/b\\udcfcro.png: its name is no UTF-8, which no table can hold; rename it." in left
    assert f"{folder}/pipe.png: this is a pipe, a socket or a device, and is not opened." in left
    assert sorted(names(scored)) == ["a", "b", "inner"]
    assert [sentence.partition(":")[0] for sentence in left if "link to a folder" in sentence] == [f"{folder}/linked"]
    assert any(f"{folder}/link.png lies outside of {folder}, and is not opened" in sentence for sentence in left)
    assert any(f"{folder}/cut.png: this is no whole picture" in sentence for sentence in left)
    assert len(left) == 5


@pytest.mark.parametrize(
    ("file", "sentence"),
    [
        ("gone", r"gone: nothing is there\."),
        ("empty", r"empty: there is no picture here. Known: \.png"),
        ("run", r"run: this is a run; the pictures of a round lie in .*run/rounds/000/samples\."),
        ("one.png", r"one\.png: one picture has none to be ranked with; name the folder"),
        (
            "notes.md",
            r"notes\.md: this is neither a folder of pictures nor a table of them \(\.jsonl, .* file_name and",
        ),
        ("rows", r"rows: there is no picture here. Left out: .*metadata\.jsonl:1: there is no picture 'x\.png' in"),
    ],
)
def test_what_is_no_folder_of_pictures_is_named(tmp_path: Path, file: str, sentence: str) -> None:
    for folder in ("empty", "run", "rows"):
        (tmp_path / folder).mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    (tmp_path / "notes.md").write_text("a cat")
    picture(tmp_path / "one.png", 1)
    table(tmp_path / "rows", {"file_name": "x.png"})
    with pytest.raises(UserError, match=sentence):
        gathered(tmp_path / file)


def test_damaged_pictures_alone_are_nothing_to_rank(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no")
    with pytest.raises(UserError, match=r"Not one of 1 picture can be opened: .*a\.png: this is no whole picture"):
        ranked(tmp_path)


# captions


def test_captions_are_those_of_the_table_or_beside_the_pictures(tmp_path: Path) -> None:
    for folder in ("table", "beside"):
        for name in ("a", "b", "c"):
            picture(tmp_path / folder / f"{name}.png", 50)
    own = {"level": 3, "text": "FOX", "seed": 7, "reward_clip": 1.5}
    rows = [
        {"file_name": "a.png", "caption": "a fox", "prompt_id": "x", **own},
        {"file_name": "b.png", "prompt": "a cat", "meta": '{"tag": "single"}', "score": 0.5},
        {"file_name": "gone.png", "caption": "a dog"},
        {"file_name": "../beside/a.png", "caption": "a dog"},
        {"file_name": "c.png"},
    ]
    with pytest.warns(UserWarning, match=r"metadata\.jsonl:1: the caption is read from 'caption', not from 'text'"):
        found, left = gathered(table(tmp_path / "table", *rows))
    held, strange = titled(found)
    fox, cat = (prompt for _, prompt in held[:2])
    assert (fox.id, fox.caption, fox.meta) == ("x", "a fox", {"level": 3, "text": "FOX"})
    assert (cat.id, cat.caption, cat.meta) == ("a-cat", "a cat", {"tag": "single"})
    assert (found[1].score, untitled(held[2][1]), strange, len(left)) == (0.5, True, [], 2)
    (tmp_path / "beside" / "a.txt").write_text("a fox\n")
    found, _ = gathered(tmp_path / "beside")
    assert [one.caption for one in found] == ["a fox", "", ""]


def test_a_reward_that_reads_captions_is_refused_where_none_is_known(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        picture(tmp_path / f"{name}.png", 50)
    (tmp_path / "a.txt").write_text("a fox")
    told = (
        r"^The reward 'longest' reads captions, and none is known of 2 pictures, such as .*/b\.png\. Captions stand in"
    )
    with pytest.raises(UserError, match=told):
        ranked(tmp_path, Redness(), Longest())
    for name in ("b", "c"):
        (tmp_path / f"{name}.txt").write_text("an otter")
    scored, _ = ranked(tmp_path, Longest())
    assert (names(scored), scored[0].total) == (["b", "c", "a"], 8.0)


def test_a_file_of_prompts_says_what_each_picture_shows(tmp_path: Path) -> None:
    for name in ("fox-000", "fox-001", "7_1", "a-train~-002", "stray"):
        picture(tmp_path / f"{name}.png", 50)
    given = asked({"caption": "a fox", "id": "fox"}, {"caption": "a cat", "id": "7", "tag": 2}, "a train")
    held, left = titled(gathered(tmp_path)[0], given)
    assert {one.picture.stem: prompt.caption for one, prompt in held if isinstance(one.picture, Path)} == {
        "fox-000": "a fox",
        "fox-001": "a fox",
        "7_1": "a cat",
        "a-train~-002": "a train",
    }
    assert left == [f"{tmp_path}/stray.png: this picture is of none of the prompts."]
    (tmp_path / "stray.txt").write_text("a cat")
    held, left = titled(gathered(tmp_path)[0], given)
    assert [prompt.meta for one, prompt in held if "stray" in one.where] == [{"tag": 2}]
    assert (left, retitled(held)) == ([], "")
    (tmp_path / "stray.txt").write_text("a mole")
    assert titled(gathered(tmp_path)[0], given)[1] == [f"{tmp_path}/stray.png: this picture is of none of the prompts."]
    with pytest.raises(
        UserError, match=r"--prompts: not one of 5 pictures is of one of these 2 prompts, such as 'x'\. A"
    ):
        titled(gathered(tmp_path)[0], asked({"caption": "an x", "id": "x"}, "a y"))


def test_captions_in_whose_place_a_prompt_stands_are_counted(tmp_path: Path) -> None:
    for name in ("a", "b", "fox-1"):
        picture(tmp_path / f"{name}.png", 50)
    (tmp_path / "a.txt").write_text("a fox")
    (tmp_path / "fox-1.txt").write_text("a red fox")
    found, _ = gathered(tmp_path)
    one, _ = titled(found, asked("a mole"))
    assert {prompt.caption for _, prompt in one} == {"a mole"}
    told = f"2 of 3 pictures with a caption of their own are scored by another: {tmp_path}/a.png by 'a mole'"
    assert retitled(one) == told
    several, left = titled(found, asked({"caption": "a fox", "id": "fox"}, "a cat"))
    assert (len(several), len(left)) == (2, 1)
    assert retitled(several).startswith("1 of 2 pictures with a caption of their own are scored by another: ")


# benchmarks' layouts


def geneval(folder: Path, *prompts: dict[str, Any]) -> Path:
    for place, row in enumerate(prompts):
        for k in range(2):
            picture(folder / f"{place:05d}" / "samples" / f"{k:05d}.png", 50 + 20 * place + k)
        picture(folder / f"{place:05d}" / "grid.png", 200)
        (folder / f"{place:05d}" / "metadata.jsonl").write_text(json.dumps(row))
    return folder


def test_a_folder_a_prompt_as_geneval_has_them(tmp_path: Path) -> None:
    include = [{"class": "fox", "count": 2}]
    rows = [
        {"tag": "counting", "include": include, "prompt": "a photo of two foxes"},
        {"tag": "single_object", "include": include[:1], "prompt": "a photo of a cat"},
    ]
    folder = geneval(tmp_path / "out", *rows)
    held, strange = titled(gathered(folder)[0])
    told = [(one.where, prompt.id, prompt.caption, prompt.meta["tag"]) for one, prompt in held]
    assert told == [
        (f"{folder}/{name}/samples/{k:05d}.png", name, row["prompt"], row["tag"])
        for name, row in zip(("00000", "00001"), rows, strict=True)
        for k in range(2)
    ]
    assert (held[0][1].meta, strange) == ({"tag": "counting", "include": include}, [])
    scored, left = ranked(folder)
    write(tmp_path / "ranked", scored, best(scored, 9, per_prompt=1), root=folder, rewards={"redness": {}}, left_out=[])
    copies = [json.loads(line) for line in (tmp_path / "ranked" / "best" / "metadata.jsonl").read_text().splitlines()]
    assert [(row["prompt_id"], row["file"]) for row in copies] == [
        ("00001", "00001/samples/00001.png"),
        ("00000", "00000/samples/00001.png"),
    ]
    assert (json.loads(copies[1]["meta"])["include"], left) == (include, [])
    assert len(gathered(folder / "00001")[0]) == 2, "one prompt's folder alone"


def test_what_is_wrong_in_one_folder_of_geneval_is_left_out_and_told(tmp_path: Path) -> None:
    folder = geneval(
        tmp_path / "out", {"prompt": "a cat"}, {"prompt": "a dog"}, {"prompt": "a fox"}, {"prompt": "an ox"}
    )
    (folder / "00001" / "metadata.jsonl").write_text("{")
    for path in (folder / "00002" / "samples").iterdir():
        path.unlink()
    (tmp_path / "elsewhere").mkdir()
    (folder / "00003" / "samples").rename(tmp_path / "elsewhere" / "samples")
    (folder / "00003" / "samples").symlink_to(tmp_path / "elsewhere" / "samples")
    found, left = gathered(folder)
    assert {one.caption for one in found} == {"a cat"}
    assert [sentence.partition(": ")[0] for sentence in left] == [
        f"{folder}/00001/metadata.jsonl:1",
        f"{folder}/00002/samples",
        f"{folder}/00003/samples",
    ]
    assert left[1].endswith("there is no picture of this prompt.")


def test_a_folder_within_may_have_a_table_of_its_own(tmp_path: Path) -> None:
    for name in ("one/a", "two/b", "c"):
        picture(tmp_path / f"{name}.png", 50)
    table(tmp_path / "two", {"file_name": "b.png", "caption": "a cat"})
    (tmp_path / "one" / "a.txt").write_text("a fox")
    assert [one.caption for one in gathered(tmp_path)[0]] == ["", "a fox", "a cat"]


def test_one_id_with_two_captions_is_two_prompts() -> None:
    two = [
        Found("1", "x", "a fox", b"", None),
        Found("2", "x", "a cat", b"", None),
        Found("3", "x", "a fox", b"", None),
    ]
    assert [prompt.id for _, prompt in titled(two)[0]] == ["a-fox", "a-cat", "a-fox"]


def test_the_best_may_be_limited_for_each_prompt() -> None:
    foxes, cats = (Prompt(name, name, name, name) for name in ("fox", "cat"))
    order = [(foxes, 5.0), (foxes, 4.0), (cats, 3.0), (foxes, 2.0), (cats, math.nan)]
    held = [Ranked(Found("", None, "", b"", None), prompt, total, {}) for prompt, total in order]
    assert [one.total for one in best(held, 3)] == [5.0, 4.0, 3.0]
    assert [one.total for one in best(held, 9)] == [5.0, 4.0, 3.0, 2.0]
    assert [one.total for one in best(held, 9, per_prompt=1)] == [5.0, 3.0]


def test_a_reward_that_tells_no_picture_from_another_is_found() -> None:
    def held(*scores: float) -> list[Ranked]:
        prompt = Prompt("a", "a", "a", "a")
        return [Ranked(Found("", None, "", b"", None), prompt, score, {"r": score}) for score in scores]

    assert constant(held(2.0, math.nan, 2.0), "r") == 2.0
    assert constant(held(2.0, math.nan), "r") is None, "one alone is no choice"
    assert constant(held(2.0, 2.0, 1.0), "r") is None


# what is written


@pytest.mark.parametrize(
    ("name", "copied"),
    [("猫 と 犬", "1-猫-と-犬"), ("Zu\u0308ge", "1-Zu\u0308ge"), ("猫" * 80, "1-" + "猫" * 53), ("(!)", "1-picture")],
)
def test_copies_keep_the_names_of_any_script(tmp_path: Path, name: str, copied: str) -> None:
    picture(tmp_path / "folder" / f"{name}.png", 50)
    scored, _ = ranked(tmp_path / "folder")
    write(tmp_path / "out", scored, scored, root=tmp_path / "folder", rewards={"redness": {}}, left_out=[])
    (row,) = map(json.loads, (tmp_path / "out" / "best" / "metadata.jsonl").read_text("utf-8").splitlines())
    assert row["file_name"] == f"{copied}.png"
    assert (tmp_path / "out" / "best" / row["file_name"]).is_file()


def test_tables_sheet_and_copies(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    for name, red in (("my train (1)", 90), ("b", 70), ("c", 50)):
        picture(folder / f"{name}.png", red)
    picture(folder / "green.png", 10, 200)
    rows = [{"file_name": f"{name}.png", "caption": f"=1, {name}"} for name in ("my train (1)", "b", "c")]
    scored, left = ranked(table(folder, *rows, {"file_name": "green.png", "caption": "g", "level": "hard"}))
    write(tmp_path / "out", scored, best(scored, 2), root=folder, rewards={"redness": {"type": "mine"}}, left_out=["x"])
    assert left == []
    with (tmp_path / "out" / "ranking.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["place"], line["file"]) for line in lines] == [
        ("1", "my train (1).png"),
        ("2", "b.png"),
        ("3", "c.png"),
        ("", "green.png"),
    ]
    record = json.loads((tmp_path / "out" / "ranking.json").read_text())
    assert [row["total"] for row in record["pictures"]] == [*(float(line["total"]) for line in lines[:3]), None]
    assert (record["rewards"], record["left_out"]) == ({"redness": {"type": "mine"}}, ["x"])
    told = [json.loads(line) for line in (tmp_path / "out" / "best" / "metadata.jsonl").read_text().splitlines()]
    assert [row["file_name"] for row in told] == ["1-my-train~-1.png", "2-b.png"]
    assert told[0]["reward_redness"] == told[0]["total"] == record["pictures"][0]["total"]
    for row, original in zip(told, ("my train (1)", "b"), strict=True):
        assert (tmp_path / "out" / "best" / row["file_name"]).read_bytes() == (folder / f"{original}.png").read_bytes()
    again = pictures.read(tmp_path / "out" / "best")  # as the sampler 'folder' does
    assert [(one.caption, one.id) for one in again] == [(row["caption"], row["prompt_id"]) for row in told]
    with Image.open(tmp_path / "out" / "sheet.png") as sheet:
        assert sheet.width > 2 * 128


def test_the_copies_are_an_imagefolder(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    for name in ("train", "b"):
        picture(tmp_path / "folder" / f"{name}.png", 50)
    scored, _ = ranked(tmp_path / "folder")
    write(tmp_path / "out", scored, best(scored, 9), root=tmp_path / "folder", rewards={"redness": {}}, left_out=[])
    where = {"data_dir": str(tmp_path / "out" / "best"), "cache_dir": str(tmp_path / "cache")}
    found = datasets.load_dataset("imagefolder", **where)
    assert list(found) == ["train"]
    assert sorted(found["train"]["place"]) == [1, 2]


def test_pictures_within_a_table_are_ranked_and_copied_too(tmp_path: Path) -> None:
    parquet, pyarrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    data = [{"bytes": picture(tmp_path / f"{red}.png", red).read_bytes(), "path": None} for red in (10, 90)]
    held = pyarrow.table({"image": data, "caption": ["a fox", "a cat"]})
    parquet.write_table(held, tmp_path / "p.parquet")
    scored, _ = ranked(tmp_path / "p.parquet")
    assert [one.prompt.caption for one in scored] == ["a cat", "a fox"]
    write(tmp_path / "out", scored, best(scored, 1), root=tmp_path, rewards={"redness": {}}, left_out=[])
    assert (tmp_path / "out" / "best" / "1.png").read_bytes() == data[1]["bytes"]


def test_nothing_stays_of_what_was_not_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "folder" / "a.png", 50)
    scored, _ = ranked(tmp_path / "folder")

    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("raftdiff.diffusion.found.written.sheet", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "out", scored, scored, root=tmp_path, rewards={"redness": {}}, left_out=[])
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_nobody_reads_a_caption_that_is_not_known() -> None:
    assert untitled(UNTITLED)
    with pytest.raises(UserError, match="no caption is known"):
        _ = UNTITLED.caption
