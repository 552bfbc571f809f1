"""The head is shown what a loss looks at, in parts, and says and teaches what it would have of everything at once."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from raftdiff.llm.model.head import log_probabilities_at, log_probabilities_of, read
from raftdiff.llm.model.loading import LM
from raftdiff.llm.model.rows import Row, collate
from raftdiff.llm.model.tokens import log_probabilities

POSITIONS, WIDTH, VOCABULARY = 11, 6, 37
ROWS = [Row((1, 4, 5), (6, 7, 2)), Row((1, 4), (2,)), Row((1, 5, 4, 4), (6, 8, 5))]


class Largest(TorchDispatchMode):
    """The most numbers that any tensor had which was made within."""

    numbers = 0

    def __torch_dispatch__(
        self, call: Callable[..., Any], types: Any, given: tuple[Any, ...] = (), named: Any = None
    ) -> Any:
        made = call(*given, **(named or {}))
        for one in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(one, Tensor):
                self.numbers = max(self.numbers, one.numel())
        return made


def learnt(at_once: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """log p, and the gradients of a loss on it for the hidden states and for the head's weights."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(POSITIONS, WIDTH, generator=generator).to(dtype).requires_grad_()
    head = nn.Linear(WIDTH, VOCABULARY, bias=False, dtype=dtype)
    with torch.no_grad():
        head.weight.copy_(torch.randn(VOCABULARY, WIDTH, generator=generator))
    targets = torch.randint(VOCABULARY, (POSITIONS,), generator=generator)
    lp = log_probabilities_of(head, hidden, targets, at_once=at_once)
    torch.autograd.backward((lp.exp() * torch.linspace(-1, 2, POSITIONS)).sum())
    assert hidden.grad is not None
    assert head.weight.grad is not None
    return lp.detach(), hidden.grad, head.weight.grad


@pytest.mark.parametrize("at_once", [1, 4, POSITIONS])
def test_in_parts_it_is_the_whole_and_so_are_its_gradients(at_once: int) -> None:
    for mine, whole in zip(learnt(at_once), learnt(POSITIONS + 1), strict=True):
        torch.testing.assert_close(mine, whole, rtol=1e-6, atol=1e-6)


def test_it_is_a_log_softmax_in_float32_of_half_precision_too() -> None:
    head, hidden = nn.Linear(WIDTH, VOCABULARY, dtype=torch.bfloat16), torch.randn(3, WIDTH, dtype=torch.bfloat16)
    found = log_probabilities_of(head, hidden, torch.tensor([0, 5, 36]), at_once=2)
    wanted = head(hidden).float().log_softmax(-1)[[0, 1, 2], [0, 5, 36]]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


def test_no_more_logits_are_ever_held_than_are_asked_for_at_once() -> None:
    largest = {}
    for at_once in (2, POSITIONS):
        with Largest() as seen:
            learnt(at_once)
        largest[at_once] = seen.numbers
    weights = VOCABULARY * WIDTH
    assert largest == {2: weights, POSITIONS: POSITIONS * VOCABULARY}, "forward and backward; 2 rows are 74 numbers"


def capped(opened: Callable[[Any], LM]) -> LM:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    more = {"num_key_value_heads": 2, "head_dim": 8, "final_logit_softcapping": 2.0, "sliding_window": 4}
    return opened(Gemma2ForCausalLM(Gemma2Config(vocab_size=16, initializer_range=1.0, **sizes, **more)))


def asks_another(opened: Callable[[Any], LM]) -> LM:
    """OPT's language model does not ask its ``base_model``, but the decoder in it."""
    from transformers import OPTConfig, OPTForCausalLM

    sizes = {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return opened(OPTForCausalLM(OPTConfig(vocab_size=16, max_position_embeddings=40, init_std=0.3, **sizes)))


@pytest.mark.parametrize("make", [lambda opened: None, capped, asks_another], ids=["llama", "capped", "opt"])
@pytest.mark.parametrize("at_once", [2, 100])
def test_it_is_what_the_model_says_whatever_it_does_behind_its_hidden_states(
    lm: LM, make: Callable[..., LM | None], at_once: int
) -> None:
    model = make(lambda made: made.eval()) or lm.model
    batch = collate(ROWS, 0)
    given = {"input_ids": batch.ids, "attention_mask": batch.attention}
    with torch.no_grad():
        found = read(model, **given)._replace(at_once=at_once)
        lp = log_probabilities_at(found, batch.places, batch.targets)
        logits = model(**given, use_cache=False).logits
        torch.testing.assert_close(lp, log_probabilities(logits, batch.ids)[batch.mask], rtol=0, atol=1e-5)
    assert not model.base_model._forward_hooks, "it is left as it was"
    assert "forward" not in vars(model.base_model)


def test_a_models_weights_learn_the_same_in_parts(lm_folder: Any, open_lm: Callable[..., LM]) -> None:
    """The table of embeddings is the head too, so gradients come to it from both ends."""
    batch, learnt = collate(ROWS, 0), []
    for at_once in (2, 100):
        model = open_lm(lm_folder).model.requires_grad_(True)
        found = read(model, input_ids=batch.ids, attention_mask=batch.attention)._replace(at_once=at_once)
        torch.autograd.backward(log_probabilities_at(found, batch.places, batch.targets).square().sum())
        learnt.append([weight.grad for weight in model.parameters()])
    for mine, whole in zip(*learnt, strict=True):
        torch.testing.assert_close(mine, whole, rtol=1e-5, atol=1e-5)
