"""The commands that train the models of scenes, a step each: what they leave, and what they leave alone."""

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from raftdiff.embedded import folder
from raftdiff.embedded.scenes.art import SHEET
from raftdiff.embedded.scenes.clip import WEIGHTS as CLIP
from raftdiff.embedded.scenes.judge import WEIGHTS as JUDGE
from raftdiff.embedded.scenes.judge import SceneJudge
from raftdiff.embedded.scenes.layout import SIZE
from raftdiff.embedded.scenes.measure import Reward
from raftdiff.embedded.scenes.networks import TEXT, UNET, VAE, finished, take_apart
from raftdiff.embedded.scenes.training import clip, judge, unet, vae
from raftdiff.embedded.scenes.training.timing import Clock, options


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, sheet: np.ndarray) -> Path:
    place = tmp_path_factory.mktemp("art")
    np.savez_compressed(place / SHEET, sheet=sheet)
    return place


def clock() -> Clock:
    asked = ["--device", "cpu", "--most", "1", "--minutes", "60"]
    given: argparse.Namespace = options("A step.", minutes=1, batch=2, rate=1e-3).parse_args(asked)
    return Clock(given)


def test_training_the_decoder_leaves_the_latents_what_they_are(cache: Path, tmp_path: Path) -> None:
    take_apart(folder("scene-sd"), tmp_path)
    before = load_file(tmp_path / VAE)
    vae.train(cache, tmp_path, clock(), batch=2, peak=1e-2, seed=0, device="cpu", decoder=True)
    after = load_file(tmp_path / VAE)
    changed = {name.split(".")[0] for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed == {"decoder", "post_quant_conv"}
    assert finished(tmp_path / VAE)


def test_a_judge_and_a_reward_are_there_after_a_step(cache: Path, tmp_path: Path) -> None:
    judge.train(cache, tmp_path, clock(), batch=4, peak=1e-3, seed=7, device="cpu")
    clip.train(cache, tmp_path, clock(), batch=8, peak=1e-3, seed=3, device="cpu")
    assert finished(tmp_path / JUDGE)
    assert finished(tmp_path / CLIP)
    pictures = [Image.new("RGB", (SIZE, SIZE), colour) for colour in ("white", "pink")]
    captions = ["a cat on a white background", "two foxes"]
    assert SceneJudge(tmp_path).judge(pictures, captions)["exact"].shape == (2,)
    seen = Reward(tmp_path, "cpu").look(pictures, captions)
    assert seen.features.shape[0] == 2
    np.testing.assert_allclose(np.linalg.norm(seen.features, axis=1), 1, rtol=1e-5)
    assert (np.abs(seen.scores) <= 1).all()


def test_the_network_is_trained_on_from_its_weights(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_apart(folder("scene-sd"), tmp_path)
    before = {name: load_file(tmp_path / name) for name in (UNET, TEXT, VAE)}
    asked = f"unet --device cpu --most 1 --batch 2 --pool 4 --scenes 4 --resume --cache {cache} --out {tmp_path}"
    monkeypatch.setattr("sys.argv", asked.split())
    unet.main()
    for name in (UNET, TEXT):
        after = load_file(tmp_path / name)
        most = max(float((after[key] - old).abs().max()) for key, old in before[name].items())
        assert 0 < most < 0.01
        assert finished(tmp_path / name)
    assert all(torch.equal(tensor, before[VAE][key]) for key, tensor in load_file(tmp_path / VAE).items())
