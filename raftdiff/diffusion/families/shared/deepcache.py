"""A U-Net whose deep layers are asked at some of the steps alone, for the families that have one."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol, final, runtime_checkable

import torch
from torch import Tensor

KINDS = ("DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D")
"""Blocks of Stable Diffusion's U-Nets, whose layers are known here."""


@runtime_checkable
class Reusing(Protocol):
    """A family whose network can be asked for its outer layers alone."""

    def reusing(self, network: Any, every: int, skips: int) -> Callable[..., Any]:
        """To be asked like the network, step after step of one drawing: see ``DeepCache``."""
        ...


class Layer(NamedTuple):
    """What a U-Net computes from one skip connection to the next."""

    resnet: Any = None
    attention: Any = None
    sampler: Any = None
    """To half the size, or to twice."""

    def __call__(self, hidden: Tensor, emb: Tensor, tokens: Tensor) -> Tensor:
        if self.resnet is not None:
            hidden = self.resnet(hidden, emb)
        if self.attention is not None:
            hidden = self.attention(hidden, encoder_hidden_states=tokens, return_dict=False)[0]
        return hidden if self.sampler is None else self.sampler(hidden)


@final
class DeepCache:
    """Asked like a U-Net, once a step of one drawing; make another for the next, which would take over its features.

    The whole network is asked at the first step and every so many after it. Between them the outer layers alone are:
    those before the ``skips``-th skip connection, the first convolution's included, and those behind it, to which the
    features from within come as they were when the whole was last asked. A row knows nothing of the rows beside it.

    Source: Ma et al. 2023, DeepCache, arXiv:2312.00858, with steps evenly spaced (1:N). Departure: the cut can lie at
    any skip connection, of any U-Net of these blocks.
    """

    def __init__(self, unet: Any, every: int, skips: int) -> None:
        """
        Raises:
            ValueError: it has fewer skip connections, or is made of other blocks.
        """
        if strange := {*unet.config.down_block_types, *unet.config.up_block_types} - {*KINDS}:
            raise ValueError(f"the U-Net has blocks of the kind {min(strange)}, and {', '.join(KINDS)} are known")
        down, up = list(_down(unet)), list(_up(unet))
        if not 1 <= skips <= len(up):
            raise ValueError(f"the U-Net has {len(up)} skip connections, and skips is {skips}")
        self._unet, self._every = unet, every
        self._down, self._up = down[: skips - 1], up[-skips:]
        self._asked = 0
        self._seen: Tensor | None = None

    def __call__(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        added_cond_kwargs: Mapping[str, Tensor] | None = None,
        **options: Any,
    ) -> tuple[Tensor, ...]:
        """As the U-Net's, the rows (batch, channels, height, width) in one order at every step."""
        whole, self._asked = self._asked % self._every == 0, self._asked + 1
        if not whole:
            return (self._outer(sample, timestep, encoder_hidden_states, added_cond_kwargs),)
        told = {} if added_cond_kwargs is None else {"added_cond_kwargs": added_cond_kwargs}
        watch = self._up[0].resnet.register_forward_pre_hook(self._see)
        try:
            found: tuple[Tensor, ...] = self._unet(
                sample, timestep, encoder_hidden_states=encoder_hidden_states, **told, **options
            )
        finally:
            watch.remove()
        return found

    def _see(self, resnet: Any, inputs: tuple[Tensor, ...]) -> None:
        """What comes from within, and beside it a skip connection."""
        del resnet
        self._seen = inputs[0]

    def _outer(self, sample: Tensor, timestep: Tensor, tokens: Tensor, told: Mapping[str, Tensor] | None) -> Tensor:
        unet, seen = self._unet, self._seen
        assert seen is not None
        emb = unet.time_embedding(unet.get_time_embed(sample=sample, timestep=timestep), None)
        more = unet.get_aug_embed(emb=emb, encoder_hidden_states=tokens, added_cond_kwargs=told)
        emb = emb if more is None else emb + more
        skips = [unet.conv_in(sample)]
        for layer in self._down:
            skips.append(layer(skips[-1], emb, tokens))
        hidden = seen[:, : seen.shape[1] - skips[-1].shape[1]]
        for layer in self._up:
            hidden = layer(torch.cat([hidden, skips.pop()], dim=1), emb, tokens)
        if unet.conv_norm_out is not None:
            hidden = unet.conv_act(unet.conv_norm_out(hidden))
        found: Tensor = unet.conv_out(hidden)
        return found


def _down(unet: Any) -> Iterator[Layer]:
    """What makes the skip connections after the first, from the outside."""
    for block in unet.down_blocks:
        yield from _layers(block)
        yield from (Layer(sampler=it) for it in block.downsamplers or ())


def _up(unet: Any) -> Iterator[Layer]:
    """What takes them up, the outermost last."""
    for block in unet.up_blocks:
        *others, last = _layers(block)
        yield from others
        yield last._replace(sampler=block.upsamplers[0] if block.upsamplers else None)


def _layers(block: Any) -> list[Layer]:
    attentions = getattr(block, "attentions", [None] * len(block.resnets))
    return [Layer(resnet, attention) for resnet, attention in zip(block.resnets, attentions, strict=True)]
