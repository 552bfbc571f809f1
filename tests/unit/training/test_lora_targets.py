"""Which layers get a LoRA, whatever an architecture calls them; and which cannot have one."""

import pytest
import torch
from torch import nn

from raftdiff.errors import UserError
from raftdiff.training.trainable import Trainable, add_lora, all_linear, lora_layers

SIZES = {"vocab_size": 16, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
FEED = {**SIZES, "intermediate_size": 32}
LLAMA = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
ENDS = {
    "llama": (FEED, LLAMA),
    "phi3": ({**FEED, "pad_token_id": 0}, {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}),
    "opt": (
        {**SIZES, "ffn_dim": 32, "word_embed_proj_dim": 16},
        {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"},
    ),
    "gpt2": ({"vocab_size": 16, "n_embd": 16, "n_layer": 2, "n_head": 2}, {"c_attn", "c_proj", "c_fc"}),
    "gpt_neox": (FEED, {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}),
    "bloom": (
        {"vocab_size": 16, "hidden_size": 16, "n_layer": 2, "n_head": 2},
        {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"},
    ),
    "phi": (FEED, {"q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"}),
    "mamba": ({"vocab_size": 16, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}, {"in_proj", "x_proj"}),
}


def model_of(kind):
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **ENDS[kind][0]))


@pytest.mark.parametrize("kind", ENDS)
def test_every_linear_layer_is_found_whatever_it_is_called(kind):
    model, ends = model_of(kind), ENDS[kind][1]
    assert set(all_linear(model)) == ends
    add_lora(model, 2, 2.0, ("all-linear",), 0)
    count = 2 * len(ends) + (2 if kind == "gpt2" else 0)  # whose attention and feed-forward both end in a c_proj
    assert len(lora_layers([model])) == count
    trained = Trainable(kind, {"model": model}, "lora", dtype=torch.float32)
    told = trained.described()
    assert told.startswith(f"a LoRA on {count} layers (")
    assert all(f"{4 if name == 'c_proj' else 2} {name}" in told for name in ends)


@pytest.mark.parametrize("table", ["lm_head", "embed_tokens"])
def test_a_table_that_is_two_layers_cannot_have_one(table):
    from transformers import LlamaConfig, LlamaForCausalLM

    tied = LlamaForCausalLM(LlamaConfig(**FEED, tie_word_embeddings=True))
    with pytest.raises(UserError, match=r"'(lm_head|model\.embed_tokens)' and '.*' of this model are one table"):
        add_lora(tied, 2, 2.0, ("q_proj", table), 0)
    assert not lora_layers([tied])
    free = LlamaForCausalLM(LlamaConfig(**FEED, tie_word_embeddings=False))
    add_lora(free, 2, 2.0, ("q_proj", "lm_head"), 0)
    assert len(lora_layers([free])) == 3


def test_names_that_fit_nothing_are_answered_with_names_that_do():
    with pytest.raises(UserError, match=r"ends in any of q_proj\. Use all-linear, or some of c_attn, c_proj, c_fc\."):
        add_lora(model_of("gpt2"), 2, 2.0, ("q_proj",), 0)


def test_ends_that_mean_other_layers_too_are_told_apart():
    net = nn.ModuleDict(
        {"a": nn.ModuleDict({"proj": nn.Linear(2, 2)}), "b": nn.ModuleDict({"proj": nn.Conv2d(2, 2, 1)})}
    )
    assert all_linear(net) == ("a.proj",)


def test_every_weight_is_said_in_words():
    net = nn.Linear(2, 3)
    assert Trainable("n", {"model": net}, "full", dtype=torch.float32).described() == "every weight of model, 9 numbers"
