"""Heads from ratings: what is read as one, what is learnt and held out, what is written, and what is doubted."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from raftdiff.diffusion.found.rated import Outcome, Rated, Trained, doubts, embedded, split, train, write
from raftdiff.diffusion.sampling.gathering import rated
from raftdiff.diffusion.sampling.pictures import Found
from raftdiff.errors import UserError
from raftdiff.measures.regression import STRENGTHS, Correlation, Linear
from raftdiff.measures.statistics import Estimate
from raftdiff.rewards.aesthetic import AestheticReward, Origin, load_head
from raftdiff.rewards.tower import Tower
from raftdiff.testing.examples import reward_samples

WIDTH = 12


class Colours(torch.nn.Module):
    """The colours of a picture's quarters as its embedding."""

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.flatten(1)


def quarters(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(picture.resize((2, 2), Image.Resampling.BOX), dtype=np.float32) / 255 - 0.4)


@pytest.fixture
def tower() -> Tower:
    return Tower(Colours(), quarters, None, WIDTH, name="colours", batch_size=8)


def picture(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 255, (2, 2, 3), dtype=np.uint8)
    Image.fromarray(values).resize((8, 8), Image.Resampling.NEAREST).save(path)
    return path


def table(folder: Path, *rows: dict[str, Any]) -> Path:
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def unit(count: int, seed: int = 0) -> torch.Tensor:
    draw = torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(draw, dim=-1)


def of(ratings: Sequence[float], features: torch.Tensor | None = None) -> Rated:
    rows = unit(len(ratings)) if features is None else features
    return Rated(rows, np.array(ratings, dtype=np.float64), tuple(float(one) for one in ratings))


# what is read


def test_ratings_are_a_column_or_what_folders_are_called(tmp_path: Path) -> None:
    for name in ("table/a", "table/b", "table/c", "named/4.5/a", "named/2/again/b", "named/other/c"):
        picture(tmp_path / f"{name}.png", 1)
    rows = [
        {"file_name": "a.png", "rating": "7.5", "liked": True},
        {"file_name": "b.png", "rating": None, "liked": False},
        {"file_name": "gone.png", "rating": 3, "liked": True},
        {"file_name": "a.png", "rating": 5, "liked": ""},
    ]
    folder = table(tmp_path / "table", *rows)
    found, left = rated(folder)
    assert [(one.where, one.score) for one in found] == [
        (f"{folder}/metadata.jsonl:1", 7.5),
        (f"{folder}/metadata.jsonl:4", 5.0),
    ]
    assert left == [
        f"{folder}/metadata.jsonl:3: there is no picture 'gone.png' in {folder}.",
        f"{folder}/metadata.jsonl:2: this picture has no rating.",
    ]
    assert [one.score for one in rated(folder / "metadata.jsonl", "liked")[0]] == [1.0, 0.0]
    found, left = rated(tmp_path / "named")
    assert [(Path(one.where).name, one.score) for one in found] == [("b.png", 2.0), ("a.png", 4.5)]
    assert left == [f"{tmp_path}/named/other/c.png: this picture has no rating."]


@pytest.mark.parametrize(
    ("place", "column", "sentence"),
    [
        ("good", "ratings", r"good: no row has a column 'ratings' with ratings \(--column\)\. Did you mean 'rating'\?"),
        ("good", "note", r"metadata\.jsonl:1: 'note' is 'very nice', which is no number\."),
        ("good", "far", r"metadata\.jsonl:1: 'far' is infinite\."),
        ("good", "none", r"the column 'none' says nothing of any of the pictures here\."),
        ("bare", None, r"bare: not one of the pictures here has a rating\. Ratings stand in metadata\.jsonl or "),
        ("bare", None, r"Or is it .*bare/scores\.csv that has them\? Then name that file in place of the folder\."),
        ("bare", "rating", r"bare: there is no table here that could have a column 'rating'\. Ratings stand in "),
        ("nowhere", None, r"nowhere: nothing is there\."),
    ],
)
def test_what_is_no_rating_is_a_sentence(tmp_path: Path, place: str, column: str | None, sentence: str) -> None:
    for name in ("good/a", "bare/a"):
        picture(tmp_path / f"{name}.png", 1)
    table(tmp_path / "good", {"file_name": "a.png", "rating": 1, "note": "very nice", "far": "inf", "none": ""})
    (tmp_path / "bare" / "scores.csv").write_text("file_name,rating\na.png,3\n")
    with pytest.raises(UserError, match=sentence):
        rated(tmp_path / place, column)
    assert [one.score for one in rated(tmp_path / "bare" / "scores.csv")[0]] == [3.0]


def test_equal_pictures_are_one_with_the_mean_of_their_ratings(tmp_path: Path, tower: Tower) -> None:
    found = [Found(str(k), None, "", picture(tmp_path / f"{k}.png", k % 10), float(k)) for k in range(20)]
    Image.open(tmp_path / "3.png").save(tmp_path / "3.bmp")
    (tmp_path / "bad.png").write_bytes(b"no")
    extra = [Found("bmp", None, "", tmp_path / "3.bmp", 1.0), Found("bad", None, "", tmp_path / "bad.png", 1.0)]
    heard: list[tuple[int, int]] = []
    read, damaged = embedded([*found, *extra], tower, report=lambda *it: heard.append(it))
    assert sorted(read.ratings) == sorted([(3 + 13 + 1) / 3, *(k + 5.0 for k in range(10) if k != 3)])
    assert len(read.given) == 21
    assert heard[-1] == (22, 22)
    assert damaged[0].startswith(f"{tmp_path}/bad.png: this is no whole picture")
    for row, rating in zip(read.features, read.ratings, strict=True):
        seed = 3 if rating == pytest.approx(17 / 3) else int(rating - 5)
        torch.testing.assert_close(row, tower.image_features([Image.open(tmp_path / f"{seed}.png")])[0])
    again, _ = embedded([extra[0], *reversed(found)], tower)
    assert torch.equal(again.features, read.features), "the order is the pictures' own"
    np.testing.assert_allclose(again.ratings, read.ratings)
    with pytest.raises(UserError, match=r"Not one of 1 picture can be opened: .*bad\.png"):
        embedded(extra[1:], tower)


# what is learnt


@pytest.mark.parametrize("seed", [0, 1])
def test_no_picture_is_on_both_sides_of_the_split(seed: int) -> None:
    learnt, held = split(101, held_out=0.25, seed=seed)
    assert (len(learnt), len(held)) == (76, 25)
    assert sorted([*learnt, *held]) == list(range(101))
    assert [list(side) for side in split(101, held_out=0.25, seed=seed)] == [list(learnt), list(held)]
    assert list(split(101, held_out=0.25, seed=seed + 1)[1]) != list(held)


def test_what_is_held_out_changes_nothing_of_the_head() -> None:
    features, ratings = unit(60), np.random.default_rng(0).normal(size=60)
    _, held = split(60, held_out=0.2, seed=0)
    changed, other = features.clone(), ratings.copy()
    changed[held], other[held] = unit(12, seed=9), 100.0
    one, two = (train(of(list(y), x), held_out=0.2, seed=0) for x, y in ((features, ratings), (changed, other)))
    assert np.array_equal(one.head.weights, two.head.weights)
    assert (one.head.intercept, one.head.strength) == (two.head.intercept, two.head.strength)
    assert one.head_outcome != two.head_outcome


def test_a_linear_rating_is_recovered() -> None:
    features, weights = unit(80), np.linspace(-2, 2, WIDTH)
    found = train(of(list(features.numpy() @ weights + 5), features), held_out=0.2, seed=3)
    np.testing.assert_allclose(found.head.weights, weights, atol=1e-4)
    assert found.head.intercept == pytest.approx(5, abs=1e-4)
    assert (found.learnt, found.head_outcome.error.n) == (64, 16)
    assert found.head_outcome.spearman.value > 0.999
    assert found.head_outcome.error.mean < 1e-4
    assert found.gain.mean == pytest.approx(found.constant_outcome.error.mean, abs=1e-4)
    assert np.isnan(found.constant_outcome.pearson.value)
    assert doubts(found) == []


def test_ratings_without_rhyme_are_doubted() -> None:
    told = train(of(list(np.random.default_rng(4).permutation(80) / 10.0)), held_out=0.25, seed=0)
    low, high = told.head_outcome.spearman.ci95
    assert low < 0 < high
    sentence = doubts(told)[0]
    assert sentence.startswith("the held-out correlation is not clear of zero (")
    assert "With 20 pictures held out, one of about 0.44 is clear. Rate more pictures" in sentence


def test_each_doubt_is_a_sentence() -> None:
    def told(value: float, low: float, high: float, strength: float = 1.0) -> list[str]:
        outcome = Outcome(
            Correlation(value, (low, high)), Correlation(value, (low, high)), Estimate(1, 1, (0, 2), 9, 9)
        )
        return doubts(Trained(Linear(np.zeros(2), 0.0, strength), 30, outcome, 3.0, outcome, outcome.error))

    assert told(0.8, 0.7, 0.9) == []
    assert "only to within 0.20 to 0.90; rate more pictures" in told(0.7, 0.2, 0.9)[0]
    assert told(-0.8, -0.9, -0.7)[0].startswith("the held-out correlation lies below zero (-0.80")
    assert "are all alike, so no correlation is known" in told(np.nan, -1.0, 1.0)[0]
    assert told(0.8, 0.7, 0.9, float(STRENGTHS[-1])) == [
        "within the part to learn from, the strongest penalty was the best: a head that says the mean."
    ]


@pytest.mark.parametrize(
    ("ratings", "share", "sentence"),
    [
        (range(19), 0.2, r"19 rated pictures can be read here, and a head needs 20 different ones at least"),
        (
            range(30),
            0.1,
            r"--held-out 0\.1: of 30 pictures this leaves 27 to learn from and 3 held out, where 10 and 4",
        ),
        (range(30), 0.8, r"this leaves 6 to learn from and 24 held out"),
        ([4.0] * 30, 0.2, r"30 pictures, and all are rated 4: ratings that differ are needed"),
    ],
)
def test_too_little_to_learn_from_is_a_sentence(ratings: Sequence[float], share: float, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        train(of(list(ratings)), held_out=share, seed=0)


def test_ratings_and_embeddings_that_tell_nothing_apart_are_sentences() -> None:
    _, held = split(25, held_out=0.2, seed=0)
    lone = [9.0 if k == held[0] else 2.0 for k in range(25)]
    with pytest.raises(UserError, match="25 pictures, and those to learn from are rated 2: ratings that differ"):
        train(of(lone), held_out=0.2, seed=0)
    with pytest.raises(UserError, match="embeddings of all these pictures are alike, so none can be told"):
        train(of(list(range(25)), unit(1).expand(25, -1)), held_out=0.2, seed=0)


# what is written


def test_the_reward_scores_as_the_fit_predicts(tmp_path: Path, tower: Tower) -> None:
    found = [Found(str(k), None, "", picture(tmp_path / f"{k}.png", k), float(k % 5)) for k in range(30)]
    read, _ = embedded(found, tower)
    trained = train(read, held_out=0.2, seed=7)
    file = tmp_path / "head.safetensors"
    write(file, trained, read, Origin("path/to/clip", None, tower.mark), seed=7, held_out=0.2)
    reward = AestheticReward(tower, load_head(file))
    samples = reward_samples(count=6)
    expected = trained.head(tower.image_features(samples).numpy())
    np.testing.assert_allclose(reward.score(samples).numpy(), expected, atol=1e-5)
    layer = torch.nn.Linear(WIDTH, 1)
    layer.load_state_dict(load_file(file))  # LAION's version 1, for whoever reads that
    with safe_open(file, framework="pt") as opened:
        about = opened.metadata()
    told = {name: about[name] for name in ("model", "pictures", "ratings", "learnt_from", "held_out", "seed")}
    assert told == {
        **{"model": "path/to/clip", "pictures": "30", "ratings": "30"},
        **{"learnt_from": "24", "held_out": "6", "seed": "7"},
    }
    assert (about["rating_min"], about["rating_max"]) == ("0.0", "4.0")
    assert float(about["spearman"]) == trained.head_outcome.spearman.value
