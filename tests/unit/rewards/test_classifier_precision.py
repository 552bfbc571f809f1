"""A classifier in half precision tells answers apart that it reads differently."""

import pytest
import torch

from raftdiff.rewards.classifier import widen_head


@pytest.mark.parametrize("kind", ["llama", "bert", "roberta", "distilbert"])
def test_the_head_of_a_half_precision_classifier_does_not_round_its_scores(kind):
    from transformers import AutoConfig, AutoModelForSequenceClassification

    sizes = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    if kind == "distilbert":
        sizes = {"vocab_size": 64, "dim": 16, "hidden_dim": 32, "n_layers": 2, "n_heads": 2}
    else:
        sizes["intermediate_size"] = 32
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = AutoConfig.for_model(kind, num_labels=1, pad_token_id=0, bos_token_id=1, eos_token_id=2, **sizes)
        model = AutoModelForSequenceClassification.from_config(config).to(torch.bfloat16).eval()
    ids = torch.randint(3, 64, (64, 8), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        rounded = model(input_ids=ids).logits.float()
        widen_head(model)
        scores = model(input_ids=ids).logits
    assert scores.dtype == torch.float32
    assert len(scores.unique()) == 64
    assert len(rounded.unique()) < 64
    torch.testing.assert_close(scores, rounded, rtol=0.02, atol=0.02)
