"""Aesthetic predictors, LAION's and one's own: how much would people like the picture, whatever it shows?"""

import base64
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, final

import numpy as np
import torch
from jaxtyping import Float, Float32
from PIL import Image
from pydantic import Field

from raftdiff.errors import Need, UserError
from raftdiff.recipes.config import RewardConfig
from raftdiff.records.disk import save_tensors
from raftdiff.rewards.checkpoints import no_file
from raftdiff.rewards.clip_weights import Precision, clip_needs, openai_weights
from raftdiff.rewards.tower import Tower, open_tower
from raftdiff.training.weights import reading
from raftdiff.types import Prompt, Sample

Layer = tuple[torch.Tensor, torch.Tensor]
"""Weight (out, in) and bias (out)."""

V2_AFFINE = (0, 2, 4, 6, 7)
"""Places of the linear layers in the ``linearMSE`` files: only dropout stands between them."""
V2_RELU = (0, 3, 6, 9, 11)
"""Places of the linear layers in the ``reluMSE`` files: a ReLU follows each but the last, dropout the first three."""
SAME = 0.99
"""Cosine of two towers' marks from which on they are taken for one: in bfloat16 it is 0.9999 with float32."""
WHERE = (
    "Version 1 is at github.com/LAION-AI/aesthetic-predictor, version 2 at "
    "github.com/christophschuhmann/improved-aesthetic-predictor; 'raftdiff rewards train-aesthetic' makes one of your "
    "own ratings"
)


class AestheticConfig(RewardConfig):
    type: Literal["aesthetic"] = "aesthetic"
    name: str = "aesthetic"
    """The column of this reward in tables and logs."""
    weight: float = Field(default=1.0, allow_inf_nan=False)
    """Factor in the total reward."""
    head: Path
    """The predictor's file: sa_0_4_vit_*_linear.pth (v1), sac+logos+ava1-l14-linearMSE.pth (v2), or what `raftdiff
    rewards train-aesthetic` wrote."""
    model: str = "ViT-L-14"
    """The CLIP model whose embeddings the head was trained on; see `clip`."""
    pretrained: str | None = None
    """Whose weights; openai, on which LAION trained every head, when `model` is an open_clip name."""
    quick_gelu: bool | None = None
    """Read only where `pretrained` is a file: whether these weights were trained with QuickGELU (OpenAI's were)."""
    dtype: Precision = "float32"
    """Precision of the image tower: float32, bfloat16 or float16."""
    batch_size: int = Field(default=32, ge=1)
    """Pictures per forward of the image tower."""

    def needs(self, resolve: Callable[[str], str]) -> Iterator[Need]:
        """What is not on this machine; see ``recipes.needs``."""
        head = None
        try:  # a wrong file is told before anything is fetched that would stand beside it
            head = load_head(self.head)
        except UserError as error:
            yield Need("head", str(error))
        lacking = list(self.tower_needs(resolve))
        if lacking and head is not None and head.origin is not None and head.origin.model != self.model:
            yield Need("model", f"The aesthetic head '{head.name}' {head.origin.belongs}.")  # not fetched in vain
        else:
            yield from lacking

    def tower_needs(self, resolve: Callable[[str], str]) -> Iterator[Need]:
        """What of the CLIP model alone is not on this machine."""
        return clip_needs(resolve(self.model), self.weights(resolve), self.quick_gelu)

    def weights(self, resolve: Callable[[str], str]) -> str | None:
        """The weights that ``pretrained`` means: OpenAI's where a name of open_clip stands alone."""
        return self.pretrained or openai_weights(resolve(self.model))

    def open(self, device: str, resolve: Callable[[str], str]) -> Tower:
        """The CLIP model."""
        return open_tower(
            resolve(self.model),
            self.weights(resolve),
            device=device,
            dtype=self.dtype,
            quick_gelu=self.quick_gelu,
            batch_size=self.batch_size,
        )

    def build(self, *, device: str = "cpu", resolve: Callable[[str], str] = str) -> "AestheticReward":
        """The reward; ``resolve`` turns the name of a shipped model into its folder and leaves other names alone."""
        head = load_head(self.head)  # before the tower: a wrong file should not cost a minute of loading
        return AestheticReward(self.open(device, resolve), head, name=self.name)


class Origin(NamedTuple):
    """The CLIP model on whose embeddings a head was trained by ``rewards train-aesthetic``."""

    model: str
    pretrained: str | None
    """As a recipe says them."""
    mark: Float32[torch.Tensor, " width"]
    """``Tower.mark``."""

    @property
    def belongs(self) -> str:
        """For sentences, behind the head's name."""
        weights = f", 'pretrained: {self.pretrained}'" if self.pretrained else ""
        return f"was trained on the embeddings of another CLIP model: 'model: {self.model}'{weights}"


@final
class Head:
    """The predictor on top of the embedding, as linear layers with a ReLU between; an affine one is a single layer."""

    def __init__(self, layers: Sequence[Layer], *, name: str, origin: Origin | None = None) -> None:
        self.layers = tuple(layers)
        self.name = name
        self.origin = origin
        """None of LAION's, which do not say it."""
        self.width = int(self.layers[0][0].shape[1])
        """Numbers that it expects in an embedding."""

    def __call__(self, features: Float32[torch.Tensor, "images width"]) -> Float32[torch.Tensor, " images"]:
        *hidden, last = self.layers
        for weight, bias in hidden:
            features = torch.relu(torch.nn.functional.linear(features, weight, bias))
        return torch.nn.functional.linear(features, *last)[:, 0]


@final
class AestheticReward:
    """The mean rating that people would give; higher is better. On LAION's scale of about 1 to 10, with a head of one's
    own on that of one's ratings, beyond which a prediction may lie.

    Version 1 is linear; version 2 (``linearMSE``) has five linear layers and nothing but dropout between them, so it is
    folded into one vector and a bias when it is read. ``ava+logos-l14-reluMSE`` has real ReLUs and is kept whole. No
    head reads the caption: alone it drifts to one centred subject before a blurred background, so mix it with `clip`.

    Source: LAION-Aesthetics, https://github.com/LAION-AI/aesthetic-predictor (v1, MIT) and
    https://github.com/christophschuhmann/improved-aesthetic-predictor (v2, Apache-2.0); OpenAI's CLIP weights, MIT.
    """

    def __init__(self, tower: Tower, head: Head, *, name: str = "aesthetic") -> None:
        if head.width != tower.width:
            raise UserError(
                f"The aesthetic head '{head.name}' reads embeddings of {head.width} numbers, but the CLIP model "
                f"'{tower.name}' gives {tower.width}. {_whose(head)}."
            )
        if head.origin is not None and float(head.origin.mark @ tower.mark) < SAME:
            raise UserError(f"The aesthetic head '{head.name}' {head.origin.belongs}, and not of '{tower.name}'.")
        self.name = name
        self.tower = tower
        """Shared with every other reward on the same weights."""
        self._head = head

    def score(self, samples: Sequence[Sample[Image.Image]]) -> Float32[torch.Tensor, " samples"]:
        return self._head(self.tower.image_features(samples))

    def graded(
        self, pixels: Float[torch.Tensor, "batch 3 height width"], prompts: Sequence[Prompt]
    ) -> Float[torch.Tensor, " batch"]:
        """The same with gradient; see ``types.Differentiable``."""
        del prompts
        return self._head(self.tower.pixel_features(pixels).cpu())


def _whose(head: Head) -> str:
    """The model that a head belongs to, as far as it is known."""
    if head.origin is not None:
        return f"It {head.origin.belongs}"
    return _TOWERS.get(head.width, "Take the model it was trained on")


_TOWERS = {
    768: "LAION's heads of 768 numbers belong to 'model: ViT-L-14', 'pretrained: openai'",
    512: "LAION's heads of 512 numbers belong to 'model: ViT-B-32' or 'ViT-B-16', as in their file name, "
    "'pretrained: openai'",
}


def load_head(path: Path) -> Head:
    """Read a head of any of LAION's three formats, known by its keys and shapes, or one that ``save_head`` wrote.

    Raises:
        UserError: no such file, not a PyTorch or safetensors file of plain tensors, or tensors of another model.
    """
    if not path.is_file():
        raise UserError(_no_head(path))
    tensors, about = _safetensors(path) if path.suffix == ".safetensors" else (_unpickled(path), {})
    layers = _layers(tensors)
    if layers is None:
        raise UserError(f"'{path}' is not an aesthetic head that is known here. {_holds(tensors)} {_KNOWN}")
    return Head(layers, name=path.name, origin=_origin(path, about, layers[0][0].shape[1]))


def save_head(
    path: Path, weights: Float32[torch.Tensor, " width"], bias: float, origin: Origin, about: Mapping[str, str]
) -> None:
    """A linear head as safetensors, with the keys of LAION's version 1; ``origin`` and ``about`` are its metadata.

    Raises:
        OSError: the disk refuses.
    """
    said = {"model": origin.model, **({"pretrained": origin.pretrained} if origin.pretrained else {})}
    mark = base64.b64encode(origin.mark.numpy().astype("<f4").tobytes()).decode()
    save_tensors(path, {"weight": weights[None], "bias": torch.tensor([bias])}, {**about, **said, MARK: mark})


MARK = "tower_mark"


def _origin(path: Path, about: Mapping[str, str], width: int) -> Origin | None:
    if MARK not in about:
        return None
    with reading(f"'{path}' does not say on which CLIP model it was trained, as it should"):
        mark = np.frombuffer(base64.b64decode(about[MARK], validate=True), dtype="<f4").astype(np.float32)
        return Origin(about["model"], about.get("pretrained"), torch.from_numpy(mark.reshape(width)))


def _safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    from safetensors import safe_open

    with reading(f"'{path}' is no readable safetensors file"), safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def _unpickled(path: Path) -> Any:
    try:
        # The version 2 file was saved on a GPU, so without map_location it does not open on a machine without one.
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of a text PyTorch raises nearly anything
        reason = str(error).strip().partition("\n")[0][:120]
        raise UserError(f"'{path}' is not a PyTorch file of plain tensors ({reason}).") from error


def _no_head(path: Path) -> str:
    return no_file("aesthetic head", path, "head", WHERE)


_KNOWN = (
    "Known are: one linear layer with keys 'weight' and 'bias' (v1); layers.0, 2, 4, 6, 7 without activations (v2, "
    "linearMSE); layers.0, 3, 6, 9, 11 with ReLU (reluMSE)."
)


def _layers(tensors: Any) -> list[Layer] | None:
    """The layers to run, or None where the tensors are of something else."""
    if not (isinstance(tensors, Mapping) and all(isinstance(value, torch.Tensor) for value in tensors.values())):
        return None
    if set(tensors) == {"weight", "bias"}:
        found, affine = [(tensors["weight"], tensors["bias"])], True
    else:
        places = next((places for places in (V2_AFFINE, V2_RELU) if set(tensors) == set(_keys(places))), None)
        if places is None:
            return None
        found = [(tensors[f"layers.{place}.weight"], tensors[f"layers.{place}.bias"]) for place in places]
        affine = places == V2_AFFINE
    return (fold_affine(found) if affine else [_float(layer) for layer in found]) if _chained(found) else None


def fold_affine(layers: Sequence[Layer]) -> list[Layer]:
    """One linear layer equal to several in a row, multiplied out in double precision.

    W2 (W1 x + b1) + b2 = (W2 W1) x + (W2 b1 + b2).
    """
    weight, bias = (tensor.double() for tensor in layers[0])
    for next_weight, next_bias in layers[1:]:
        weight, bias = next_weight.double() @ weight, next_weight.double() @ bias + next_bias.double()
    return [_float((weight, bias))]


def _chained(layers: Sequence[Layer]) -> bool:
    """Whether each layer reads what the one before it gives, and the last gives one number."""
    if not all(weight.ndim == 2 and bias.shape == weight.shape[:1] for weight, bias in layers):
        return False
    joints = itertools.pairwise(layers)
    return layers[-1][0].shape[0] == 1 and all(one[0].shape[0] == two[0].shape[1] for one, two in joints)


def _keys(places: Sequence[int]) -> list[str]:
    return [f"layers.{place}.{kind}" for place in places for kind in ("weight", "bias")]


def _float(layer: Layer) -> Layer:
    return layer[0].float(), layer[1].float()


def _holds(tensors: Any) -> str:
    if not isinstance(tensors, Mapping):
        return f"It holds a {type(tensors).__name__}."
    some = [f"{key} {tuple(value.shape) if isinstance(value, torch.Tensor) else ''}" for key, value in tensors.items()]
    more = f" and {len(some) - 4} more" if len(some) > 4 else ""
    return f"It holds {', '.join(text.strip() for text in some[:4]) or 'nothing'}{more}."
