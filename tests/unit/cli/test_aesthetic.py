"""``raftdiff rewards train-aesthetic`` as a person calls it, on the CLIP model that ships."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image, ImageDraw

from raftdiff.cli.main import main
from raftdiff.embedded import resolve
from raftdiff.records.disk import load_tensors
from raftdiff.rewards.aesthetic import AestheticConfig, load_head
from raftdiff.rewards.tower import Tower, open_tower

COUNT = 60
TRAIN = ["rewards", "train-aesthetic", "pictures", "--tower", "scene-clip"]


def drawn(k: int) -> Image.Image:
    """A disc on a ground, each of its own colour, size and place."""
    draw = np.random.default_rng(k)
    image = Image.new("RGB", (96, 96), tuple(map(int, draw.integers(90, 255, 3))))
    x, y, size = map(int, draw.integers([10, 10, 10], [60, 60, 35]))
    ImageDraw.Draw(image).ellipse((x, y, x + size, y + size), fill=tuple(map(int, draw.integers(0, 255, 3))))
    return image


@pytest.fixture(scope="module")
def tower() -> Tower:
    """Held for as long as these tests run, so that no picture goes through it twice."""
    return open_tower(resolve("scene-clip"))


@pytest.fixture(scope="module")
def features(tower: Tower) -> torch.Tensor:
    return tower.image_features([drawn(k) for k in range(COUNT)])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, features: torch.Tensor) -> Path:
    """Pictures with a rating that is linear in the embedding, along its largest variations, and one by the dice."""
    monkeypatch.chdir(tmp_path)
    (made := tmp_path / "pictures").mkdir()
    *_, axes = torch.linalg.svd(features - features.mean(dim=0), full_matrices=False)
    ratings = 5 + 10 * (features @ (axes[0] - axes[1]))
    dice = np.random.default_rng(0).permutation(COUNT)
    with (made / "metadata.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file_name", "rating", "dice"])
        for k in range(COUNT):
            drawn(k).save(made / f"{k}.png", compress_level=1)
            rows.writerow([f"{k}.png", float(ratings[k]), dice[k]])
    return made


def test_a_planted_rating_is_found_and_the_lines_to_paste_work(
    folder: Path, features: torch.Tensor, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "7.png").write_bytes(b"no")
    assert main([*TRAIN, "--out", "my head.safetensors", "--seed", "1"]) == 0
    said = capsys.readouterr()
    assert "left out: pictures/7.png: this is no whole picture" in said.err
    assert said.out.startswith("59 pictures with 59 ratings, ")
    told = re.search(r"^this head +(\S+) .*\n(always .*the median) +none +none", said.out, re.MULTILINE)
    assert told is not None
    assert float(told[1]) > 0.9
    assert "12 pictures held out" in said.out
    recipe = yaml.safe_load(said.out[said.out.index("ranker:") : said.out.index("raftdiff rank")])
    (line,) = recipe["ranker"]["rewards"]
    assert line == {"type": "aesthetic", "head": "my head.safetensors", "model": "scene-clip"}
    reward = AestheticConfig.model_validate(line).build(resolve=resolve)
    assert float(reward.tower.mark @ open_tower(resolve("scene-clip")).mark) == pytest.approx(1)
    assert "--reward '{type: aesthetic, head: my head.safetensors, model: scene-clip}'" in said.out
    with (folder / "metadata.csv").open() as file:
        given = [float(row["rating"]) for row in csv.DictReader(file)]
    assert np.corrcoef(load_head(Path("my head.safetensors"))(features).numpy(), given)[0, 1] > 0.95
    assert main([*TRAIN, "--out", "my head.safetensors"]) == 2
    assert "my head.safetensors: there is something already, and nothing is overwritten" in capsys.readouterr().err


def test_what_a_killed_process_had_half_written_is_no_head_and_in_nobodys_way(folder: Path) -> None:
    assert main([*TRAIN, "--out", "whole.safetensors"]) == 0
    whole = Path("whole.safetensors").read_bytes()
    Path("other.safetensors.tmp").write_bytes(whole[: len(whole) // 2])  # as SIGKILL leaves it while it is written
    assert main([*TRAIN, "--out", "other.safetensors"]) == 0
    found = [load_tensors(Path(f"{name}.safetensors")) for name in ("whole", "other")]
    whole_one, other = ({key: it.tolist() for key, it in one.items()} for one in found)
    assert whole_one == other
    assert not list(Path().glob("*.tmp"))


def test_ratings_by_the_dice_are_told_as_what_they_are(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.warns(UserWarning) as told:  # noqa: PT030
        assert main([*TRAIN, "--column", "dice", "--held-out", "0.25", "batch_size=16"]) == 0
    first, *others = (str(one.message) for one in told)
    assert re.match(r"the held-out correlation is not clear of zero \(-?0\.\d+, -0\.\d+ to 0\.\d+\): nothing", first)
    assert others == ["within the part to learn from, the strongest penalty was the best: a head that says the mean."]
    said = capsys.readouterr().out
    assert "15 pictures held out" in said
    assert "{type: aesthetic, head: pictures-aesthetic.safetensors, model: scene-clip, batch_size: 16}" in said
    assert Path("pictures-aesthetic.safetensors").is_file()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["--out", "head.pth"],
            r"--out head\.pth: a head is written as a \.safetensors file; name it head\.safetensors",
        ),
        (["--out", "no/head.safetensors"], r"there is no folder no; make it first"),
        (["--column", "dies"], r"no row has a column 'dies' with ratings \(--column\)\. Did you mean 'dice'"),
        (["head=x.pth"], r"head=x\.pth: this is said by --out here"),
        (["batchsize=3"], r"the reward 'aesthetic': batchsize: unknown key\. Did you mean 'batch_size'"),
        (["--tower", "vit-b-23"], r"--tower vit-b-23: .* neither a CLIP model .* 'scene-clip' ships, and needs no"),
        (["--tower", "scene-clp"], r"No model called 'scene-clp' ships .* Did you mean 'scene-clip'\?"),
        (["--held-out", "1.5"], r"argument --held-out: '1\.5' is not a number between 0 and 1"),
    ],
)
def test_what_is_asked_wrongly_is_a_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    asked = [*(TRAIN[:3] if "--tower" in words else TRAIN), *words]
    try:
        assert main(asked) == 2
    except SystemExit:  # argparse's own way
        assert words[0] == "--held-out"
    assert re.search(sentence, capsys.readouterr().err)
    assert list(Path().glob("*.safetensors")) == []


def test_an_interrupt_leaves_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Tower, "image_features", interrupted)
    assert main(TRAIN) == 130
    assert "stopped. Nothing was written; the same command begins again." in capsys.readouterr().err
    assert list(Path().glob("*.safetensors*")) == []
