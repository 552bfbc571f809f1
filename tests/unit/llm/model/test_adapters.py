"""A LoRA as the model to begin with."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from raftdiff.errors import UserError
from raftdiff.llm.export import export
from raftdiff.llm.learning.finetuner import LMFineTunerConfig
from raftdiff.llm.model.adapters import CONFIG, WEIGHTS
from raftdiff.llm.model.loading import LMConfig, is_encoder, sources

IDS = torch.tensor([[1, 4, 5, 6, 7, 8]])


@pytest.fixture(scope="module")
def tuned(lm_folder, open_lm, tmp_path_factory):
    """The folder of a LoRA, and the logits of what it makes of its base."""
    found = open_lm(lm_folder)
    tuner = moved(found)
    return export(tuner, "peft", tmp_path_factory.mktemp("peft") / "lora"), found.model(IDS).logits.detach()


def moved(lm):
    tuner = LMFineTunerConfig(adapter="lora", rank=2).build(lm, total_rounds=1, max_tokens=8, seed=0)
    for weight in tuner.trainable.live.values():
        weight.add_(0.02)
    tuner.trainable.rest(None)
    return tuner


def renamed(tuned, folder, base):
    """A copy of the LoRA whose config names another base."""
    shutil.copytree(tuned[0], folder)
    told = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**told, "base_model_name_or_path": base}))
    return folder


def test_a_lora_is_put_into_the_weights_of_its_base(tuned, lm, open_lm):
    folder, logits = tuned
    found = open_lm(folder)
    torch.testing.assert_close(found.model(IDS).logits, logits, rtol=0, atol=1e-5)
    assert not torch.allclose(logits, lm.model(IDS).logits, atol=1e-3)
    assert {name for name, _ in found.model.named_parameters()} == {name for name, _ in lm.model.named_parameters()}
    assert not is_encoder(LMConfig(base=str(folder)), str)


def test_what_is_learnt_on_top_of_it_leaves_whole_and_not_as_one_lora(tuned, open_lm, tmp_path):
    folder, logits = tuned
    found = open_lm(folder)
    tuner = moved(found)
    with tuner.base_weights():
        torch.testing.assert_close(found.model(IDS).logits, logits, rtol=0, atol=1e-5)
    with pytest.raises(UserError, match="which this run began with, is a LoRA itself.*--format merged"):
        export(tuner, "peft", tmp_path / "peft")
    out = export(tuner, "merged", tmp_path / "out")
    torch.testing.assert_close(open_lm(out).model(IDS).logits, found.model(IDS).logits, rtol=0, atol=1e-4)


def test_the_base_is_found_beside_the_lora(tuned, lm_folder, open_lm, tmp_path):
    shutil.copytree(lm_folder, tmp_path / "base")
    folder = renamed(tuned, tmp_path / "lora", "base")
    torch.testing.assert_close(open_lm(folder).model(IDS).logits, tuned[1], rtol=0, atol=1e-5)
    assert sources(LMConfig(base=str(folder)), str).beside == [str(tmp_path / "base")]


@pytest.mark.parametrize(
    ("base", "sentence"),
    [
        (None, "is a LoRA that does not name its base"),
        ("gguf", "is a LoRA of 'gguf', which is no folder here. Start where it is, or write"),
        ("/models/tiny", "is a LoRA of '/models/tiny', which is no folder here"),
    ],
)
def test_a_lora_whose_base_is_not_there_names_it(tuned, open_lm, tmp_path, base, sentence):
    with pytest.raises(UserError, match=sentence):
        open_lm(renamed(tuned, tmp_path / "lora", base))


def test_a_lora_that_is_not_whole_is_a_sentence(tuned, lm_folder, open_lm, tmp_path):
    folder = renamed(tuned, tmp_path / "lora", str(lm_folder))
    weights = load_file(folder / WEIGHTS)
    name = min(weights)
    save_file({key: weight for key, weight in weights.items() if key != name}, folder / WEIGHTS)
    with pytest.raises(UserError, match="cannot be put into its base: Found missing adapter keys"):
        open_lm(folder)
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    with pytest.raises(UserError, match="has no adapter_model.safetensors, which alone is read"):
        open_lm(folder)


def test_a_lora_of_another_model_is_a_sentence(tuned, gpt2, open_lm, tmp_path):
    with pytest.raises(UserError, match="the LoRA in .* cannot be put into its base"):
        open_lm(renamed(tuned, tmp_path / "lora", gpt2.model.name_or_path))
