"""Pictures and texts on disk: what goes into a round comes out of it, aux tensors too, to the bit."""

import io
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from raftdiff.errors import UserError
from raftdiff.recipes.config import Config
from raftdiff.records.beginning import fork
from raftdiff.records.media import file_name, is_whole, keep, kept, opened, png, prompt_of, store, tensor_file
from raftdiff.records.rounds import Draft
from raftdiff.records.run import Run
from raftdiff.types import Item, Key, Prompt, Sample, Scores, Selection

META = {
    "system": "Be kind.",
    "history": [{"role": "user", "content": "é\n"}],
    "answers": [{"text": "yes", "score": 0.5}],
    "reference": ["a", "b"],
}
TEXTS = ["two\nlines", "", '"quoted" \\ and a tab\t', "emoji 🙂 and é", "a\u2028b\x85c\x0cd", "{not json"]


class Toy(Config):
    name: str = "toy"
    logging: str = "x"


def prompt(name: str, **meta: Any) -> Prompt:
    return Prompt(name, f"ask {name}", f"ask {name}, kindly", f"ask {name}", meta=meta)


def text(name: str, index: int, said: str, **meta: Any) -> Sample[str]:
    tokens = torch.arange(index + 1, dtype=torch.int64) + 50_000
    logprobs = torch.linspace(-3, -1 / 3, index + 1)
    return Sample(
        0, prompt(name, **meta), index, 2**62 + index, "policy", said, {"tokens": tokens, "logprobs": logprobs}
    )


def picture(name: str, index: int) -> Sample[Image.Image]:
    image = Image.new("RGB", (4, 4), (index, 20, 30))
    return Sample(0, prompt(name), index, 7, "teacher", image, {"latent": torch.full((2, 2), float(index))})


def same(found: Sample[Any], expected: Sample[Any]) -> None:
    assert (found.key, found.prompt, found.seed, found.source) == (
        expected.key,
        expected.prompt,
        expected.seed,
        expected.source,
    )
    if isinstance(expected.media, str):
        assert found.media == expected.media
    else:
        assert found.media.tobytes() == expected.media.tobytes()
    assert found.aux.keys() == expected.aux.keys()
    for name, tensor in expected.aux.items():
        assert found.aux[name].dtype == tensor.dtype
        assert torch.equal(found.aux[name], tensor)


def fill(draft: Draft, samples: list[Sample[Any]], *, at_once: int = 2) -> Draft:
    for place, sample in enumerate(samples, 1):
        draft.add(sample)
        if place % at_once == 0:
            draft.flush()
    draft.flush()
    return draft


def finish(draft: Draft, rows: int, columns: int) -> None:
    names = tuple(dict.fromkeys(row["prompt_id"] for row in draft.folder.rows()))
    draft.write_scores(Scores(0, names, np.arange(rows * columns, dtype=float).reshape(rows, columns), {}))
    draft.write_selection(Selection("weighted", (Item((Key(0, names[0], 1),)),)))
    draft.commit({"adapter": {"w": torch.ones(2)}})


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "run", Toy(), seed=3)


@pytest.fixture
def texts() -> list[Sample[str]]:
    told = {"a": META, "b": {}}
    return [text(name, index, TEXTS[3 * (name == "b") + index], **told[name]) for name in told for index in range(3)]


PICTURES = [picture(name, index) for name in "ab" for index in range(3)]


def decoded(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as found:
        found.load()
        return found


@pytest.mark.parametrize("side", [(1, 1), (1, 5), (7, 1), (16, 9), (64, 64)])
def test_a_picture_of_any_size_is_packed_to_the_bit(side: tuple[int, int]) -> None:
    width, height = side
    random = np.random.default_rng(width)
    for most in (2, 256):
        image = Image.fromarray(random.integers(0, most, (height, width, 3), dtype=np.uint8) * (255 // (most - 1)))
        found = decoded(png(image))
        assert (found.format, found.mode, found.size, found.info) == ("PNG", "RGB", side, {})
        assert found.tobytes() == image.tobytes()


def test_other_modes_and_colour_profiles_are_kept_as_they_are() -> None:
    random = np.random.default_rng(0)
    for mode, shape in (("L", (5, 6)), ("RGBA", (5, 6, 4))):
        image = Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8))
        assert image.mode == mode
        assert decoded(png(image)).tobytes() == image.tobytes()
    profiled = Image.new("RGB", (4, 4), (1, 2, 3))
    profiled.info["icc_profile"] = b"of a camera"
    assert decoded(png(profiled)).info["icc_profile"] == b"of a camera"


def test_pictures_are_packed_about_as_small_as_by_pillow() -> None:
    """A slope with grain, of which runs alone are packed."""
    random, slope = np.random.default_rng(0), np.linspace(0, 200, 96)
    grain = random.normal(0, 1, (96, 96, 3))
    image = Image.fromarray((slope[:, None, None] / 2 + slope[None, :, None] / 2 + grain + 20).astype(np.uint8))
    image.save(by_pillow := io.BytesIO(), "png", compress_level=1)
    data = png(image)
    assert len(data) < 1.02 * len(by_pillow.getvalue())
    assert zlib.crc32(data[12:29]) == int.from_bytes(data[29:33])


@pytest.mark.parametrize("kind", ["texts", "pictures"])
def test_samples_come_back_from_an_unfinished_round_and_from_a_finished_one(run, texts, kind):
    samples = texts if kind == "texts" else PICTURES
    draft = fill(run.draft(0), samples)
    for found, expected in zip(draft.folder.samples(), samples, strict=True):
        same(found, expected)
    finish(draft, 2, 3)
    folder = run.round(0)
    for found, expected in zip(folder.samples(), samples, strict=True):
        same(found, expected)
    for batch, expected in zip(folder.batches(4), (samples[:3], samples[3:]), strict=True):
        for one, other in zip(batch, expected, strict=True):
            same(one, other)
    (chosen,) = folder.samples([Key(0, "b", 2)])
    same(chosen, samples[5])


def test_the_candidates_of_a_prompt_come_in_one_batch_however_they_were_drawn(run):
    """As a mixture draws them, source by source, or a resumed run what was torn."""
    drawn = [picture(name, index) for index in (1, 0, 2) for name in "abc"]
    folder = fill(run.draft(0), drawn).folder
    wanted = {name: [f"{name}{index}" for index in range(3)] for name in "abc"}
    for size, names in ((3, ["a", "b", "c"]), (4, ["a", "b", "c"]), (7, ["ab", "c"]), (1, ["a", "b", "c"])):
        batches = [[f"{one.prompt.id}{one.index}" for one in batch] for batch in folder.batches(size)]
        assert batches == [[key for name in several for key in wanted[name]] for several in names], size


def test_a_round_of_texts_has_no_pictures_and_its_tensors_are_called_tokens(run, texts):
    finish(fill(run.draft(0), texts), 2, 3)
    names = {str(path.relative_to(run.round_path(0))) for path in run.round_path(0).rglob("*") if path.is_file()}
    assert {"samples/metadata.jsonl", "tokens.safetensors"} <= names
    assert "latents.safetensors" not in names
    assert not [name for name in names if name.endswith(".png")]
    assert not (run.round_path(0) / "tokens").exists()


def test_a_round_of_texts_without_tensors_has_no_file_for_them(run):
    said = [Sample(0, prompt("a"), index, 0, "human", "yes", {}) for index in range(2)]
    finish(fill(run.draft(0), said), 1, 2)
    assert not list(run.round_path(0).glob("*.safetensors"))
    for found, expected in zip(run.round(0).samples(), said, strict=True):
        same(found, expected)


@pytest.mark.parametrize("kind", ["texts", "pictures"])
def test_a_line_cut_short_by_a_kill_is_drawn_again_and_nothing_else(run, texts, kind):
    samples = texts if kind == "texts" else PICTURES
    file = fill(run.draft(0), samples[:4]).path / "samples" / "metadata.jsonl"
    whole = file.read_text()
    file.write_text(whole[:-30])
    again = run.draft(0)
    assert again.sampled() == {("a", 0), ("a", 1), ("a", 2)}
    assert file.read_text() == "".join(whole.splitlines(keepends=True)[:3])
    fill(again, samples[3:])
    assert len(again.folder.rows()) == 6
    for found, expected in zip(again.folder.samples(), samples, strict=True):
        same(found, expected)


def test_a_line_that_lacks_its_newline_alone_still_counts(run, texts):
    """The kill came between a line and its end."""
    draft = fill(run.draft(0), texts[:2])
    file = draft.path / "samples" / "metadata.jsonl"
    file.write_text(file.read_text()[:-1])
    again = run.draft(0)
    assert again.sampled() == {("a", 0), ("a", 1)}
    fill(again, texts[2:])
    for found, expected in zip(again.folder.samples(), texts, strict=True):
        same(found, expected)


def test_a_sample_that_is_written_twice_counts_once_with_its_newest_tensors(run, texts):
    draft = fill(run.draft(0), texts)
    newer = text("a", 0, "newer", **META)
    newer = Sample(0, newer.prompt, 0, newer.seed, "policy", "newer", {"tokens": torch.tensor([9, 9, 9])})
    fill(draft, [newer])
    (found,) = draft.folder.samples([Key(0, "a", 0)])
    assert found.media == "newer"
    assert found.aux["tokens"].tolist() == [9, 9, 9]
    assert len(draft.folder.rows()) == 6


def test_a_fork_takes_texts_and_tensors_along(run, texts, tmp_path):
    finish(fill(run.draft(0), texts), 2, 3)
    child = fork(run, Toy(logging="elsewhere"), tmp_path / "child", round=0, seed=3)
    draft = child.draft(0)
    assert draft.sampled() == {(name, index) for name in "ab" for index in range(3)}
    assert "total" not in draft.folder.rows()[0]
    for found, expected in zip(draft.folder.samples(), texts, strict=True):
        same(found, expected)
    finish(draft, 2, 3)
    same(child.round(0).samples([Key(0, "b", 1)])[0], texts[4])


def test_metadata_of_texts_is_read_by_the_library_of_data_sets(run, texts, tmp_path):
    datasets = pytest.importorskip("datasets")
    finish(fill(run.draft(0), texts), 2, 3)
    file = str(run.round_path(0) / "samples" / "metadata.jsonl")
    read = datasets.load_dataset("json", data_files=file, split="train", cache_dir=str(tmp_path / "cache"))
    assert read["text"] == TEXTS
    assert read["total"] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert read["selected"] == [False, True, False, False, False, False]
    assert read["seed"][1] == 2**62 + 1
    assert json.loads(read[0]["meta"])["system"] == "Be kind."


def test_metadata_of_pictures_is_an_image_folder_for_the_library_of_data_sets(run, tmp_path):
    datasets = pytest.importorskip("datasets")
    finish(fill(run.draft(0), PICTURES), 2, 3)
    folder = str(run.round_path(0) / "samples")
    read = datasets.load_dataset("imagefolder", data_dir=folder, split="train", cache_dir=str(tmp_path / "cache"))
    by_name = {(row["prompt_id"], row["index"]): row["image"].getpixel((0, 0)) for row in read}
    assert by_name == {(one.prompt.id, one.index): (one.index, 20, 30) for one in PICTURES}


def test_samples_that_are_only_looked_at_are_kept_as_pictures_or_as_lines(tmp_path):
    keep(tmp_path / "texts", [text("a", 0, "é\nno"), text("b", 0, "")])
    rows = [json.loads(line) for line in (tmp_path / "texts" / "texts.jsonl").read_text("utf-8").split("\n") if line]
    assert rows == [{"prompt": "ask a", "text": "é\nno"}, {"prompt": "ask b", "text": ""}]
    keep(tmp_path / "texts", [text("a", 0, "again")])  # a stage that is done again
    assert (tmp_path / "texts" / "texts.jsonl").read_text().count("\n") == 1
    keep(tmp_path / "pictures", PICTURES[:2])
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == ["a-000.png", "a-001.png"]


def test_what_was_kept_is_found_by_name_and_several_texts_of_a_prompt_are_numbered(tmp_path):
    keep(tmp_path / "texts", [text("a", 0, "é\nno"), text("b", 0, ""), text("a", 1, "yes")])
    assert kept(tmp_path / "texts") == {"ask a": "é\nno", "ask b": "", "ask a (2)": "yes"}
    keep(tmp_path / "pictures", PICTURES[:2])
    assert kept(tmp_path / "pictures") == {name: tmp_path / "pictures" / name for name in ("a-000.png", "a-001.png")}
    assert kept(tmp_path / "nothing") == {}


def test_a_text_is_always_whole_and_a_picture_may_not_be(tmp_path):
    assert is_whole(tmp_path, {"text": ""})
    assert opened(tmp_path, {"text": ""}) == ""
    row = store(tmp_path, PICTURES[1])
    assert row == {"file_name": "a-001.png"}
    assert is_whole(tmp_path, row)
    file = tmp_path / "a-001.png"
    file.write_bytes(file.read_bytes()[:50])  # within the pixels
    assert not is_whole(tmp_path, row)
    with pytest.raises(UserError, match="a-001.png: this picture is damaged .* 'raftdiff sample' draws it again;"):
        opened(tmp_path, row)
    file.unlink()
    assert not is_whole(tmp_path, row)
    with pytest.raises(FileNotFoundError):
        opened(tmp_path, row)


def test_a_prompt_id_that_cannot_name_a_file_is_refused_for_pictures(tmp_path):
    for name in ("../up", ".hidden", "a b", ""):
        with pytest.raises(UserError, match="The prompt id '.*' cannot name a file; use letters, digits"):
            file_name(Sample(0, prompt(name), 0, 0, "policy", PICTURES[0].media))
    assert tensor_file(PICTURES[0]) == "latents"
    assert tensor_file(text("../up", 0, "x")) == "tokens"


CAPTIONS = ["a-train-in-the-snow", "test", "a-dev", "Train.2-valid_eval", "training-grounds", "the-trainer", "a-cat"]


def test_pictures_whose_captions_name_a_split_load_with_all_their_metadata(tmp_path):
    datasets = pytest.importorskip("datasets")
    run = Run.create(tmp_path / "run", Toy(), seed=3)
    draft = fill(run.draft(0), [picture(name, index) for name in CAPTIONS for index in (0, 3)])
    found = datasets.load_dataset(
        "imagefolder", data_dir=str(draft.path / "samples"), cache_dir=str(tmp_path / "cache")
    )
    assert list(found) == ["train"]
    assert sorted(set(found["train"]["prompt_id"])) == sorted(CAPTIONS)
    assert len(found["train"]) == 2 * len(CAPTIONS)
    assert [prompt_of(row["file_name"]) for row in draft.folder.rows()] == [name for name in CAPTIONS for _ in "03"]


def test_extras_of_mixed_type_and_empty_ones_are_a_table(tmp_path):
    datasets = pytest.importorskip("datasets")
    run = Run.create(tmp_path / "run", Toy(), seed=3)
    extras: list[dict[str, Any]] = [{"level": 1}, {"level": "hard", "tags": {}}, {}, {"level": None, "tags": [1, "a"]}]
    image = Image.new("RGB", (4, 4))
    samples = [Sample(0, prompt(f"p{place}", **meta), 0, 7, "policy", image, {}) for place, meta in enumerate(extras)]
    draft = fill(run.draft(0), samples)
    assert [sample.prompt.meta for sample in draft.folder.samples()] == extras
    found = datasets.load_dataset(
        "imagefolder", data_dir=str(draft.path / "samples"), cache_dir=str(tmp_path / "cache")
    )["train"]
    found.to_parquet(str(tmp_path / "table.parquet"))
    told = [json.loads(text) if text else {} for text in found["meta"]]
    assert dict(zip(found["prompt_id"], told, strict=True)) == {f"p{k}": meta for k, meta in enumerate(extras)}


def test_extras_that_an_earlier_version_wrote_as_objects_are_read_and_written_anew(run, texts):
    draft = fill(run.draft(0), texts)
    file = draft.path / "samples" / "metadata.jsonl"
    rows = draft.folder.rows()
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [sample.prompt.meta for sample in draft.folder.samples()][:3] == [META] * 3
    draft.write_rows(draft.folder.rows())
    assert draft.folder.rows() == rows
    assert {type(json.loads(line).get("meta", "")) for line in file.read_text().splitlines()} == {str}
