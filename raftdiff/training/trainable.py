"""The weights that are learned: a LoRA or all of them, in networks that the sampler shares.

While the fine-tuner works, a network holds the *live* weights, float32. Between times it holds the *policy*: the live
weights, or their moving average, in the model's dtype, a LoRA merged into the layers that it changes, so that sampling
costs no more than the base model's. Tensors are swapped under the same parameters, so whoever holds the network (the
sampler, a compiled form of it) always sees the right ones, and nothing is rebuilt. A merged layer's own weights are
kept beside it and put back, never subtracted out again; in half precision the sum is rounded evenly, up and down, and
what does not stand in the layers waits in main memory.
"""

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from raftdiff.errors import UserError
from raftdiff.training.quantised import is_quantised
from raftdiff.training.sharded import is_part, is_split
from raftdiff.training.weights import laid_out, rounded_evenly

Adapter = Literal["lora", "full"]
ALL_LINEAR = "all-linear"
"""In place of names of layers: every linear layer but the output head, whatever the architecture calls them."""
Weights = dict[str, Tensor]


@final
class Trainable:
    """The trained parameters by name, and the three sets of weights that can stand in them: live, policy, base.

    Names are ``<module>.<parameter>``, such as ``unet.<parameter>`` and ``text_encoder.<parameter>``.

    - `name`: of the model, for sentences; `modules`: the networks by name.
    - `whole`: names of modules that are trained entirely also under a LoRA, such as a head, and are float32 at rest.
    - `dtype`, `rest_channels_last`: how the networks are held at rest; `channels_last`: while they are trained.
    - `merge_half`: whether a LoRA is merged in half precision too; otherwise it stays beside the weights there.
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
        merge_half: bool = False,
        changed: Callable[[], None] = lambda: None,
        whole: tuple[str, ...] = (),
    ) -> None:
        self.name, self.modules, self.adapter, self.whole = name, dict(modules), adapter, whole
        self.channels_last = channels_last
        self._dtype, self._rest_channels_last, self._changed = dtype, rest_channels_last, changed
        self._merge_half, self._as_base = merge_half, False
        self.parameters: dict[str, nn.Parameter] = {
            f"{prefix}.{name}": parameter
            for prefix, module in self.modules.items()
            for name, parameter in module.named_parameters()
            if adapter == "full" or prefix in whole or "lora_" in name
        }
        self.live: Weights = {
            name: laid_out(parameter.detach().float().clone(), channels_last)
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
        self._restore()
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
        self._restore()
        for parameter in self.parameters.values():
            parameter.grad = None
            parameter.requires_grad_(False)
        self._arrange(dtype, channels_last)
        if self._merges:  # by the LoRA as it was learnt, before it is rounded itself
            for name, parameter in self.parameters.items():
                parameter.data = laid_out(policy[name], channels_last)
            self._unmerged = self._put(self._merged())
        for name, parameter in self.parameters.items():
            held = torch.float32 if self._is_whole(name) else dtype
            parameter.data = laid_out(policy[name].to(held), channels_last)
        self._pass_by(self._merges)
        self._changed()

    def described(self) -> str:
        """What is trained, in a few words: how many layers of which names."""
        if self.adapter == "full":
            return f"every weight of {' and '.join(self.modules)}, {self.count():,} numbers"
        names = Counter(
            _short(name)
            for module in self.modules.values()
            for name, layer in module.named_modules()
            if layer in set(self._layers)
        )
        listed = ", ".join(f"{count} {name}" for name, count in names.items())
        return f"a LoRA on {len(self._layers)} layers ({listed}), {self.count():,} numbers"

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
        """Within, the resting network is the base model again, for predictions and for the sampler alike. Within this
        once more, it stays so."""
        if self._as_base:
            yield
            return
        self._as_base = True
        merged = self._put(self._unmerged)
        self.enable(False)
        self._changed()
        try:
            yield
        finally:
            self._put(merged)
            self._swap(True)
            self._pass_by(self._merges)
            self._as_base = False
            self._changed()

    @contextmanager
    def passed_by(self) -> Iterator[None]:
        """While training, the base model for a moment."""
        self.enable(False)
        try:
            yield
        finally:
            self.enable(True)

    @contextmanager
    def holding(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """While training, other weights for a moment, of the same names and shapes."""
        for name, parameter in self.parameters.items():
            parameter.data = weights[name]
        try:
            yield
        finally:
            for name, parameter in self.parameters.items():
                parameter.data = self.live[name]

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
        return (
            self.adapter == "lora"
            and (self._merge_half or self._dtype == torch.float32)
            and not any(is_quantised(module) or is_split(module) for module in self.modules.values())
        )

    def _merged(self) -> Iterator[Tensor]:
        """What the LoRA's layers weigh with it, in their order, the sums taken in float32."""
        for layer in self._layers:
            weight = layer.get_base_layer().weight.detach().float() + layer.get_delta_weight("default").detach()
            yield laid_out(rounded_evenly(weight, self._dtype), self._rest_channels_last)

    def _put(self, weights: Iterable[Tensor]) -> list[Tensor]:
        """Stand ``weights`` in the LoRA's layers, one after the other; returns what stood there. Nothing happens
        without any."""
        before = []
        for layer, weight in zip(self._layers, weights, strict=False):
            held = layer.get_base_layer().weight
            waits = self._dtype != torch.float32 and held.is_cuda  # else a large model would be there twice
            before.append(held.data.cpu() if waits else held.data)
            held.data = weight.to(held.device)
        return before

    def _restore(self) -> None:
        """The layers' own weights, where a LoRA is merged."""
        for layer, weight in zip(self._layers, self._unmerged, strict=False):
            held = layer.get_base_layer().weight
            held.data = weight.to(held.device)
        self._unmerged = []

    def _arrange(self, dtype: torch.dtype, channels_last: bool) -> None:
        """Parameters alone: the frequencies of rotary embeddings are a buffer, and in bfloat16 would be others."""
        for module in self.modules.values():
            for parameter in module.parameters():
                if not parameter.is_floating_point() or is_part(parameter):  # quantised, or split over processes
                    continue
                parameter.data = laid_out(parameter.data.to(dtype), channels_last)


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
    """A resting network with its LoRA merged, to be written.

    Weights that no LoRA changes are the network's own, not copies. Of the others one at a time is added up in float32
    and rounded evenly to what it is held in; they lie in main memory, since the GPU may be full.
    """
    held = {id(it): nn.Parameter(it.data, requires_grad=False) for it in module.parameters()}
    whole = copy.deepcopy(module, {**held, **{id(it): it.detach() for it in module.buffers()}})
    layers = set(lora_layers([whole]))
    for name, layer in [(name, layer) for name, layer in whole.named_modules() if layer in layers]:
        parent, _, last = name.rpartition(".")
        if not layer.disable_adapters:  # else it rests merged
            for half in (half for part, half in layer.named_parameters() if "lora_" in part):
                half.data = half.data.float()
            weight = layer.get_base_layer().weight
            weight.data = rounded_evenly(layer.get_delta_weight("default").add_(weight.data), weight.dtype).cpu()
        setattr(whole.get_submodule(parent), last, layer.get_base_layer())
    if hasattr(whole, "peft_config"):  # otherwise it is saved as a model with an adapter
        del whole.peft_config
        whole._hf_peft_config_loaded = False
    return whole


def add_lora(
    module: Any, rank: int, alpha: float, targets: tuple[str, ...], seed: int, *, dropout: float = 0.0
) -> None:
    """Put a LoRA (arXiv:2106.09685) that changes nothing yet on the layers whose names end in ``targets``; with
    "all-linear" among them on every linear layer.

    Raises:
        UserError: no layer does, or one that does shares its weights with another layer.
    """
    from peft import LoraConfig

    if ALL_LINEAR in targets:
        targets = all_linear(module)
    matching = [name for name, _ in module.named_modules() if _ends(name, targets)]
    if not matching:
        raise UserError(
            f"finetuner.target_modules: no layer of the model ends in any of {', '.join(targets)}. Use {ALL_LINEAR}, "
            f"or some of {', '.join(dict.fromkeys(_short(name) for name in all_linear(module)))}."
        )
    shared = _shared(module)
    for name in matching:
        if name in shared:
            raise UserError(
                f"finetuner.target_modules: '{name}' and '{shared[name]}' of this model are one table, and a LoRA "
                "on one of them could not be merged without changing the other; leave it out."
            )
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=list(targets),
        lora_dropout=dropout,
        fan_in_fan_out=any(type(module.get_submodule(name)).__name__ == "Conv1D" for name in matching),
    )
    # peft draws from the global generator; its state is put back, so that nobody else's draws depend on this one
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            module.add_adapter(config)
        except ValueError as error:
            raise UserError(f"finetuner.target_modules: {' '.join(str(error).split())}") from error


def all_linear(module: Any, among: tuple[str, ...] | None = None) -> tuple[str, ...]:
    """The ends of the names of a network's linear layers, or their whole names where these ends would mean others too:
    all but its output head, and but what a LoRA cannot stand in for; ``among``: only those that end so."""
    head = module.get_output_embeddings() if hasattr(module, "get_output_embeddings") else None
    kind = str(getattr(getattr(module, "config", None), "model_type", ""))
    passed = ("out_proj", "dt_proj") if "mamba" in kind else ()  # its kernels read these two past their layers
    shared = _shared(module)
    names = [
        name
        for name, layer in module.named_modules()
        if (isinstance(layer, nn.Linear) or type(layer).__name__ == "Conv1D")
        and layer is not head
        and name not in shared
        and not _ends(name, passed)
        and (among is None or _ends(name, among))
    ]
    short = tuple(dict.fromkeys(_short(name) for name in names))
    meant = [name for name, _ in module.named_modules() if _ends(name, short)]
    return short if meant == names else tuple(names)


def _ends(name: str, targets: tuple[str, ...]) -> bool:
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _short(name: str) -> str:
    """The last part of a layer's name that says something: ``q_proj``, ``to_out.0``."""
    parts = name.split(".")
    return ".".join(parts[-2:]) if parts[-1].isdigit() else parts[-1]


def _shared(module: Any) -> dict[str, str]:
    """Layers whose weight is another layer's too, with that one's name."""
    owners: dict[int, list[str]] = {}
    for name, layer in module.named_modules():
        weight = getattr(layer, "_parameters", {}).get("weight")
        if weight is not None:
            owners.setdefault(id(weight), []).append(name)
    return {name: names[place - 1] for names in owners.values() if len(names) > 1 for place, name in enumerate(names)}
