"""CLIP's tokenizer and the configs of published models as files, so that a single file loads without a network.

The vocabulary is rebuilt from the byte-pair merges that open_clip installs.
"""

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raftdiff.errors import UserError

MERGES = 49152 - 256 - 2
"""The merges of CLIP's tokenizer: the vocabulary less its bytes (once plain, once word-final) and two markers."""


def write_configs(folder: Path, configs: Mapping[str, Mapping[str, Any]]) -> None:
    """Config files by their paths within a folder."""
    for name, config in configs.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(config), encoding="utf-8")


def write_tokenizer(folder: Path, pad: str) -> None:
    """``clip_tokenizer`` as files.

    Raises:
        UserError: open_clip is not installed.
    """
    clip_tokenizer(pad).save_pretrained(folder)


def clip_tokenizer(pad: str) -> Any:
    """CLIP's, filled up with ``pad``.

    Raises:
        UserError: open_clip is not installed.
    """
    from transformers import CLIPTokenizer

    merges = _clip_merges()
    symbols = byte_symbols()
    words = [*symbols, *(f"{symbol}</w>" for symbol in symbols), *("".join(pair.split()) for pair in merges)]
    vocabulary = {word: index for index, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    pairs: Any = [tuple(pair.split()) for pair in merges]
    return CLIPTokenizer(vocab=vocabulary, merges=pairs, pad_token=pad, model_max_length=77)


def _clip_merges() -> list[str]:
    from importlib.util import find_spec

    found = find_spec("open_clip")
    if found is None or found.origin is None:
        raise UserError(
            "A single-file model needs CLIP's vocabulary, which comes with open_clip: pip install open_clip_torch, "
            "or name a diffusers folder that holds the model's configs as model.config."
        )
    with gzip.open(Path(found.origin).with_name("bpe_simple_vocab_16e6.txt.gz"), "rt", encoding="utf-8") as file:
        return file.read().split("\n")[1 : 1 + MERGES]


def byte_symbols() -> list[str]:
    """The 256 printable characters that stand for the bytes, in the order of GPT-2's table: printable ones first."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + place) for place in range(len(others))]
