"""The small CLIP tokenizer of emoji-sd: a byte-pair vocabulary learnt from the captions of this world."""

import json
import tempfile
from pathlib import Path
from typing import Any

from raftdiff.embedded.world import HIGH_QUALITY, LOW_QUALITY, all_concepts

LENGTH = 24
"""Tokens in a prompt, start and end among them; the longest caption with a remark on quality fits."""
START, END = "<|startoftext|>", "<|endoftext|>"


def build_tokenizer() -> Any:
    """A ``transformers.CLIPTokenizer``. Every caption's word is one or a few tokens; other words are spelt out."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    corpus = sorted({concept.caption for concept in all_concepts()}) + [HIGH_QUALITY, LOW_QUALITY] * 50
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.Whitespace()
    alphabet = [chr(code) for code in range(33, 127)]
    trainer = trainers.BpeTrainer(
        vocab_size=1000, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False, min_frequency=1
    )
    learner.train_from_iterator(corpus, trainer)
    learnt = json.loads(learner.to_str())["model"]
    merges = [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in learnt["merges"]]
    tokens = [*alphabet, *(f"{letter}</w>" for letter in alphabet), *("".join(pair) for pair in merges), START, END]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
        lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
        (Path(scratch) / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return CLIPTokenizer.from_pretrained(
            scratch, bos_token=START, eos_token=END, unk_token=END, pad_token=END, model_max_length=LENGTH
        )
