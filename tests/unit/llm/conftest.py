"""Language models in miniature: random ones, and Markov chains whose probabilities are known in closed form."""

import json
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from raftdiff.llm.model import tiny
from raftdiff.llm.model.loading import LM, LMConfig, load

WORDS = ("the", "film", "was", "good", "bad", "dull", "fine", "long", "Human", ":", "yes", "no")
EPSILON = 1e-6
"""Of the last norm, which makes a one-hot of n numbers 1 / sqrt(1 / n + EPSILON) long."""
Loader = Callable[..., LM]
Chain = Callable[[Mapping[str, Mapping[str, float]]], Path]


@pytest.fixture(scope="session")
def open_lm() -> Loader:
    """Loads a folder afresh, onto the CPU: for tests that change the model."""
    return lambda folder, **options: load(LMConfig(base=str(folder), device="cpu", **options), str)


@pytest.fixture(scope="session")
def lm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("lm") / "tiny", WORDS)


@pytest.fixture(scope="session")
def lm(lm_folder: Path, open_lm: Loader) -> LM:
    """A random Llama; shared, so it is not to be changed."""
    return open_lm(lm_folder)


@pytest.fixture(scope="session")
def chat_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its template writes ``<role> <content> `` for each turn."""
    return tiny.write(tmp_path_factory.mktemp("lm") / "chat", (*WORDS, "user", "assistant", "system"), chat=True)


@pytest.fixture(scope="session")
def pad_is_eos(lm_folder: Path, changed: Callable[..., Path], open_lm: Loader) -> LM:
    """The random Llama again, with the end token for padding."""
    return open_lm(changed(lm_folder, "tokenizer_config.json", pad_token="<eos>"))


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory, lm_folder: Path, open_lm: Loader) -> LM:
    """Absolute positions, 40 of them, and no padding token."""
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("lm") / "gpt2"
    sizes = {"vocab_size": 4 + len(WORDS), "n_positions": 40, "n_embd": 32, "n_layer": 2, "n_head": 4}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        config = GPT2Config(**sizes, initializer_range=0.2, bos_token_id=1, eos_token_id=2, pad_token_id=None)
        GPT2LMHeadModel(config).save_pretrained(folder)
    for file in lm_folder.glob("tokenizer*"):
        shutil.copy2(file, folder)
    told = json.loads((folder / "tokenizer_config.json").read_text())
    del told["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    return open_lm(folder)


@pytest.fixture(scope="session")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A copy of a model's folder with other values in one of its JSON files; None takes a value out."""

    def change(folder: Path, file: str, **values: object) -> Path:
        copy = tmp_path_factory.mktemp("changed") / folder.name
        shutil.copytree(folder, copy)
        told = json.loads((copy / file).read_text()) | values if (copy / file).is_file() else values
        (copy / file).write_text(json.dumps({name: value for name, value in told.items() if value is not None}))
        return copy

    return change


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """Writes a Llama whose next token depends on the last one alone, with the probabilities given.

    A table holds rows that need not add up to 1: what is left goes to <unk>; words without a row end (<eos>). Blocks
    write nothing into the residual stream and embeddings are one-hot, so the logits are the rows of the output head.
    """

    def write(table: Mapping[str, Mapping[str, float]]) -> Path:
        words = list(dict.fromkeys(word for row, told in table.items() for word in (row, *told)))
        folder = tiny.write(tmp_path_factory.mktemp("chain") / "lm", [w for w in words if w not in tiny.SPECIAL])
        index = {word: place for place, word in enumerate(dict.fromkeys((*tiny.SPECIAL, *words)))}
        width, size = 32, len(index)
        logits = torch.full((size, size), -60.0)
        for word, row in index.items():
            told = table.get(word, {"<eos>": 1.0})
            for other, p in ({"<unk>": 1 - sum(told.values())} | dict(told)).items():
                logits[row, index[other]] = math.log(max(p, 1e-26))
        weights = load_file(folder / "model.safetensors")
        for name, weight in weights.items():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.zero_()
        weights["model.embed_tokens.weight"] = torch.eye(size, width)
        weights["lm_head.weight"] = torch.zeros(size, width)
        weights["lm_head.weight"][:, :size] = logits.T * math.sqrt(1 / width + EPSILON)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        config = json.loads((folder / "config.json").read_text()) | {
            "tie_word_embeddings": False,
            "rms_norm_eps": EPSILON,
        }
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return write
