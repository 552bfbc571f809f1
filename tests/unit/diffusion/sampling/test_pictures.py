"""Folders and tables of pictures, as people and other programs keep them."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from raftdiff.diffusion.sampling.pictures import Found, asked, digest, read
from raftdiff.errors import UserError


def picture(path: Path, grey: int = 100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4, 3), grey, dtype=np.uint8)).save(path)
    return path


def table(path: Path, *rows: Mapping[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def told(found: list[Found]) -> list[tuple[str | None, str, str, float | None]]:
    """Without the marks in the ids of pairs."""
    ids = [one.id and re.sub("^pair-[0-9a-f]{6}-", "pair-", one.id) for one in found]
    names = [one.picture.name if isinstance(one.picture, Path) else "bytes" for one in found]
    return [(name, one.caption, file, one.score) for name, one, file in zip(ids, found, names, strict=True)]


def test_an_imagefolder(tmp_path: Path) -> None:
    picture(tmp_path / "one.png")
    picture(tmp_path / "in/two.jpg")
    rows = ({"file_name": "one.png", "text": " a cat "}, {"file_name": "in/two.jpg", "text": "a dog", "score": "3.5"})
    table(tmp_path / "metadata.jsonl", *rows)
    assert told(read(tmp_path)) == [(None, "a cat", "one.png", None), (None, "a dog", "two.jpg", 3.5)]


def test_the_samples_of_a_run_are_known_by_their_prompts(tmp_path: Path) -> None:
    picture(tmp_path / "cat-000.png")
    table(tmp_path / "metadata.jsonl", {"file_name": "cat-000.png", "caption": "a cat", "prompt_id": "cat", "total": 2})
    assert told(read(tmp_path, score="total")) == [("cat", "a cat", "cat-000.png", 2.0)]


def test_captions_in_text_files(tmp_path: Path) -> None:
    for name, words in (("b", "\ufeff\n a dog\nignored\n"), ("a", "a cat")):
        picture(tmp_path / f"{name}.webp")
        (tmp_path / f"{name}.txt").write_text(words, encoding="utf-8")
    assert told(read(tmp_path)) == [(None, "a cat", "a.webp", None), (None, "a dog", "b.webp", None)]


def test_a_link_that_leads_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    picture(tmp_path / "secret.png")
    (tmp_path / "secret.txt").write_text("a secret")
    folder = tmp_path / "in"
    picture(folder / "a.png")
    (folder / "a.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(UserError, match=r"a\.txt lies outside of .*in, and is not opened"):
        read(folder)
    (folder / "a.png").unlink()
    (folder / "a.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(UserError, match=r"a\.png lies outside of"):
        read(folder)


@pytest.mark.parametrize(("better", "worse"), [("chosen", "rejected"), ("win", "lose")])
def test_folders_of_pairs(tmp_path: Path, better: str, worse: str) -> None:
    for name in ("x", "y"):
        picture(tmp_path / better / f"{name}.png")
        picture(tmp_path / worse / f"{name}.jpg")
        (tmp_path / better / f"{name}.txt").write_text("a cat")
    assert told(read(tmp_path)) == [
        ("pair-00000", "a cat", "x.png", 1.0),
        ("pair-00000", "a cat", "x.jpg", 0.0),
        ("pair-00001", "a cat", "y.png", 1.0),
        ("pair-00001", "a cat", "y.jpg", 0.0),
    ]


def test_what_people_labelled_lies_within_the_run(tmp_path: Path) -> None:
    for name in ("cat-000.png", "cat-001.png"):
        picture(tmp_path / "run/rounds/000/samples" / name)
    row = {
        "rater": "ada",
        "caption": "a cat",
        **{
            f"{side}_file_name": f"rounds/000/samples/cat-00{place}.png"
            for side, place in (("chosen", 1), ("rejected", 0))
        },
    }
    file = table(tmp_path / "prefs.jsonl", row)
    found = read(file, root=tmp_path / "run")
    assert told(found) == [("pair-00000", "a cat", "cat-001.png", 1.0), ("pair-00000", "a cat", "cat-000.png", 0.0)]
    with pytest.raises(UserError, match=r"prefs.jsonl:1: there is no picture 'rounds/000/samples/cat-001.png' in"):
        read(file)


def test_pick_a_pic(tmp_path: Path) -> None:
    """Bytes in Parquet; the higher label is the better, equal ones are a tie."""
    import pandas

    cells = [(tmp_path / "x.png", grey) for grey in (10, 200)]
    dark, light = (picture(*cell).read_bytes() for cell in cells)
    rows = [
        {"caption": "a cat", "jpg_0": dark, "jpg_1": light, "label_0": 0.0, "label_1": 1.0},
        {"caption": "a tie", "jpg_0": dark, "jpg_1": light, "label_0": 0.5, "label_1": 0.5},
        {"caption": "a dog", "jpg_0": dark, "jpg_1": light, "label_0": 1.0, "label_1": 0.0},
    ]
    pandas.DataFrame(rows).to_parquet(tmp_path / "shard.parquet")
    found = read(tmp_path / "shard.parquet")
    assert [(one.caption, one.picture, one.score) for one in found] == [
        ("a cat", light, 1.0),
        ("a cat", dark, 0.0),
        ("a dog", dark, 1.0),
        ("a dog", light, 0.0),
    ]


def test_pictures_as_datasets_keeps_them(tmp_path: Path) -> None:
    import pandas

    one = picture(tmp_path / "x.png").read_bytes()
    rows = [{"prompt": "a cat", "chosen": {"bytes": one, "path": "x.png"}, "rejected": {"bytes": one, "path": None}}]
    pandas.DataFrame(rows).to_parquet(tmp_path / "metadata.parquet")
    assert told(read(tmp_path)) == [("pair-00000", "a cat", "bytes", 1.0), ("pair-00000", "a cat", "bytes", 0.0)]


def test_every_prompt_is_asked_once_and_every_pair_by_itself(tmp_path: Path) -> None:
    single = Found("", None, "a cat", b"", None)
    pair = [Found("", f"pair-{number}", "a cat", b"", score) for number in (0, 1) for score in (1.0, 0.0)]
    assert asked([single, single, *pair]) == [
        {"caption": "a cat"},
        {"id": "pair-0", "caption": "a cat"},
        {"id": "pair-1", "caption": "a cat"},
    ]


def test_the_checksum_is_of_all_that_is_learnt_from(tmp_path: Path) -> None:
    one = Found("here", None, "a cat", picture(tmp_path / "x.png"), None)
    same = digest([one._replace(where="there", picture=(tmp_path / "x.png").read_bytes())])
    assert digest([one]) == same
    changed = [
        one._replace(caption="a dog"),
        one._replace(score=0.0),
        one._replace(picture=picture(tmp_path / "y.png", 3)),
    ]
    assert len({digest([it]) for it in (one, *changed)}) == 4


def test_pairs_of_two_sets_are_told_apart_and_a_moved_set_is_the_same(tmp_path: Path) -> None:
    ids = []
    for name in ("one", "two", "moved"):
        for grey in (10, 20):
            picture(tmp_path / name / f"{grey + (name == 'two')}.png", grey)
        first, second = sorted((tmp_path / name).glob("*.png"))
        row = {"caption": "a cat", "chosen": first.name, "rejected": second.name}
        ids.append({one.id for one in read(table(tmp_path / name / "pairs.jsonl", row))})
    assert len(ids[0]) == 1
    assert ids[0] != ids[1]
    assert ids[0] == ids[2]


def test_truths_as_words_are_labels(tmp_path: Path) -> None:
    """As pandas writes them."""
    for name in ("x", "y"):
        picture(tmp_path / f"{name}.png")
    (tmp_path / "pairs.csv").write_text("image_0,image_1,prefer_0,prefer_1,text\nx.png,y.png,False,True,a cat\n")
    assert [(name, score) for *_, name, score in told(read(tmp_path / "pairs.csv"))] == [("y.png", 1.0), ("x.png", 0.0)]


def test_what_is_missing_in_a_table_is_no_word_on_a_picture(tmp_path: Path) -> None:
    picture(tmp_path / "x.png")
    (tmp_path / "metadata.csv").write_text("file_name,text,score\nx.png,a cat,nan\nx.png,a dog,\nx.png,a bus,2\n")
    assert [one.score for one in read(tmp_path)] == [None, None, 2.0]


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"jpg_0": "x.png", "jpg_1": "x.png", "label_0": "nan", "label_1": 1, "text": "a"}, "'label_0' is missing"),
        ({"file_name": "x.png", "text": "a cat", "score": "inf"}, "'score' is infinite"),
        ({"text": "a cat"}, "metadata.jsonl:1: this row names no picture; write it as 'file_name'"),
        ({"file_name": "x.png"}, "metadata.jsonl:1: this row has no caption; write it as 'caption'"),
        ({"file_name": "x.png", "text": 3}, "metadata.jsonl:1: this row has no caption"),
        ({"file_name": "y.png", "text": "a cat"}, "there is no picture 'y.png' in"),
        ({"file_name": "../x.png", "text": "a cat"}, "'../x.png' lies outside of"),
        ({"file_name": "link.png", "text": "a cat"}, "'link.png' lies outside of"),
        ({"file_name": 7, "text": "a cat"}, "'7' is neither a picture nor the name of one"),
        ({"file_name": "x.png", "text": "a cat", "score": "good"}, "'score' is 'good', which is no number"),
        ({"chosen": "x.png", "rejected": "", "text": "a cat"}, "one of the pair's pictures is missing"),
        ({"image_0": "x.png", "image_1": "x.png", "prefer_0": True, "text": "a"}, "'prefer_1' is missing"),
        ({"jpg_0": "x.png", "jpg_1": "x.png", "label_0": 1, "label_1": 1, "text": "a"}, "every row is a tie"),
    ],
)
def test_a_row_that_says_nothing_is_a_sentence(tmp_path: Path, row: Mapping[str, Any], sentence: str) -> None:
    (tmp_path / "in").mkdir()
    picture(tmp_path / "x.png")
    picture(tmp_path / "in/x.png")
    (tmp_path / "in/link.png").symlink_to(tmp_path / "x.png")
    table(tmp_path / "in/metadata.jsonl", row)
    with pytest.raises(UserError, match=sentence.replace(".", r"\.")):
        read(tmp_path / "in")


def test_a_folder_that_says_nothing_is_a_sentence(tmp_path: Path) -> None:
    picture(tmp_path / "one.png")
    with pytest.raises(UserError, match="there are no pictures with captions here. It can be a folder with metadata"):
        read(tmp_path)
    picture(tmp_path / "two.png")
    (tmp_path / "two.txt").write_text("a cat")
    with pytest.raises(UserError, match="one.png: this picture has no caption, as others have; write it into one.txt"):
        read(tmp_path)
    picture(tmp_path / "chosen/a.png")
    (tmp_path / "rejected").mkdir()
    with pytest.raises(UserError, match=r"chosen: 'a' has no partner of its name in .*rejected"):
        read(tmp_path)
    picture(tmp_path / "rejected/a.png")
    picture(tmp_path / "rejected/a.jpg")
    with pytest.raises(UserError, match=r"a.png: a.jpg has the same name, and only one of them can be one of a pair"):
        read(tmp_path)
    (tmp_path / "rejected/a.jpg").unlink()
    with pytest.raises(UserError, match="a.png: this picture has no caption; write it into a.txt beside it"):
        read(tmp_path)
