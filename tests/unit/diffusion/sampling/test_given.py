"""Pictures that are there already, as candidates."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from raftdiff.diffusion.models.loaded import Parts
from raftdiff.diffusion.models.loading import ModelConfig, load
from raftdiff.diffusion.models.pictures import decode, encode
from raftdiff.diffusion.sampler import DiffusionSamplerConfig
from raftdiff.diffusion.sampling.given import FolderSampler, FolderSamplerConfig
from raftdiff.errors import UserError
from raftdiff.recipes.prompts import PromptsConfig, build
from raftdiff.rewards.given import GivenReward


@pytest.fixture(scope="module")
def parts(models: dict[str, Path]) -> Parts:
    return load(ModelConfig(base=str(models["sd15"]), device="cpu"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures of a cat and one of a dog, wide ones."""
    rows = [("a cat", 10), ("a dog", 60), ("a cat", 120), ("a cat", 240)]
    for place, (_, grey) in enumerate(rows):
        pixels = np.full((20, 40, 3), grey, dtype=np.uint8)
        pixels[:, :6], pixels[:, 34:] = (255, 0, 0), (0, 0, 255)  # what is cut off
        Image.fromarray(pixels).save(tmp_path / f"{place}.png")
    lines = [{"file_name": f"{place}.png", "text": words, "score": grey} for place, (words, grey) in enumerate(rows)]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def sampler(folder: Path, parts: Parts, **keys: object) -> FolderSampler:
    return FolderSamplerConfig(path=str(folder), **keys).build(parts)  # type: ignore[arg-type]


def drawn(sampler: FolderSampler, *captions: str, per_prompt: int = 4, done: frozenset = frozenset()) -> list:
    prompts = build(PromptsConfig(captions=list(captions)))
    return list(sampler.sample(prompts, per_prompt=per_prompt, seed=0, round=3, done=done))


def test_candidates_are_the_pictures_of_the_caption(folder: Path, parts: Parts) -> None:
    found = drawn(sampler(folder, parts), "a cat", "a dog", "a bird", per_prompt=2)
    assert [(one.prompt.caption, one.index, one.round, one.source) for one in found] == [
        ("a cat", 0, 3, "dataset"),
        ("a cat", 1, 3, "dataset"),
        ("a dog", 0, 3, "dataset"),
    ]
    assert GivenReward().score(found).tolist() == [10, 120, 60]
    size = parts.size
    assert {one.media.size for one in found} == {(size[1], size[0])}
    greys = [np.asarray(one.media) for one in found]
    assert [(it.min(), it.max()) for it in greys] == [(10, 10), (120, 120), (60, 60)]  # the middle, as high as it was


def test_the_latent_is_what_the_vae_says_of_the_picture(folder: Path, parts: Parts) -> None:
    found = drawn(sampler(folder, parts), "a cat")
    pixels = torch.from_numpy(np.array(found[2].media)).permute(2, 0, 1)[None].float() / 127.5 - 1
    said = parts.vae.encode(pixels).latent_dist.mode()[0] * parts.vae.config.scaling_factor
    torch.testing.assert_close(found[2].aux["latent"], said, atol=1e-4, rtol=1e-4)  # another batch
    drawn_size = decode(parts, found[2].aux["latent"][None], 1)[0].size
    assert drawn_size == found[2].media.size


def test_what_is_done_is_not_given_again_and_changes_nothing_else(folder: Path, parts: Parts) -> None:
    small = DiffusionSamplerConfig(batch_size=2)
    whole = drawn(sampler(folder, parts, drawing=small), "a cat", "a dog")
    rest = drawn(sampler(folder, parts, drawing=small), "a cat", "a dog", done=frozenset({("a-cat", 0), ("a-cat", 2)}))
    left = [one for one in whole if (one.prompt.id, one.index) not in {("a-cat", 0), ("a-cat", 2)}]
    assert [one.key for one in rest] == [one.key for one in left]
    assert all(torch.equal(one.aux["latent"], two.aux["latent"]) for one, two in zip(rest, left, strict=True))


def test_a_size_of_its_own(folder: Path, parts: Parts) -> None:
    side = parts.size[0] * 2
    found = drawn(sampler(folder, parts, drawing=DiffusionSamplerConfig(height=side, width=side)), "a dog")
    assert found[0].media.size == (side, side)
    assert found[0].aux["latent"].shape[-1] * parts.vae_factor == side


def test_the_score_is_of_the_folder_alone(folder: Path, parts: Parts) -> None:
    lines = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    lines[0]["score"] = None
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    bare = drawn(sampler(folder, parts), "a cat")
    assert np.isnan(GivenReward().score(bare).numpy()).tolist() == [True, False, False]
    with pytest.raises(UserError, match=r"no row has a column 'scoer' \(sampler.score\). Did you mean 'score'\?"):
        sampler(folder, parts, score="scoer")


def test_pictures_beyond_the_candidates_are_told(folder: Path, parts: Parts) -> None:
    prompts = build(PromptsConfig(captions=["a cat", "a dog"]))
    with pytest.warns(UserWarning, match="1 picture beyond the first 2 of a prompt will not be looked at"):
        sampler(folder, parts).check(prompts, 2)
    with pytest.raises(UserError, match="has a picture for not one of the 1 prompts"):
        sampler(folder, parts).check(build(PromptsConfig(captions=["a bird"])), 2)


def test_prompts_that_cannot_be_answered_are_told(folder: Path, parts: Parts) -> None:
    prompts = build(PromptsConfig(captions=["a cat", "a bird"]))
    with pytest.warns(UserWarning, match="no picture is there of 1 prompt of 2, such as 'a bird'"):
        sampler(folder, parts).check(prompts, 4)
    with pytest.raises(UserError, match="a round may be left with nothing, for 1 of the prompts have no"):
        sampler(folder, parts).check(prompts, 4, alone=True)


def test_a_pair_is_asked_by_itself_alone(folder: Path, parts: Parts) -> None:
    line = {"caption": "a cat", "chosen": "0.png", "rejected": "1.png"}
    (folder / "pairs.jsonl").write_text(json.dumps(line))
    with pytest.raises(UserError, match="every pair of '.*' is a prompt of its own; leave the recipe's prompts out"):
        sampler(folder / "pairs.jsonl", parts).check(build(PromptsConfig(captions=["a cat"])), 2)


def test_a_picture_held_as_bytes_is_turned_as_a_file_is(tmp_path: Path, parts: Parts) -> None:
    import pandas

    picture, mark = Image.new("RGB", (40, 20), "red"), Image.Exif()
    picture.paste("blue", (0, 0, 20, 20))
    mark[0x0112] = 6
    picture.save(tmp_path / "x.jpg", exif=mark, quality=95)
    cell = {"text": "a cat", "jpg": (tmp_path / "x.jpg").read_bytes()}
    pandas.DataFrame([cell, {**cell, "text": "a dog", "jpg": b"none"}]).to_parquet(tmp_path / "all.parquet")
    (tmp_path / "x.txt").write_text("a cat")
    table, files = (sampler(path, parts) for path in (tmp_path / "all.parquet", tmp_path))
    assert drawn(table, "a cat")[0].media.tobytes() == drawn(files, "a cat")[0].media.tobytes()
    with pytest.raises(UserError, match="all.parquet: row 2: this is no whole picture"):
        drawn(table, "a dog")


def test_other_pictures_than_the_run_began_with_are_refused(folder: Path, parts: Parts) -> None:
    config = FolderSamplerConfig(path=str(folder)).sealed(Path())
    config.build(parts)
    Image.new("RGB", (8, 8), "green").save(folder / "3.png")
    with pytest.raises(UserError, match="are not those that the run began with"):
        config.build(parts)


def test_a_damaged_picture_is_a_sentence(folder: Path, parts: Parts) -> None:
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:60])
    with pytest.raises(UserError, match=r"1\.png: this is no whole picture"):
        drawn(sampler(folder, parts), "a dog")
    with pytest.raises(UserError, match="sampler.path: there is no file or folder 'nowhere'"):
        sampler(Path("nowhere"), parts)


def test_encoding_does_not_depend_on_the_batch(parts: Parts) -> None:
    side = parts.size[0]
    noise = np.random.default_rng(0).integers(0, 256, (3, side, side, 3), dtype=np.uint8)
    pictures = [Image.fromarray(one) for one in noise]
    torch.testing.assert_close(encode(parts, pictures, 3), encode(parts, pictures, 1))


SIZES = [(16, 16), (24, 12), (12, 24)]


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    """Of height and width 20 x 40, 40 x 20, 8 x 8 and 30 x 30, the second lying on its side by its mark."""
    for place, (high, wide) in enumerate([(20, 40), (20, 40), (8, 8), (30, 30)]):
        pixels = np.full((high, wide, 3), 50 * place, dtype=np.uint8)
        mark = Image.Exif()
        mark[0x0112] = 6 if place == 1 else 1
        Image.fromarray(pixels).save(tmp_path / f"{place}.png", exif=mark)
        (tmp_path / f"{place}.txt").write_text("a cat")
    return tmp_path


def test_pictures_go_to_the_nearest_shape(shapes: Path, parts: Parts) -> None:
    small = DiffusionSamplerConfig(sizes=SIZES, batch_size=2)
    found = {one.index: one for one in drawn(sampler(shapes, parts, drawing=small), "a cat")}
    assert [found[index].media.size for index in range(4)] == [(24, 12), (12, 24), (16, 16), (16, 16)]
    assert all(np.asarray(one.media).max() == 50 * index for index, one in found.items())
    shaped = {tuple(side * parts.vae_factor for side in one.aux["latent"].shape[1:]) for one in found.values()}
    assert shaped == {(high, wide) for wide, high in SIZES}
    assert [found[index].aux["frame"].tolist() for index in range(4)] == [
        [20, 40, 0, 0],
        [40, 20, 0, 0],
        [8, 8, 0, 0],
        [30, 30, 0, 0],
    ]
    assert "frame" not in drawn(sampler(shapes, parts), "a cat")[0].aux  # of one size all is told as it was


def test_what_is_cut_off_and_enlarged_is_told(shapes: Path, parts: Parts) -> None:
    prompts = build(PromptsConfig(captions=["a cat"]))
    several = sampler(shapes, parts, drawing=DiffusionSamplerConfig(sizes=[(16, 16), (24, 16)]))
    (note,) = several.notes(prompts, 4)
    assert note.splitlines() == [
        f"sampler.path: 4 pictures of '{shapes}' are scaled and cut in the middle.",
        "  sizes: 16x16 3, 24x16 1",
        f"  19% of a picture is cut off on average, at most 50%, of {shapes / '1.png'} (20x40 to 16x16)",
        f"  smaller than that, and so enlarged: 1 picture, such as {shapes / '2.png'} (8x8 to 16x16)",
    ]
    (note,) = sampler(shapes, parts).notes(prompts, 1)
    assert note.splitlines()[1:] == [
        f"  50% of a picture is cut off on average, at most 50%, of {shapes / '0.png'} (40x20 to 16x16)"
    ]
    frames = [one.aux["frame"].tolist() for one in drawn(several, "a cat")]
    assert sorted(frames) == [[8, 8, 0, 0], [20, 40, 0, 4], [30, 30, 0, 0], [40, 20, 8, 0]]
    (shapes / "3.png").write_bytes(b"none")
    with pytest.raises(UserError, match=r"3\.png: this is no picture"):
        sampler(shapes, parts, drawing=DiffusionSamplerConfig(sizes=SIZES)).notes(prompts, 4)


def test_pictures_that_are_compared_in_pairs_have_one_size(shapes: Path, parts: Parts) -> None:
    config = FolderSamplerConfig(path=str(shapes), drawing=DiffusionSamplerConfig(sizes=SIZES))
    found = drawn(config.build(parts, alike=True), "a cat")
    assert {one.media.size for one in found} == {(16, 16)}
