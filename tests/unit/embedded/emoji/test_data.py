"""What the models that ship learn from: art on its ground, captions with their remarks, and the loop that learns."""

from pathlib import Path

import numpy as np
import pytest
import torch

from raftdiff import embedded
from raftdiff.embedded.emoji import data, train_unet
from raftdiff.embedded.emoji.art import SHEET, art_sheet
from raftdiff.embedded.emoji.data import REMARKS, World, concepts, indices, training_indices
from raftdiff.embedded.emoji.world import BACKGROUNDS, all_concepts, training_concepts
from raftdiff.embedded.training import Average


@pytest.fixture(autouse=True)
def one_turned(monkeypatch: pytest.MonkeyPatch) -> None:
    """All art is turned once, where what ships learned from four such views: each takes a second."""
    monkeypatch.setattr(data, "VARIANTS", 3)


@pytest.fixture(scope="module")
def small(sheet: np.ndarray) -> np.ndarray:
    """The art at the size of the pictures, which is quicker turned."""
    return np.ascontiguousarray(sheet[:, :, ::2, ::2])


def test_rendered_art_is_read_from_its_file_alone(tmp_path: Path, sheet: np.ndarray) -> None:
    np.savez_compressed(tmp_path / SHEET, sheet=sheet)
    assert (art_sheet(tmp_path) == sheet).all()


def test_the_plain_view_is_the_art_over_its_ground(sheet: np.ndarray) -> None:
    chosen = all_concepts()[::377]
    painted = World(sheet, seed=0).paint(*indices(chosen).unbind(1), upright=True)
    for (row, style, ground), picture in zip(indices(chosen).tolist(), painted, strict=True):
        art = sheet[row, style].astype(np.float64)
        alpha = art[..., 3:] / 255
        full = art[..., :3] * alpha + (1 - alpha) * np.array(list(BACKGROUNDS.values())[ground])
        small = full.reshape(64, 2, 64, 2, 3).mean(axis=(1, 3))
        seen = (picture.permute(1, 2, 0).numpy() + 1) * 127.5
        np.testing.assert_allclose(seen, small, atol=0.3)  # views are kept in float16


def test_the_seed_alone_decides_what_is_painted_and_spoilt(small: np.ndarray) -> None:
    one, other, third = (World(small, seed=seed) for seed in (1, 1, 2))
    first, second = one.batch(8), other.batch(8)
    assert torch.equal(first.pictures, second.pictures)
    assert torch.equal(one.degrade(first.pictures), other.degrade(second.pictures))
    assert not torch.equal(third.batch(8).pictures, first.pictures)


def test_remarks_come_in_the_shares_that_the_card_says() -> None:
    torch.manual_seed(0)
    spoilt = torch.rand(40_000) < 0.35
    said = train_unet.remarks(spoilt)
    for bad, remark, share in train_unet.SHARES:
        assert float(((spoilt == bad) & (said == remark)).float().mean()) == pytest.approx(share, abs=0.01)


@pytest.mark.filterwarnings("ignore")
def test_the_table_holds_the_tokens_of_every_caption() -> None:
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(embedded.folder("emoji-sd") / "tokenizer")
    table = train_unet.token_table(tokenizer)
    rows = training_indices()[::97]
    for number, remark in enumerate(REMARKS):
        texts = [concept.caption + remark for concept in concepts(rows)]
        found = table[(*rows.unbind(1), torch.full((len(rows),), number))]
        assert torch.equal(found, train_unet.tokenise(tokenizer, texts))


@pytest.mark.filterwarnings("ignore")
def test_training_goes_on_from_what_ships_and_shows_its_average_as_it_goes(tmp_path: Path, small: np.ndarray) -> None:
    train_unet.prepare(0)
    modules, tokenizer, vae = train_unet.begin(embedded.folder("emoji-sd"), tmp_path, "cpu")
    before = {name: weight.clone() for name, weight in modules["unet"].state_dict().items()}
    lessons = train_unet.encode(World(small, seed=0), vae, 4, at_once=4)
    never = set(all_concepts()) - set(training_concepts())
    assert not never & set(concepts(lessons.rows))
    average = Average(modules, decay=0.999)
    pace = train_unet.Pace(minutes=0.03, batch=2, look_every=0.001)
    looks = list(train_unet.learn(modules, average, lessons, tokenizer, pace))
    assert looks[-1] == 0.03
    assert looks == sorted(looks)
    assert average.updates > 0
    assert all(weight.dtype == torch.float32 for weight in modules["unet"].parameters())
    train_unet.export_average(tmp_path / "emoji-sd", modules, average, tokenizer, vae)
    after, _, _ = train_unet.begin(tmp_path / "emoji-sd", tmp_path, "cpu")
    moved = {name: (after["unet"].state_dict()[name] - weight).abs().max() for name, weight in before.items()}
    assert 0 < max(moved.values()) < 0.1
