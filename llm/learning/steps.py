"""How the weights of a language model are trained, step by step: what all fine-tuners of texts share."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from raftdiff.errors import UserError
from raftdiff.llm.model.loading import LM
from raftdiff.llm.model.network import Network
from raftdiff.llm.model.rows import Row, score
from raftdiff.recipes.config import Config
from raftdiff.seeds import fold
from raftdiff.training.devices import DTYPES, DType
from raftdiff.training.trainable import ALL_LINEAR, Trainable, add_lora, lora_layers

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""All linear layers, as Llama calls them: in a recipe they stand for those of any architecture."""


class AdapterConfig(Config):
    """Which weights of a network are trained."""

    adapter: Literal["lora", "full"] = "lora"
    """Low-rank updates (arXiv:2106.09685), or every weight."""
    rank: int = Field(default=16, ge=1)
    """Rank of the LoRA."""
    alpha: float | None = Field(default=None, gt=0)
    """The LoRA's scale is alpha / rank; None takes alpha = rank."""
    target_modules: Literal["all-linear"] | tuple[str, ...] = LINEAR
    """Layers that get a LoRA, by the ends of their names, such as [q_proj, v_proj]; or all-linear: all linear ones but
    the output head, which is also what the default, Llama's names for these, means where others are used. The first
    lines of a run say which were found."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Of the LoRA."""


class StepsConfig(AdapterConfig):
    """How weights are trained, in rounds of optimizer steps."""

    lr_schedule: Literal["constant", "cosine", "linear"] = "constant"
    """How the learning rate falls over all the rounds of the recipe."""
    warmup_steps: int = Field(default=0, ge=0)
    """Optimizer steps over which the learning rate first rises, counted over all rounds."""
    epochs: float = Field(default=1.0, gt=0)
    """How often each answer is seen in a round."""
    batch_size: int = Field(default=32, ge=1)
    """Answers per optimizer step."""
    rows_per_pass: int = Field(default=64, ge=1)
    """Answers through a network at once; an optimizer step is cut accordingly, and gives the same but for dropout."""
    max_grad_norm: float | None = Field(default=None, gt=0)
    """Gradients longer than this are shortened to it; in PPO those of policy and critic each as a whole."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: slower, and a good deal less memory."""
    weight_decay: float = Field(default=0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    precision: DType | None = None
    """What training computes in; None takes the model's dtype. Trained weights and their state are float32 always."""


def precision_of(config: StepsConfig, lm: LM) -> torch.dtype:
    """What training computes in.

    Raises:
        UserError: float16, in which small gradients vanish.
    """
    found = DTYPES[config.precision] if config.precision else lm.dtype
    if found == torch.float16:
        raise UserError("finetuner.precision: float16 needs its gradients scaled; use bfloat16 or float32.")
    return found


def attach(config: AdapterConfig, lm: LM, *, seed: int, heads: Mapping[str, nn.Module] | None = None) -> Trainable:
    """Make the weights of ``lm`` trainable, in place; a LoRA starts as a change of nothing. ``heads`` on top of it are
    trained entirely, whatever the adapter.

    Raises:
        UserError: the model is being tuned already, or none of its layers is a target.
    """
    if lora_layers([lm.model]):
        raise UserError(f"{lm.name}: this model already carries a LoRA; load it afresh to put another on.")
    if config.adapter == "lora":
        alpha = config.alpha if config.alpha is not None else float(config.rank)
        targets = (ALL_LINEAR,) if config.target_modules in (ALL_LINEAR, LINEAR) else tuple(config.target_modules)
        add_lora(lm.model, config.rank, alpha, targets, fold(seed, "lora"), dropout=config.dropout)
    modules = {"model": lm.model, **(heads or {})}
    return Trainable(lm.name, modules, config.adapter, dtype=lm.dtype, whole=tuple(heads or ()))


@contextmanager
def training(trainable: Trainable, model: Any, frozen: torch.dtype, *, checkpointing: bool) -> Iterator[None]:
    """Within, ``model`` holds the live weights, everything else in the dtype ``frozen``; afterwards it rests again.

    The model's own dropout stays off, checkpointed or not; that of its LoRA is on.
    """
    trainable.wake(frozen)
    model.eval()  # not train(), which would turn dropout on
    if checkpointing:
        _checkpointing(model, "enable")({"use_reentrant": False})
        for block in _checkpointed(model):
            block.training = True  # which the library asks for, and which is off again while the block computes
            block._gradient_checkpointing_func = _undropped(block, block._gradient_checkpointing_func)
    for layer in lora_layers([model]):
        layer.lora_dropout.train()
    try:
        yield
    finally:
        if checkpointing:
            _checkpointing(model, "disable")()
        model.eval()
        trainable.rest(None)


@contextmanager
def undisturbed(model: Any) -> Iterator[None]:
    """Within, the LoRA of a network in training drops nothing: what is measured does not differ by a draw."""
    drops = [layer.lora_dropout for layer in lora_layers([model]) if layer.lora_dropout.training]
    for drop in drops:
        drop.eval()
    try:
        yield
    finally:
        for drop in drops:
            drop.train()


def before_steps(network: Network, rows: Sequence[Row], *, batch_size: int) -> list[Tensor]:
    """log p of every answer token under the policy that drew it, as the training computes it; float32 on the CPU.

    A sampler's own come by another way: from a cache, filled up on the left, in the precision of sampling, or from
    another program. In bfloat16 that alone makes ratios of 0.95 to 1.05 of a policy that has not moved.
    """
    with network.computing(), undisturbed(network.lm.model):
        return score(network.lm, rows, batch_size=batch_size)


def sampler_gap(drawn: Sequence[Tensor], before: Sequence[Tensor]) -> float:
    """By how much the sampler's log p of a token differs from the training's, nats, the mean over tokens."""
    return float(torch.cat([(one - other).abs() for one, other in zip(drawn, before, strict=True)]).mean())


def _checkpointed(model: Any) -> list[Any]:
    """The blocks of a network that compute their activations again, now that it is told to."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    flagged = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]
    return [module for module in flagged if isinstance(module, GradientCheckpointingLayer)] or flagged


def _undropped(block: Any, checkpoint: Callable[..., Any]) -> Callable[..., Any]:
    """``checkpoint`` of a block that is not in training while it computes, neither now nor in the backward pass: some
    blocks, such as OPT's, drop activations by their own flag."""

    def run(forward: Callable[..., Any], *inputs: Any) -> Any:
        def quietly(*given: Any, **named: Any) -> Any:
            block.training = False
            try:
                return forward(*given, **named)
            finally:
                block.training = True

        return checkpoint(quietly, *inputs)

    return run


def _checkpointing(model: Any, verb: str) -> Callable[..., None]:
    """The library's switch, under its new name or its old one."""
    found: Callable[..., None] = getattr(model, f"activation_checkpointing_{verb}", None) or getattr(
        model, f"gradient_checkpointing_{verb}"
    )
    return found


@contextmanager
def seeded(seed: int, device: torch.device, wanted: bool) -> Iterator[None]:
    """Dropout draws from the global generator; within, from one of its own."""
    if not wanted:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def passes(places: Sequence[int], rows: int) -> Iterator[list[int]]:
    """A step cut into what goes through a network at once."""
    for start in range(0, len(places), rows):
        yield list(places[start : start + rows])
