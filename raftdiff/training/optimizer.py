"""AdamW whose state is named tensors, a moving average of weights, and who sees what when."""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from raftdiff.errors import UserError
from raftdiff.seeds import fold

LARGEST = 1e8
"""Of a trained weight; the square of it still leaves room in float32."""


def adamw(
    parameters: Mapping[str, nn.Parameter], learning_rate: float, betas: tuple[float, float], weight_decay: float
) -> torch.optim.AdamW:
    """AdamW (arXiv:1711.05101), fused: a LoRA is a hundred small tensors, and a loop over them is a cost of its own."""
    return torch.optim.AdamW(
        list(parameters.values()), lr=learning_rate, betas=betas, weight_decay=weight_decay, fused=True
    )


def adamw_8bit(
    parameters: Mapping[str, nn.Parameter], learning_rate: float, betas: tuple[float, float], weight_decay: float
) -> torch.optim.Optimizer:
    """AdamW whose two moments are kept in 8 bits each, block by block (Dettmers et al. 2021, arXiv:2110.02861); those
    of fewer than 4,096 weights stay in float32."""
    import bitsandbytes as bnb

    made: torch.optim.Optimizer = bnb.optim.AdamW8bit(
        list(parameters.values()), lr=learning_rate, betas=betas, weight_decay=weight_decay
    )
    return made


def rmsprop(parameters: Mapping[str, nn.Parameter], learning_rate: float, weight_decay: float) -> torch.optim.RMSprop:
    """RMSprop, half the memory of Adam; what DPO and IFT were published with."""
    return torch.optim.RMSprop(list(parameters.values()), lr=learning_rate, weight_decay=weight_decay)


def state_dict(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """``<parameter>/<quantity>`` -> tensor, on the CPU; empty before the first step."""
    return {
        f"{name}/{quantity}": torch.as_tensor(value).detach().cpu().clone().contiguous()
        for name, parameter in parameters.items()
        for quantity, value in optimizer.state.get(parameter, {}).items()
    }


def load_state_dict(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    live: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
) -> None:
    """Put back what ``state_dict`` gave. Parameters without an entry start anew.

    Moments take the memory layout of the ``live`` weights: the fused kernel walks both in step. What else an optimizer
    keeps, as one in 8 bits does, is put back as it was.
    """
    optimizer.state.clear()
    counted = isinstance(optimizer, torch.optim.AdamW | torch.optim.RMSprop)  # bitsandbytes' counts in Python
    for name, parameter in parameters.items():
        if f"{name}/step" in state:
            known = {key.rpartition("/")[2]: value for key, value in state.items() if key.startswith(f"{name}/")}
            moments = {key: _like(live[name], value) for key, value in known.items() if key != "step"}
            step = known["step"].to(live[name].device, copy=True) if counted else int(known["step"])
            optimizer.state[parameter] = {"step": step, **moments}


def _like(live: Tensor, value: Tensor) -> Tensor:
    """On the weights' device, and in their layout where it has their shape."""
    if value.shape != live.shape:
        return value.to(live.device, copy=True)
    return torch.empty_like(live, dtype=value.dtype).copy_(value)


def clip(optimizer: torch.optim.Optimizer, max_norm: float | None) -> Float[Tensor, ""]:
    """Shorten the gradients to ``max_norm``; returns their norm before, still on their device."""
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
    if max_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


def check_norm(norm: float, optimizer: torch.optim.Optimizer, *, step: int, where: str = "finetuner") -> None:
    """Whether the gradients of a step were numbers. ``step`` counts from 1, and ``where`` is the part of the recipe
    that says the learning rate: for the sentence.

    Raises:
        UserError: they were not.
    """
    if not math.isfinite(norm):
        raise UserError(
            f"{where}: the loss is no longer a number at step {step}. Lower {where}.learning_rate "
            f"(now {optimizer.defaults['lr']:g}), or train in float32 (finetuner.precision)."
        )


def act(optimizer: torch.optim.Optimizer, rate: float, norm: Float[Tensor, ""]) -> None:
    """Let the gradients, whose norm this is, act at this learning rate, and forget them. Those that are no numbers do
    not act: AdamW's kernel sees to it where the weights are, for the others the norm is read."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    if isinstance(optimizer, torch.optim.AdamW):
        optimizer.found_inf = (~torch.isfinite(norm)).float()  # type: ignore[attr-defined]
        optimizer.step()
        del optimizer.found_inf  # type: ignore[attr-defined]
    elif torch.isfinite(norm):
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def step(
    optimizer: torch.optim.Optimizer, rate: float, max_norm: float | None, *, number: int, where: str = "finetuner"
) -> float:
    """Let the gradients act at this learning rate: clipped, checked, stepped, gone. Returns their norm before clipping.

    Raises:
        UserError: as ``check_norm``, whose ``step`` is ``number``; the weights are then as before.
    """
    norm = clip(optimizer, max_norm)
    check_norm(read := float(norm), optimizer, step=number, where=where)
    act(optimizer, rate, norm)
    return read


def check_weights(weights: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, *, where: str = "finetuner") -> None:
    """Whether a network can compute with what a round's steps made: the last step's gradients say nothing of what it
    did. ``where`` as in ``clip``.

    Raises:
        UserError: a weight is no number, or larger than any that is of use.
    """
    held = {name: weight.detach() for name, weight in weights.items() if weight.numel()}
    most = torch.stack([weight.abs().max() for weight in held.values()]).tolist() if held else []
    for name, largest in zip(held, most, strict=True):
        if not largest < LARGEST:
            raise UserError(
                f"{where}: the steps of this round made weights of {largest:g} ('{name}'), which nothing can be "
                f"computed with. Lower {where}.learning_rate (now {optimizer.defaults['lr']:g})."
            )


def update_average(average: Mapping[str, Tensor], live: Mapping[str, Tensor], decay: float, step: int) -> None:
    """One step of the exponential moving average, in place.

    The decay is held below (1 + step) / (10 + step), so that a short run does not average in its starting point for
    ever; ``step`` counts from 0.
    """
    weight = 1.0 - min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(average.values()), [live[name] for name in average], weight)


def learning_rate(base: float, kind: str, progress: float, step: int, warmup: int) -> float:
    """The rate of optimizer step ``step`` (from 0, over all rounds), at ``progress`` (0 to 1) through all rounds.

    >>> [learning_rate(1.0, "cosine", progress, 100, 10) for progress in (0.0, 1.0)]
    [1.0, 0.0]
    """
    ramp = min(1.0, (step + 1) / warmup) if warmup else 1.0
    left = 1.0 - min(max(progress, 0.0), 1.0)
    shape = {"constant": 1.0, "linear": left, "cosine": 0.5 * (1.0 - math.cos(math.pi * left))}[kind]
    return base * ramp * shape


def exposure_plan(items: int, steps: int, rows: int, exposures: float | None, seed: int) -> list[list[int]]:
    """Which items each optimizer step sees: a shuffle of all of them, then another, cut into steps of ``rows``.

    It ends after ``steps`` steps, or when each item has been seen ``exposures`` times on average (a fraction of one
    shows a part of the items once); the last step may be smaller.

    >>> [len(rows) for rows in exposure_plan(5, 100, 4, 2.0, 0)]
    [4, 4, 2]
    """
    total = steps * rows if exposures is None else min(steps * rows, max(1, int(exposures * items)))
    if items == 0 or steps == 0:
        return []
    order: list[int] = []
    while len(order) < total:
        shuffle = torch.Generator().manual_seed(fold(seed, "order", len(order) // items))
        order += torch.randperm(items, generator=shuffle).tolist()
    return [order[start : min(start + rows, total)] for start in range(0, total, rows)]
