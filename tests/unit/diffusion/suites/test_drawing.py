"""A benchmark's pictures on the disk: drawn once, found again, scored once."""

import json
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from raftdiff.diffusion.suites import lying
from raftdiff.diffusion.suites.drawing import draw
from raftdiff.diffusion.suites.results import results
from raftdiff.diffusion.suites.scoring import Scorer, score
from raftdiff.errors import UserError
from raftdiff.seeds import fold
from raftdiff.types import Explained, Prompt, Reason, Sample

PROMPTS = [Prompt(name, f"a {name}", f"a {name}", f"a {name}", meta={"tag": "x"}) for name in ("cat", "dog", "bus")]


class Noise:
    """Draws noise of each sample's own seed, and stops where it is told to."""

    source, provides = "policy", ()

    def __init__(self, stop_after: int = 100) -> None:
        self.drawn, self.left = 0, stop_after

    def sample(
        self, prompts: Sequence[Prompt], *, per_prompt: int, seed: int, round: int, done: AbstractSet[tuple[str, int]]
    ) -> Iterator[Sample[Image.Image]]:
        for prompt in prompts:
            for index in range(per_prompt):
                if (prompt.id, index) in done:
                    continue
                if not self.left:
                    raise KeyboardInterrupt
                own = fold(seed, prompt.id, index)
                pixels = np.random.default_rng(own).integers(0, 256, (8, 8, 3), dtype=np.uint8)
                self.drawn, self.left = self.drawn + 1, self.left - 1
                yield Sample(round, prompt, index, own, "policy", Image.fromarray(pixels))

    def network_evaluations(self) -> int:
        return self.drawn


class Brightness:
    name = "brightness"

    def __init__(self) -> None:
        self.asked = 0

    def score(self, samples: Sequence[Sample[Image.Image]]) -> torch.Tensor:
        self.asked += len(samples)
        return torch.tensor([np.asarray(one.media).mean() for one in samples], dtype=torch.float32)


class Dark(Brightness):
    """Says what is wrong: darkness."""

    def explained(self, samples: Sequence[Sample[Image.Image]]) -> list[Explained]:
        return [Explained(value, (Reason("dark", f"{value:.0f}"),)) for value in self.score(samples).tolist()]


def drawn(folder: Path, sampler: Noise, **how: object) -> list[lying.Picture]:
    return draw(sampler, PROMPTS, folder, per_prompt=2, seed=7, how={"model": "a", **how})


def test_what_was_stopped_goes_on_and_gives_the_same_pictures(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        drawn(tmp_path / "here", Noise(stop_after=3))
    held = sorted((tmp_path / "here").glob("*/samples/*"))
    assert len(held) == 3
    held[0].write_bytes(held[0].read_bytes()[:40])  # as a power loss leaves one
    rest, all_ = Noise(), Noise()
    found = drawn(tmp_path / "here", rest)
    other = drawn(tmp_path / "there", all_)
    assert (rest.drawn, all_.drawn) == (4, 6)
    assert [(one.prompt.id, one.index) for one in found] == [(p.id, k) for p in PROMPTS for k in range(2)]
    assert [one.source.read_bytes() for one in found] == [one.source.read_bytes() for one in other]  # type: ignore[union-attr]


def test_pictures_that_were_drawn_otherwise_are_not_taken_for_these(tmp_path: Path) -> None:
    drawn(tmp_path, Noise())
    with pytest.raises(UserError, match=r"drawn otherwise \(solver.steps None instead of 3\). Take another --name"):
        drawn(tmp_path, Noise(), solver={"steps": 3})


def test_they_lie_as_geneval_keeps_them_and_are_found_again(tmp_path: Path) -> None:
    drawn(tmp_path, Noise())
    assert json.loads((tmp_path / "00001" / "metadata.jsonl").read_text()) == {
        "tag": "x",
        "prompt": "a dog",
        "id": "dog",
    }
    assert (tmp_path / "00001" / "samples" / "00001.png").is_file()
    found, left = lying.pictures(tmp_path)
    assert left == []
    assert [(one.prompt.id, one.index, one.prompt.caption) for one in found][2:4] == [
        ("dog", 0, "a dog"),
        ("dog", 1, "a dog"),
    ]
    assert found[0].prompt.meta["tag"] == "x"
    two, left = lying.pictures(tmp_path, PROMPTS[::2])  # the file names two of the prompts
    assert [one.prompt.id for one in two] == ["cat", "cat", "bus", "bus"]
    assert len(left) == 2
    assert "this picture is of none of the prompts" in left[0]


def test_pictures_with_captions_beside_them_are_of_those_prompts(tmp_path: Path) -> None:
    for name in ("one", "two"):
        Image.new("RGB", (4, 4), "red").save(tmp_path / f"{name}.png")
    with pytest.raises(UserError, match="one.png: of this picture no prompt is known"):
        lying.pictures(tmp_path)
    for name in ("one", "two"):
        (tmp_path / f"{name}.txt").write_text("a dog")
    found, _ = lying.pictures(tmp_path, PROMPTS)
    assert [(one.prompt.id, one.index) for one in found] == [("dog", 0), ("dog", 1)]


def test_a_score_is_asked_for_once_and_again_where_anything_changed(tmp_path: Path) -> None:
    pictures, reward = drawn(tmp_path / "pictures", Noise()), Brightness()
    scorer = Scorer(reward, {"type": "exposure"})
    first = score(pictures, PROMPTS, [scorer], tmp_path / "scores.jsonl")
    again = score(pictures, PROMPTS, [scorer], tmp_path / "scores.jsonl")
    assert reward.asked == 6
    assert first.tables["brightness"].tolist() == again.tables["brightness"].tolist()
    assert first.tables["brightness"].shape == (3, 2)
    score(pictures, PROMPTS, [Scorer(reward, {"type": "exposure", "gamma": 2})], tmp_path / "scores.jsonl")
    assert reward.asked == 12  # another reward under the same name
    Image.new("RGB", (8, 8), "white").save(pictures[0].source)  # type: ignore[arg-type]
    changed = score(pictures, PROMPTS, [scorer], tmp_path / "scores.jsonl")
    assert reward.asked == 18  # the whole batch of the picture that changed
    assert changed.blank == 1
    assert changed.tables["brightness"][0, 0] == 255
    score(pictures, PROMPTS, [Scorer(reward, {"type": "callable"})], tmp_path / "scores.jsonl")
    score(pictures, PROMPTS, [Scorer(reward, {"type": "callable"})], tmp_path / "scores.jsonl")
    assert reward.asked == 30  # a function may be another one tomorrow
    score(pictures, PROMPTS, [Scorer(reward, {"type": "of_a_plug_in"})], tmp_path / "scores.jsonl")
    score(pictures, PROMPTS, [Scorer(reward, {"type": "of_a_plug_in"})], tmp_path / "scores.jsonl")
    assert reward.asked == 42  # likewise
    captioned = Scorer(reward, {"type": "reward_model", "captioner": "mine:say"})
    for _ in range(2):
        score(pictures, PROMPTS, [captioned], tmp_path / "scores.jsonl")
    assert reward.asked == 54  # likewise


def test_reasons_are_kept_with_the_scores_and_asked_for_where_they_were_not(tmp_path: Path) -> None:
    pictures, file = drawn(tmp_path / "pictures", Noise()), tmp_path / "scores.jsonl"
    score(pictures, PROMPTS, [Scorer(Brightness(), {"type": "exposure"})], file)  # as before there were any
    reward = Dark()
    found = [score(pictures, PROMPTS, [Scorer(reward, {"type": "exposure"})], file) for _ in range(2)]
    assert reward.asked == 6
    assert found[0].reasons == found[1].reasons
    level = found[0].tables["brightness"][1, 0]
    assert found[0].reasons["brightness"]["dog", 0] == (Reason("dark", f"{level:.0f}"),)
    assert score(pictures, PROMPTS, [Scorer(Brightness(), {"type": "exposure"})], file).reasons == {}
    rows = list(results(pictures, found[1].reasons, ["tag"]))
    assert [Path(row["filename"]) for row in rows] == [one.source for one in pictures]
    assert {name: rows[2][name] for name in ("tag", "prompt", "correct", "reason", "kinds", "reward")} == {
        "tag": "x",
        "prompt": "a dog",
        "correct": False,
        "reason": f"{level:.0f}",
        "kinds": ["dark"],
        "reward": "brightness",
    }


@pytest.mark.parametrize(
    "edit",
    [
        {"score": "3.5"},
        {"score": [1.0]},
        {"score": True},
        {"score": float("nan")},
        {"score": float("inf")},
        {"score": 10**400},
        {"key": ["a"]},
        {"reasons": "dark"},
        {"reasons": [["dark", 1]]},
        {"reasons": None},
    ],
    ids=str,
)
def test_a_kept_score_that_is_none_is_asked_for_again(tmp_path: Path, edit: dict[str, object]) -> None:
    pictures, file, scorer = drawn(tmp_path / "pictures", Noise()), tmp_path / "scores.jsonl", Dark()
    first = score(pictures, PROMPTS, [Scorer(scorer, {"type": "exposure"})], file)
    before, row, *others = file.read_text().splitlines()
    file.write_text("\n".join([before, "[1]", json.dumps({**json.loads(row), **edit}), *others, others[0][:30]]))
    again = score(pictures, PROMPTS, [Scorer(scorer, {"type": "exposure"})], file)
    assert scorer.asked == 12
    assert again.tables["brightness"].tolist() == first.tables["brightness"].tolist()
    assert again.reasons == first.reasons


def test_pictures_that_are_all_blank_are_refused(tmp_path: Path) -> None:
    pictures = drawn(tmp_path, Noise())
    for one in pictures:
        Image.new("RGB", (8, 8), "black").save(one.source)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="All 6 pictures are of one colour"):
        score(pictures, PROMPTS, [Scorer(Brightness(), {})], tmp_path / "scores.jsonl")
