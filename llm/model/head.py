"""What a network's head says of some positions of a batch, and never of all: a row of the vocabulary's size for each
token of it is often most of the memory that training takes.

    lp = log_softmax(head(hidden))[target]      float32, for the positions that a loss looks at

The head goes over ``LOGITS`` numbers at a time. Where there is more than that and a gradient is wanted, each part is
forgotten and computed again in the backward pass.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from raftdiff.training.tokenizers import table_rows

LOGITS = 2**24
"""At once; in float32 they take 64 MiB, and as much again for each step of what is made of them."""
Head = Callable[[Tensor], Tensor]


class Read(NamedTuple):
    """A batch as a network read it, up to its head."""

    hidden: Float[Tensor, "rows tokens width"]
    """The last hidden states, after the final norm."""
    head: Head
    """(1, positions, width) -> (1, positions, vocabulary): all that the model does behind them, a cap or a scale
    included."""
    at_once: int
    """Positions that the head is to be shown."""


def read(model: Any, **inputs: Any) -> Read:
    """``inputs`` are the model's own: ids or embeddings, and the attention mask.

    The model is called as a whole, so that it does what it does. One that asks another part of itself than its
    ``base_model`` for the hidden states, as OPT does, gives all logits at once, and a head that changes nothing.
    """
    base, found = model.base_model, []

    def keep(module: Any, given: Any, output: Any) -> Any:
        del module, given
        found.append(output)
        return _with(output, output.last_hidden_state[:1, :1])

    held = base.register_forward_hook(keep) if base is not model else None
    try:
        logits: Tensor = model(**{"use_cache": False, **inputs}).logits
    finally:
        if held:
            held.remove()
    at_once = max(1, LOGITS // table_rows(model))
    if not found:
        return Read(logits, lambda hidden: hidden, at_once)

    def head(hidden: Tensor) -> Tensor:
        ids = torch.zeros(hidden.shape[:2], dtype=torch.int64, device=hidden.device)  # which nobody looks at
        with _answering(base, _with(found[0], hidden)):
            said: Tensor = model(input_ids=ids, use_cache=False).logits
        return said

    return Read(found[0].last_hidden_state, head, at_once)


def log_probabilities_at(
    found: Read, places: Int[Tensor, " positions"], targets: Int[Tensor, " positions"]
) -> Float32[Tensor, " positions"]:
    """log p of ``targets``, nats, as the network predicts them at ``places``, which are counted through all rows."""
    device = found.hidden.device
    hidden = found.hidden.flatten(0, 1).index_select(0, places.to(device))
    return log_probabilities_of(found.head, hidden, targets.to(device), at_once=found.at_once)


def log_probabilities_of(
    head: Head, hidden: Float[Tensor, "positions width"], targets: Int[Tensor, " positions"], *, at_once: int
) -> Float32[Tensor, " positions"]:
    """log softmax(head(hidden))[target], the normaliser in float32, with the gradient of the whole.

    Of more than ``at_once`` positions no more logits are held than of so many, in the backward pass either.
    """

    def part(hidden: Tensor, targets: Tensor) -> Tensor:
        logits = head(hidden[None])[0].float()
        return logits.gather(-1, targets[:, None]).squeeze(-1) - logits.logsumexp(dim=-1)

    parts = list(zip(torch.split(hidden, at_once), torch.split(targets, at_once), strict=True))
    if len(parts) == 1 or not torch.is_grad_enabled():
        return torch.cat([part(*one) for one in parts])
    return torch.cat([checkpoint(part, *one, use_reentrant=False) for one in parts])


def _with(output: Any, hidden: Tensor) -> Any:
    """What a network returned, with other hidden states in it."""
    return type(output)(**{**output, "last_hidden_state": hidden})


@contextmanager
def _answering(module: Any, output: Any) -> Iterator[None]:
    """Within, the module returns ``output`` whatever it is given."""
    own = vars(module).get("forward")
    module.forward = lambda *given, **named: output
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own
