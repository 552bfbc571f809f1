"""The weights that are learned: a LoRA or all of them, in networks that the sampler shares.

While the fine-tuner works, a network holds the *live* weights, float32. Between times it holds the *policy*: the live
weights, or their moving average, in the model's dtype, a LoRA merged into the layers that it changes, so that sampling
costs no more than the base model's. Tensors are swapped under the same parameters, so whoever holds the network (the
sampler, a compiled form of it) always sees the right ones, and nothing is rebuilt. A merged layer's own weights are
kept beside it and put back, never subtracted out again.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from raftdiff.errors import UserError

Adapter = Literal["lora", "full"]
Weights = dict[str, Tensor]


@final
class Trainable:
    """The trained parameters by name, and the three sets of weights that can stand in them: live, policy, base.

    Names are ``<module>.<parameter>``, such as ``unet.<parameter>`` and ``text_encoder.<parameter>``.

    - `name`: of the model, for sentences; `modules`: the networks by name.
    - `whole`: names of modules that are trained entirely also under a LoRA, such as a head, and are float32 at rest.
    - `dtype`, `rest_channels_last`: how the networks are held at rest; `channels_last`: while they are trained.
    - `changed`: called whenever the policy's weights are others than before.
    """

    def __init__(
        self,
        name: str,
        modules: Mapping[str, Any],
        adapter: Adapter,
        *,
        dtype: torch.dtype,
        channels_last: bool = False,
        rest_channels_last: bool = False,
        changed: Callable[[], None] = lambda: None,
        whole: tuple[str, ...] = (),
    ) -> None:
        self.name, self.modules, self.adapter, self.whole = name, dict(modules), adapter, whole
        self.channels_last = channels_last
        self._dtype, self._rest_channels_last, self._changed = dtype, rest_channels_last, changed
        self.parameters: dict[str, nn.Parameter] = {
            f"{prefix}.{name}": parameter
            for prefix, module in self.modules.items()
            for name, parameter in module.named_parameters()
            if adapter == "full" or prefix in whole or "lora_" in name
        }
        self.live: Weights = {
            name: _laid_out(parameter.detach().float().clone(), channels_last)
            for name, parameter in self.parameters.items()
        }
        self.base: Weights = {  # a LoRA's base is still there, under it
            name: parameter.detach().clone()
            for name, parameter in self.parameters.items()
            if adapter == "full" or self._is_whole(name)
        }
        self._layers = lora_layers(self.modules.values())
        self._unmerged: list[Tensor] = []
        self._aside: Weights = {}
        self.rest(None)

    def count(self) -> int:
        """How many numbers are trained."""
        return sum(weight.numel() for weight in self.live.values())

    def wake(self, frozen: torch.dtype) -> None:
        """Put the live weights in, ready to be trained, and hold everything else in the dtype ``frozen``."""
        self._put(self._unmerged)
        self._unmerged = []
        self._arrange(frozen, self.channels_last)
        for name, parameter in self.parameters.items():
            parameter.data = self.live[name]
        self.enable(True)
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)

    def rest(self, average: Mapping[str, Tensor] | None) -> None:
        """Put the policy in: ``average``, or the live weights, in the model's dtype."""
        dtype, channels_last = self._dtype, self._rest_channels_last
        policy = self.live if average is None else average
        self._put(self._unmerged)
        for parameter in self.parameters.values():
            parameter.grad = None
            parameter.requires_grad_(False)
        self._arrange(dtype, channels_last)
        for name, parameter in self.parameters.items():
            held = torch.float32 if self._is_whole(name) else dtype
            parameter.data = _laid_out(policy[name].to(held), channels_last)
        self._unmerged = self._put(self._merged()) if self._merges else []
        self._pass_by(self._merges)
        self._changed()

    @property
    def stem(self) -> str:
        """What the saved weights are called."""
        return "adapter" if self.adapter == "lora" else "weights"

    def take(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take the weights that a saved state holds under ``stem`` as the live ones.

        Raises:
            UserError: it holds none, or they belong to another model or another adapter.
        """
        if self.stem not in state:
            raise UserError(
                f"{self.name}: the saved state holds no '{self.stem}' weights: finetuner.adapter was different."
            )
        self.load(state[self.stem])

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Take ``weights`` as the live ones.

        Raises:
            UserError: they belong to another model or another adapter.
        """
        for name, live in self.live.items():
            if name not in weights or weights[name].shape != live.shape:
                raise UserError(
                    f"{self.name}: the saved weights are not of this fine-tuner: '{name}' "
                    f"{'is missing' if name not in weights else 'has another shape'}. The model, or the fine-tuner's "
                    "adapter, rank or target_modules (or train_text_encoder), was different then."
                )
        for name, live in self.live.items():
            live.copy_(weights[name])

    @contextmanager
    def base_weights(self) -> Iterator[None]:
        """Within, the resting network is the base model again, for predictions and for the sampler alike."""
        merged = self._put(self._unmerged)
        self.enable(False)
        self._changed()
        try:
            yield
        finally:
            self._put(merged)
            self._swap(True)
            self._pass_by(self._merges)
            self._changed()

    @contextmanager
    def passed_by(self) -> Iterator[None]:
        """While training, the base model for a moment."""
        self.enable(False)
        try:
            yield
        finally:
            self.enable(True)

    def enable(self, on: bool) -> None:
        """While training, switch between what is trained and the base: a LoRA is passed by, other weights swapped."""
        self._pass_by(not on)
        self._swap(on)

    def _pass_by(self, lora: bool) -> None:
        """Whether the network passes its LoRA by."""
        wanted = {parameter: parameter.requires_grad for parameter in self.parameters.values()}
        for layer in self._layers:
            layer.enable_adapters(not lora)
        for parameter, trained in wanted.items():
            parameter.requires_grad_(trained)  # peft has an opinion on it, which is ours to have

    def _swap(self, on: bool) -> None:
        """Stand the base of what is trained entirely in its place, or put back what stood there."""
        if on:
            for name, weight in self._aside.items():
                self.parameters[name].data = weight
            self._aside = {}
        else:
            self._aside = {name: self.parameters[name].data for name in self.base}
            for name, weight in self.base.items():
                self.parameters[name].data = weight.to(self._aside[name].dtype)

    def _is_whole(self, name: str) -> bool:
        """Whether a parameter belongs to a module that is trained entirely."""
        return name.partition(".")[0] in self.whole

    @property
    def _merges(self) -> bool:
        """Whether the policy at rest is a LoRA merged into its layers."""
        return self.adapter == "lora" and self._dtype == torch.float32

    def _merged(self) -> list[Tensor]:
        """What the LoRA's layers weigh with it, in their order."""
        sums = [layer.get_base_layer().weight + layer.get_delta_weight("default") for layer in self._layers]
        return [_laid_out(weight.detach(), self._rest_channels_last) for weight in sums]

    def _put(self, weights: list[Tensor]) -> list[Tensor]:
        """Stand ``weights`` in the LoRA's layers; returns what stood there. Nothing happens without any."""
        before = [layer.get_base_layer().weight.data for layer in self._layers] if weights else []
        for layer, weight in zip(self._layers, weights, strict=False):
            layer.get_base_layer().weight.data = weight
        return before

    def _arrange(self, dtype: torch.dtype, channels_last: bool) -> None:
        """Parameters alone: the frequencies of rotary embeddings are a buffer, and in bfloat16 would be others."""
        for module in self.modules.values():
            for parameter in module.parameters():
                parameter.data = _laid_out(parameter.data.to(dtype), channels_last)


def on_cpu(weights: Mapping[str, Tensor]) -> Weights:
    """Copies to be saved."""
    return {
        name: weight.detach().cpu().clone(memory_format=torch.contiguous_format) for name, weight in weights.items()
    }


def lora_layers(modules: Iterable[Any]) -> list[Any]:
    """peft's LoRA layers in some networks."""
    from peft.tuners.lora import LoraLayer

    return [layer for module in modules for layer in module.modules() if isinstance(layer, LoraLayer)]


def merged(module: Any) -> Any:
    """A float32 copy of a resting network with its LoRA merged: half precision would round small changes away."""
    whole = copy.deepcopy(module).float()
    layers = set(lora_layers([whole]))
    for name, layer in [(name, layer) for name, layer in whole.named_modules() if layer in layers]:
        parent, _, last = name.rpartition(".")
        if not layer.disable_adapters:  # else it rests merged
            layer.get_base_layer().weight.data += layer.get_delta_weight("default")
        setattr(whole.get_submodule(parent), last, layer.get_base_layer())
    if hasattr(whole, "peft_config"):  # otherwise it is saved as a model with an adapter
        del whole.peft_config
        whole._hf_peft_config_loaded = False
    return whole


def add_lora(
    module: Any, rank: int, alpha: float, targets: tuple[str, ...], seed: int, *, dropout: float = 0.0
) -> None:
    """Put a LoRA (arXiv:2106.09685) that changes nothing yet on the layers whose names end in ``targets``.

    Raises:
        UserError: no layer does.
    """
    from peft import LoraConfig

    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets), lora_dropout=dropout)
    # peft draws from the global generator; its state is put back, so that nobody else's draws depend on this one
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            module.add_adapter(config)
        except ValueError as error:
            raise UserError(
                f"finetuner.target_modules: no layer of the model ends in any of {', '.join(targets)}. "
                "Use attention or all, or names as in the model's own parameters."
            ) from error


def _laid_out(weight: Tensor, channels_last: bool) -> Tensor:
    if weight.ndim != 4:
        return weight
    return weight.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
