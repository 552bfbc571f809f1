"""The benchmark's larger language model: other sizes, the same words."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from wider import wider


def test_twice_the_width_says_the_same_and_its_copies_learn_different_things() -> None:
    sizes = {"hidden_size": 12, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 3}
    torch.manual_seed(0)
    small = LlamaForCausalLM(LlamaConfig(vocab_size=9, num_key_value_heads=3, tie_word_embeddings=True, **sizes)).eval()
    large, ids = wider(small), torch.tensor([[1, 4, 7, 2, 8]])
    assert large.config.hidden_size == 24
    with torch.no_grad():
        torch.testing.assert_close(large(input_ids=ids).logits, small(input_ids=ids).logits, atol=1e-5, rtol=1e-4)
    large(input_ids=ids).logits[0, :, 3].sum().backward()
    upper, lower = large.model.layers[0].mlp.up_proj.weight.grad.chunk(2)
    assert (upper - lower).abs().max() > 0.1 * upper.abs().max()
