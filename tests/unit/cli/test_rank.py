"""``raftdiff rank`` as a person calls it: how rewards are named, what is printed, what is refused."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from raftdiff.cli.main import main
from raftdiff.cli.pictures import rank as cli
from raftdiff.cli.pictures.rank import rewards_of
from raftdiff.errors import UserError
from raftdiff.recipes.config import Config, plain
from raftdiff.types import Sample

FUNCTION = """
import numpy as np

def green(images, prompts, channel=1):
    return [float(np.asarray(image)[..., channel].mean()) for image in images]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pictures, the later the greener and the harder to compress."""
    (tmp_path / "pictures").mkdir()
    noise = np.random.default_rng(0).integers(0, 40, (24, 24, 3), dtype=np.uint8)
    for k in range(12):
        values = np.full((24, 24, 3), 40, dtype=np.uint8)
        values[:, :, 1] = 40 + 10 * k
        values[:k] += noise[:k]
        Image.fromarray(values).save(tmp_path / "pictures" / f"p{k:02d}.png")
        (tmp_path / "pictures" / f"p{k:02d}.txt").write_text(f"{k} foxes")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "green_reward.py").write_text(FUNCTION)
    return Path("pictures")


def test_rewards_are_named_as_for_check_reward_or_as_in_a_recipe() -> None:
    words = [
        "jpeg",
        "jpeg:name=files,weight=-0.5,quality=90",
        "numpy:mean:weight=2,name=mean",
        "{type: clip, model: scene-clip, weight: 0.25}",
        "clip:model=hf-hub:one/two,name=other",
    ]
    told = [plain(config) for config in rewards_of(words)]
    assert [(it["type"], it["name"], it["weight"]) for it in told] == [
        ("jpeg", "jpeg", 1.0),
        ("jpeg", "files", -0.5),
        ("callable", "mean", 2.0),
        ("clip", "clip", 0.25),
        ("clip", "other", 1.0),
    ]
    assert (told[1]["quality"], told[2]["function"], told[4]["model"]) == (90, "numpy:mean", "hf-hub:one/two")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["jpg"], r"'jpg' is not a reward\. Did you mean 'jpeg'"),
        (["jpeg:qualty=3"], r"qualty: unknown key\. Did you mean 'quality'"),
        (["clip"], r"--reward clip: model: "),
        (
            ["my:f:strength=2"],
            r"strength: unknown key\. A parameter of the function's own is written options\.strength\.",
        ),
        (["my:f:wieght=2"], r"wieght: unknown key\. Did you mean 'weight'"),
        (["jpeg,weight=2"], r"--reward jpeg,weight=2: write it as NAME:key=value,key=value"),
        (["{type: jpeg"], r"this is no mapping as in a recipe"),
        (["{name: x}"], r"a mapping names the reward as its 'type'"),
        (["jpeg", "jpeg"], r"two rewards are called 'jpeg'; give one another name, such as name=jpeg2"),
        (["jpeg:weight=0"], r"every reward has the weight 0"),
    ],
)
def test_a_wrong_reward_is_a_sentence(words: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        rewards_of(words)


def test_the_best_are_printed_and_copied(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "bad.png").write_bytes(b"no")
    words = ["rank", str(folder), "--reward", "green_reward:green:name=green,weight=1", "--reward", "jpeg:weight=0"]
    assert main([*words, "--top", "3"]) == 0
    printed = capsys.readouterr()
    lines = [line.split() for line in printed.out.splitlines()]
    assert lines[0] == ["total", "green", "jpeg", "file"]
    assert [line[-1] for line in lines[1:11]] == [f"p{k:02d}.png" for k in range(11, 1, -1)]
    assert "12 pictures in" in printed.out
    assert "pictures-ranked: ranking.csv, ranking.json, sheet.png, and 3 pictures in best" in printed.out
    assert "left out: pictures/bad.png: this is no whole picture" in printed.err
    told = [json.loads(line) for line in Path("pictures-ranked/best/metadata.jsonl").read_text().splitlines()]
    assert [row["caption"] for row in told] == ["11 foxes", "10 foxes", "9 foxes"]
    assert main(words) == 2
    assert "pictures-ranked: there is something already, and nothing is overwritten" in capsys.readouterr().err
    assert main([*words, "--out", str(folder / "best")]) == 2
    assert "this lies in pictures, whose pictures are ranked" in capsys.readouterr().err


def test_an_interrupted_ranking_leaves_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("stop_reward.py").write_text("def stop(images, prompts):\n    raise KeyboardInterrupt\n")
    assert main(["rank", str(folder), "--reward", "stop_reward:stop", "--out", "out"]) == 130
    assert "stopped. Nothing was written; the same command begins again." in capsys.readouterr().err
    assert not Path("out").exists()


def test_an_interrupt_before_anything_is_read_says_that_nothing_was_written(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(parsed: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("raftdiff.cli.main._run", interrupted)
    assert main(["rank", str(folder), "--reward", "jpeg"]) == 130
    assert "stopped. Nothing was written; the same command begins again." in capsys.readouterr().err
    assert main(["train", "demo"]) == 130
    assert "the same command continues." in capsys.readouterr().err


def test_captions_that_give_way_and_a_reward_that_orders_nothing_are_told(folder: Path) -> None:
    Path("all_reward.py").write_text("def same(images, prompts):\n    return [2.0] * len(images)\n")
    Path("one.txt").write_text("a mole\n")
    words = ["rank", str(folder), "--reward", "all_reward:same:name=same", "--top", "1", "--device", "cpu"]
    with pytest.warns(UserWarning) as told:  # noqa: PT030
        assert main([*words, "--prompts", "one.txt"]) == 0
    assert [str(one.message) for one in told] == [
        "--prompts: 12 of 12 pictures with a caption of their own are scored by another: pictures/p00.png by 'a mole'",
        "the reward 'same' is 2 for every picture, and tells none from another",
    ]


def test_an_option_that_is_given_twice_is_refused_but_for_rewards(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["rank", str(folder), "--reward", "jpeg", "--reward", "saturation:weight=0"]
    with pytest.raises(SystemExit):
        main([*words, "--out", "a", "--out=b"])
    assert "argument --out: given 2 times; it can be given once" in capsys.readouterr().err
    assert main([*words, "--out", "a", "--top", "1", "--device", "cpu"]) == 0


class Short:
    """A reward that reads three words."""

    name, token_limit = "short", 3

    def reads_whole(self, text: str) -> bool:
        return len(text.split()) <= self.token_limit

    def score(self, samples: Sequence[Sample[Any]]) -> torch.Tensor:
        return torch.tensor([float(len(sample.prompt.caption)) for sample in samples])


class ShortConfig(Config):
    name: str = "short"
    weight: float = 1.0

    def build(self, *, device: str, resolve: Callable[[str], str]) -> Short:
        del device, resolve
        return Short()


def test_captions_that_a_reward_does_not_read_whole_are_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "p00.txt").write_text("a fox and a cat")
    monkeypatch.setattr(cli, "rewards_of", lambda words: [ShortConfig()])
    told = r"the reward 'short' reads 3 tokens, and 1 of 12 prompts is longer: of 'a fox .*' it does not read 'a cat'"
    with pytest.warns(UserWarning, match=told):
        assert main(["rank", str(folder), "--reward", "short", "--top", "1", "--device", "cpu"]) == 0


def test_a_veto_keeps_pictures_back_and_a_mix_ranks_those_of_a_prompt(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("prompt.txt").write_text("foxes\n")
    green = "{type: callable, name: green, function: 'green_reward:green'"
    words = ["rank", str(folder), "--prompts", "prompt.txt", "--mix", "rank_sum", "--reward", f"{green}}}"]
    veto = f"{green.replace('name: green', 'name: dark')}, role: veto, at_least: median}}"
    with pytest.warns(UserWarning, match="12 of 12 pictures with a caption of their own are scored by another"):
        assert main([*words, "--reward", veto]) == 0
    assert "; 6 without a total: 1 of one colour, 5 vetoed\n" in capsys.readouterr().out
    told = json.loads(Path("pictures-ranked/ranking.json").read_text())
    assert told["mix"] == "rank_sum"
    assert [row["total"] for row in told["pictures"]] == [1, 0.8, 0.6, 0.4, 0.2, 0, *[None] * 6]
    assert told["rewards"]["dark"]["role"] == "veto"


def test_why_pictures_have_no_total_is_counted_apart(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("odd_reward.py").write_text(
        "def odd(images, prompts):\n    return [float('nan' if it[:2] in '1 2 ' else it[:2]) for it in prompts]\n"
    )
    veto = "{type: callable, name: dark, function: 'green_reward:green', role: veto, at_least: 75}"
    assert main(["rank", str(folder), "--reward", "odd_reward:odd", "--reward", veto]) == 0
    assert "; 4 without a total: 1 of one colour, 2 discarded by a reward (NaN), 1 vetoed\n" in capsys.readouterr().out
    rows = json.loads(Path("pictures-ranked/ranking.json").read_text())["pictures"]
    assert {row["file"]: row["without"] for row in rows if "without" in row} == {
        "p00.png": "flat",
        "p01.png": "discarded",
        "p02.png": "discarded",
        "p03.png": "vetoed",
    }


def test_of_two_rewards_without_their_weights_each_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--reward", "clip:model=hf-hub:none", "--reward", "clip:name=other,model=Vit-B-23"]
    for command in (["rank", str(folder)], ["eval", str(folder), "--benchmark", "imagereward"]):
        assert main([*command, *words]) == 2
        said = capsys.readouterr().err
        assert "the reward 'clip': model: " in said
        assert "the reward 'other': model: 'Vit-B-23' is neither" in said


def test_a_mix_that_compares_wants_several_pictures_of_a_prompt(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["rank", str(folder), "--reward", "jpeg", "--mix", "gdpo"]) == 2
    assert "--mix gdpo: it compares the pictures of a prompt, and there is one of each" in capsys.readouterr().err
    median = ["--reward", "jpeg", "--reward", "saturation:role=constraint,at_least=median"]
    assert main(["rank", str(folder), *median]) == 2
    assert "at_least=median of 'saturation': it compares the pictures of a prompt" in capsys.readouterr().err
