"""ImageReward: how well would an expert rate the picture for its caption?"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, final
from weakref import WeakValueDictionary

import torch
from jaxtyping import Float, Float32, Int64
from PIL import Image
from pydantic import Field

from raftdiff.errors import Need, UserError
from raftdiff.recipes.config import RewardConfig
from raftdiff.recipes.needs import demand, model_at
from raftdiff.rewards import blip
from raftdiff.rewards.checkpoints import demand_layout, no_file, shapes, tensors
from raftdiff.rewards.clip_weights import Precision
from raftdiff.rewards.tower import prepared
from raftdiff.training.weights import demand_all, demand_finite, reading
from raftdiff.types import Prompt, Sample

TOKENS = 35
"""Of a caption, those that begin and end it included."""
MEAN, DEVIATION = 0.16717362830052426, 1.0333394966054072
"""Of the raw scores on the authors' data; published beside the weights."""
PREFIX = "blip."
"""Before the names of BLIP's weights in the file."""
HEAD = (0, 2, 4, 6, 7)
"""Places of the head's linear layers, as in LAION's: only dropout stands between them."""
SPARE = ("blip.vision_proj.", "blip.text_proj.", ".position_ids")
"""What the file holds and the score does not need: BLIP's projections, and the numbers of the places."""
ADDED = ("[DEC]", "[ENC]")
"""Tokens that BLIP adds to BERT's; no caption is read with them, but the weights have rows for them."""
WHERE = "ImageReward.pt is at huggingface.co/zai-org/ImageReward"


class ImageRewardConfig(RewardConfig):
    type: Literal["image_reward"] = "image_reward"
    name: str = "image_reward"
    """The column of this reward in tables and logs."""
    weight: float = Field(default=1.0, allow_inf_nan=False)
    """Factor in the total reward."""
    checkpoint: Path
    """The file ImageReward.pt."""
    tokenizer: str = "google-bert/bert-base-uncased"
    """The folder or hub id of BERT's uncased tokenizer."""
    dtype: Precision = "float32"
    """Precision of BLIP: float32, bfloat16 or float16; the head stays float32."""
    batch_size: int = Field(default=16, ge=1)
    """Pictures per forward."""

    def needs(self, resolve: Callable[[str], str]) -> Iterator[Need]:
        """What is not on this machine; see ``recipes.needs``."""
        try:  # a wrong file is told before anything is fetched that would stand beside it
            _recognised(self.checkpoint, "meta")
        except UserError as error:
            yield Need("checkpoint", str(error))
        yield from model_at("tokenizer", resolve(self.tokenizer), where="It takes a folder or a hub id.")

    def build(self, *, device: str = "cpu", resolve: Callable[[str], str] = str) -> "ImageRewardReward":
        network = load(self.checkpoint, device, self.dtype)
        tokenizer = load_tokenizer(resolve(self.tokenizer), network.rows)
        return ImageRewardReward(network, tokenizer, batch_size=self.batch_size, name=self.name)


@final
class Network(torch.nn.Module):
    """BLIP, and on top of it the head, as ImageReward.pt holds them."""

    def __init__(self, sizes: blip.Sizes, widths: Sequence[int]) -> None:
        super().__init__()
        self.side, self.rows = sizes.side, sizes.tokens
        self.blip = blip.Blip(sizes)
        self.head = torch.nn.ModuleList(torch.nn.Linear(*pair) for pair in itertools.pairwise(widths))

    def forward(
        self,
        pixels: Float[torch.Tensor, "batch 3 side side"],
        tokens: Int64[torch.Tensor, "batch tokens"],
        mask: Int64[torch.Tensor, "batch tokens"],
    ) -> Float32[torch.Tensor, " batch"]:
        """Normalised scores; the head reads float32 whatever BLIP's precision."""
        device = next(self.parameters()).device
        pixels, tokens, mask = (one.to(device) for one in (pixels, tokens, mask))
        features: torch.Tensor = self.blip(pixels, tokens, mask).float()
        for layer in self.head:
            features = layer(features)
        return (features[:, 0] - MEAN) / DEVIATION


@final
class ImageRewardReward:
    """A rating of picture and caption together, with mean 0 and standard deviation 1 on the authors' data.

    Unbounded, in practice -2.3 to 2; higher is better. Of two pictures for one caption, a difference of d means that
    the first is preferred with a probability of 1 / (1 + exp(-1.03 d)). BLIP reads the first 35 tokens of the caption
    with the picture before its eyes, so unlike in CLIP each word meets each part of the picture.

    Source: Xu et al. 2023, "ImageReward", arXiv:2304.05977; https://github.com/zai-org/ImageReward (Apache-2.0, the
    weights too), on BLIP-L (BSD-3-Clause).

    Args:
        tokenizer: BERT's uncased one, with the two tokens that BLIP adds.
    """

    token_limit = TOKENS

    def __init__(self, network: Network, tokenizer: Any, *, batch_size: int = 16, name: str = "image_reward") -> None:
        from open_clip.transform import PreprocessCfg, image_transform_v2

        self.name = name
        self._network, self._tokenizer, self._batch_size = network, tokenizer, batch_size
        self._preprocess = image_transform_v2(PreprocessCfg(size=network.side), is_train=False)

    def reads_whole(self, text: str) -> bool:
        """Whether all of a caption is read."""
        return len(self._tokenizer(text, verbose=False).input_ids) <= TOKENS

    def score(self, samples: Sequence[Sample[Image.Image]]) -> Float32[torch.Tensor, " samples"]:
        """Every forward has ``batch_size`` rows, the last filled up, so that a score does not depend on its companions:
        to the bit on a CPU."""
        scores = [torch.empty(0)]
        for start in range(0, len(samples), self._batch_size):
            chunk = samples[start : start + self._batch_size]
            filled = [*chunk, *[chunk[-1]] * (self._batch_size - len(chunk))]
            pixels = torch.stack([self._preprocess(sample.media.convert("RGB")) for sample in chunk])
            missing = torch.zeros(self._batch_size - len(chunk), *pixels.shape[1:])
            with torch.no_grad():
                rated = self._rated(torch.cat([pixels, missing]), [sample.prompt for sample in filled])
            scores.append(rated[: len(chunk)].cpu())
        return torch.cat(scores)

    def graded(
        self, pixels: Float[torch.Tensor, "batch 3 height width"], prompts: Sequence[Prompt]
    ) -> Float[torch.Tensor, " batch"]:
        """The same with gradient; see ``types.Differentiable``."""
        return self._rated(prepared("ImageReward", self._preprocess, pixels), prompts)

    def _rated(
        self, pixels: Float[torch.Tensor, "batch 3 side side"], prompts: Sequence[Prompt]
    ) -> Float32[torch.Tensor, " batch"]:
        texts = [prompt.caption for prompt in prompts]
        read = self._tokenizer(texts, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt")
        scores: torch.Tensor = self._network(pixels, read.input_ids, read.attention_mask)
        return scores


_networks: WeakValueDictionary[tuple[Path, str, Precision], Network] = WeakValueDictionary()
"""Weak, so that a network leaves memory with the last reward that uses it."""


def load(path: Path, device: str = "cpu", dtype: Precision = "float32") -> Network:
    """The network of a file, read on first use and shared from then on.

    Raises:
        UserError: no such file, or it holds other things than the weights of such a model.
    """
    key = (path.resolve(), device, dtype)
    network = _networks.get(key)
    if network is None:
        network = _networks[key] = _load(path).eval().requires_grad_(False).to(device)
        network.blip.to(getattr(torch, dtype))
    return network


def _load(path: Path) -> Network:
    network, found = _recognised(path, "cpu")
    names = {name: published(name) for name in network.state_dict()}
    network.load_state_dict({name: found[there].float() for name, there in names.items()}, assign=True)
    blip.materialise(network.blip)
    demand_finite(f"The ImageReward checkpoint '{path}'", network)
    return network


def _recognised(path: Path, device: Literal["meta", "cpu"]) -> tuple[Network, dict[str, torch.Tensor]]:
    """The network of a file on the meta device, and the file's weights; on ``meta`` they are not read.

    Raises:
        UserError: no such file, or it holds other things than the weights of such a model.
    """
    if not path.is_file():
        raise UserError(_missing(path))
    found = tensors("The ImageReward checkpoint", path, device=device, advice=f"{WHERE}.")
    what = f"The ImageReward checkpoint '{path}'"
    network = empty(what, found)
    wanted = {published(name): shape for name, shape in shapes(network).items()}
    demand_layout(what, found, wanted, spare=SPARE)
    return network, found


def empty(what: str, found: Mapping[str, torch.Tensor]) -> Network:
    """The network of these weights, by their shapes, on the meta device: BLIP-L as published, or of other sizes.

    Raises:
        UserError: a weight is lacking by which a size is known.
    """
    telling = {f"{PREFIX}{name}": dimensions for name, dimensions in blip.TELLING.items()}
    telling |= {f"mlp.layers.{place}.weight": 2 for place in HEAD}
    demand_all(what, set(telling) - set(found), set(found) - set(telling))
    for name, dimensions in telling.items():
        if found[name].ndim != dimensions:
            raise UserError(f"{what}: {name} has the shape {tuple(found[name].shape)}. It is another model's.")
    layers = [found[f"mlp.layers.{place}.weight"].shape for place in HEAD]
    own = {name.removeprefix(PREFIX): weight for name, weight in found.items() if name.startswith(PREFIX)}
    with torch.device("meta"):
        return Network(blip.sizes(own), [layers[0][1], *(shape[0] for shape in layers)])


def published(name: str) -> str:
    """What the file calls a weight of ``Network``.

    >>> published("head.1.bias"), published("blip.image.post_layernorm.bias")
    ('mlp.layers.2.bias', 'blip.visual_encoder.norm.bias')
    """
    if name.startswith(PREFIX):
        return f"{PREFIX}{blip.published(name.removeprefix(PREFIX))}"
    _, place, kind = name.split(".")
    return f"mlp.layers.{HEAD[int(place)]}.{kind}"


def load_tokenizer(where: str, rows: int) -> Any:
    """BERT's uncased tokenizer, with what BLIP adds; ``rows`` are the tokens that the network knows.

    Raises:
        UserError: it is not there, or another one.
    """
    from transformers import BertTokenizer

    what = f"The tokenizer '{where}' of image_reward"
    demand(what, model_at("tokenizer", where))
    with reading(f"{what} cannot be read"):
        tokenizer = BertTokenizer.from_pretrained(where)
    tokenizer.add_tokens(list(ADDED), special_tokens=True)
    if len(tokenizer) != rows:
        raise UserError(
            f"{what} knows {len(tokenizer)} tokens with BLIP's two, and the network {rows}; it is another model's. "
            "Take that of bert-base-uncased."
        )
    return tokenizer


def _missing(path: Path) -> str:
    return no_file("ImageReward checkpoint", path, "checkpoint", WHERE)
