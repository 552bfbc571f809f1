"""A language model too small to know anything, made on the spot in the format of the real ones, for tests."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from raftdiff.llm.model.loading import LM
from raftdiff.llm.model.rows import row_of, score
from raftdiff.types import Key, Prompt, Sample

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
CHAT = (
    "{% for message in messages %}{{ message['role'] }} {{ message['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)


def write(
    folder: Path, words: Sequence[str], *, seed: int = 0, width: int = 32, layers: int = 2, chat: bool = False
) -> Path:
    """A random Llama and a tokenizer of whole words, as a transformers folder.

    A text begins with <bos>, answers end with <eos>; with ``chat`` the tokenizer has a chat template.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _tokenizer(words)
    if chat:
        tokenizer.chat_template = CHAT
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=width,
                intermediate_size=2 * width,
                num_hidden_layers=layers,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=1024,
                tie_word_embeddings=True,
                initializer_range=0.2,
                bos_token_id=1,
                eos_token_id=2,
                pad_token_id=0,
            )
        )
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    return folder


def random_answers(lm: LM, round: int = 0, per_prompt: int = 3) -> dict[Key, Sample[str]]:
    """Random answers of one to five words to four prompts, as the policy would have drawn them: with their tokens, and
    their log-probabilities under ``lm`` as it stands. For a model of eight words or more."""
    generator = torch.Generator().manual_seed(round)
    samples = []
    for place, text in enumerate(("the film", "film", "the long film was", "was")):
        for index in range(per_prompt):
            length = 1 + (place + 2 * index) % 5
            tokens = torch.cat([torch.randint(4, 12, (length,), generator=generator), torch.tensor([2])])
            prompt, said = Prompt(f"p{place}", text, text, text), lm.text(tokens.tolist())
            samples.append(Sample(round, prompt, index, index, "policy", said, {"tokens": tokens}))
    lps = score(lm, [row_of(lm, sample, learning=True) for sample in samples], batch_size=64)
    return {one.key: replace(one, aux={**one.aux, "logprobs": lp}) for one, lp in zip(samples, lps, strict=True)}


def _tokenizer(words: Sequence[str]) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: place for place, word in enumerate(dict.fromkeys((*SPECIAL, *words)))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )
