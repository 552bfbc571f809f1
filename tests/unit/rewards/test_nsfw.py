"""The NSFW veto, against a forward pass of its own, on a tiny random ViT in the published format."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import ViTForImageClassification
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from raftdiff.errors import UserError
from raftdiff.rewards import tiny
from raftdiff.rewards.nsfw import NsfwConfig
from raftdiff.testing.conformance import check_reward
from raftdiff.testing.examples import reward_samples


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_image_classifier(tmp_path_factory.mktemp("nsfw"), ["normal", "nsfw"])


@pytest.fixture
def own(folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(folder, tmp_path / "own"))


def test_it_is_the_probability_of_the_safe_label(folder: Path) -> None:
    samples = reward_samples(count=6)
    model = ViTForImageClassification.from_pretrained(folder).eval()
    pixels = ViTImageProcessorPil.from_pretrained(folder)([one.media for one in samples], return_tensors="pt")
    with torch.no_grad():
        expected = model(**pixels).logits.softmax(dim=1)
    reward = NsfwConfig(model=str(folder), batch_size=4).build()
    torch.testing.assert_close(reward.score(samples), expected[:, 0], atol=1e-5, rtol=0)
    other = NsfwConfig(model=str(folder), label="nsfw").build()
    torch.testing.assert_close(other.score(samples), expected[:, 1], atol=1e-5, rtol=0)


def test_independent_labels_have_a_sigmoid_each(own: Path) -> None:
    config = json.loads((own / "config.json").read_text())
    (own / "config.json").write_text(json.dumps({**config, "problem_type": "multi_label_classification"}))
    samples = reward_samples(count=2)
    pixels = ViTImageProcessorPil.from_pretrained(own)([one.media for one in samples], return_tensors="pt")
    with torch.no_grad():
        logits = ViTForImageClassification.from_pretrained(own).eval()(**pixels).logits
    found = NsfwConfig(model=str(own)).build().score(samples)
    torch.testing.assert_close(found, logits[:, 0].sigmoid(), atol=1e-5, rtol=0)


def test_it_keeps_the_contract_and_does_not_depend_on_the_batch(folder: Path) -> None:
    report = check_reward(NsfwConfig(model=str(folder), batch_size=3).build(), reward_samples(count=7))
    assert all(found.passed for found in report.checks), str(report)


def test_what_is_no_such_classifier_is_a_sentence(folder: Path, own: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'save' is no label of this model. .* what it calls pictures that are safe"):
        NsfwConfig(model=str(folder), label="save").build()
    with pytest.raises(
        UserError, match="there is no folder or file '/nowhere/nsfw' here. .*It takes a folder or hub id"
    ):
        NsfwConfig(model="/nowhere/nsfw").build()
    file = own / "model.safetensors"
    save_file({name: one for name, one in load_file(file).items() if "classifier" not in name}, file)
    with pytest.raises(UserError, match="its files lack classifier.bias and 1 more, which would be random"):
        NsfwConfig(model=str(own)).build()
    bare = Path(shutil.copytree(folder, tmp_path / "bare", ignore=lambda *_: ["preprocessor_config.json"]))
    with pytest.raises(UserError, match="lacks its preparation of pictures"):
        NsfwConfig(model=str(bare)).build()
    pickled = Path(shutil.copytree(folder, tmp_path / "pickled", ignore=lambda *_: ["model.safetensors"]))
    torch.save(load_file(folder / "model.safetensors"), pickled / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot be read"):
        NsfwConfig(model=str(pickled)).build()
    one = tiny.write_image_classifier(tmp_path / "one", ["normal"])
    with pytest.raises(UserError, match="one label alone, and tells nothing apart"):
        NsfwConfig(model=str(one)).build()
