"""The small CLIP tokenizers of the models that ship: a byte-pair vocabulary learnt from the words of a world."""

import json
import tempfile
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"

Pair = tuple[str, str]


def word_tokenizer(words: Iterable[str], length: int) -> Any:
    """A ``transformers.CLIPTokenizer``, the same every time. Each of these words is one token; others are spelt out.

    ``length``: tokens in a prompt, start and end among them.
    """
    from transformers import CLIPTokenizer

    merges = learn_merges(words)
    alphabet = [chr(code) for code in range(33, 127)]
    pieces = [*alphabet, *(letter + WORD_END for letter in alphabet), *("".join(pair) for pair in merges), START, END]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(pieces))}
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
        lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
        (Path(scratch) / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return CLIPTokenizer.from_pretrained(
            scratch, bos_token=START, eos_token=END, unk_token=END, pad_token=END, model_max_length=length
        )


def learn_merges(words: Iterable[str]) -> list[Pair]:
    """Byte-pair merges (Sennrich et al. 2016, arXiv:1508.07909) until a word is one piece; ties go by the alphabet."""
    spelt = [[*word[:-1], word[-1] + WORD_END] for word in words]
    merges: list[Pair] = []
    while pairs := Counter(pair for pieces in spelt for pair in pairwise(pieces)):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        spelt = [_merged(pieces, best) for pieces in spelt]
    return merges


def _merged(pieces: list[str], pair: Pair) -> list[str]:
    joined: list[str] = []
    for piece in pieces:
        if joined and (joined[-1], piece) == pair:
            joined[-1] += piece
        else:
            joined.append(piece)
    return joined
