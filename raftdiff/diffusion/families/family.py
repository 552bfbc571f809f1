"""The interface of a family of diffusion models. Sampler, fine-tuner, learning rules and export know nothing else."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from raftdiff.diffusion.families.autoencoder import Autoencoder
from raftdiff.diffusion.families.texts import Texts
from raftdiff.diffusion.process import Process

Shapes = Mapping[str, tuple[int, ...]]
"""Of the weights of a single file, by name."""
Modules = Mapping[str, Any]
"""Networks and tokenizers by the names of their folders in diffusers' format."""


class Component(NamedTuple):
    """A network of a family."""

    library: str
    """diffusers or transformers."""
    kind: str
    """Its class there."""

    @property
    def stem(self) -> str:
        """What its weights' file is called."""
        return "model" if self.library == "transformers" else "diffusion_pytorch_model"


class Tokenizer(NamedTuple):
    """What makes tokens of captions."""

    encoder: str
    """The text encoder that reads them, by the name of its folder."""
    kind: str = "CLIPTokenizer"
    """Its class in transformers."""


class Solver(NamedTuple):
    """A scheduler of diffusers that draws."""

    kind: str
    """Its class."""
    settings: Mapping[str, Any]
    """What its config says otherwise than the model's own."""


class FewSteps(NamedTuple):
    """How a model draws that was distilled to draw in few steps."""

    why: str
    """How it is known to be one, after "by"."""
    steps: int
    """It was made for, at most."""
    guidance: float
    """It bears, at most."""
    solver: str | None = None
    """The one that it was distilled for, by its name in recipes, where others draw worse."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A single file known to hold a model of a family."""

    family: "SingleFile"
    kind: str
    """Which it is of the models that the family publishes, in the family's own words or, of a ``Bundled`` one, its hub
    id."""
    held: frozenset[str]
    """Which networks it holds; of a ``Published`` one all but perhaps the VAE."""
    prediction_type: str | None = None
    """What its network predicts, where the file says it."""
    zero_terminal_snr: bool | None = None
    """Whether its noise schedule ends in pure noise, where the file says it."""


class Layers(NamedTuple):
    """Which layers get a LoRA, by the ends of their names."""

    attention: tuple[str, ...]
    """Of the denoiser: ``target_modules: attention``."""
    everything: tuple[str, ...]
    """Of the denoiser: ``target_modules: all``."""
    text: Mapping[str, tuple[str, ...]]
    """Of those text encoders that can be trained, by their names."""


@runtime_checkable
class Family(Protocol):
    """Models that differ in their weights alone. A stateless value: models are passed to it."""

    @property
    def name(self) -> str:
        """As in file and folder names: ``sdxl``."""
        ...

    @property
    def told(self) -> str:
        """As in sentences: ``Stable Diffusion XL``."""
        ...

    @property
    def pipeline(self) -> str:
        """The class in diffusers that draws with it, which ``model_index.json`` names."""
        ...

    @property
    def components(self) -> Mapping[str, Component]:
        """Its networks by the names of their folders, in the order in which a person would list them."""
        ...

    @property
    def tokenizers(self) -> Mapping[str, Tokenizer]:
        """By the names of their folders."""
        ...

    @property
    def denoiser(self) -> str:
        """Which of the components is tuned."""
        ...

    @property
    def layers(self) -> Layers: ...

    @property
    def autoencoder(self) -> Autoencoder: ...

    @property
    def full_vae(self) -> bool:
        """Whether a VAE that asks for it (``force_upcast``) is held in float32 where the rest is in float16."""
        ...

    @property
    def vae_config(self) -> Mapping[str, Any]:
        """Of its published AutoencoderKL, for one that comes without a config; empty for a VAE of another class, which
        is read from its folder alone."""
        ...

    def stated(self, index: Mapping[str, Any]) -> "Family":
        """The family with what a ``model_index.json`` says beside the names of its parts."""
        ...

    def recognise(self, shapes: Shapes, path: Path) -> str | None:
        """Which kind of this family a single file holds; None for another model.

        Raises:
            UserError: a model of this family that cannot be tuned, or is not whole.
        """
        ...

    def check(self, modules: Modules, name: str) -> None:
        """
        Raises:
            UserError: the parts are not of one model, or of one that must be told what raftdiff does not tell.
        """
        ...

    def process(self, scheduler: Any, name: str) -> Process:
        """What the network was trained on, by the model's own scheduler.

        Raises:
            UserError: it says something that models of this family were not trained on.
        """
        ...

    def solvers(self, scheduler: Any) -> Mapping[str, Solver]:
        """What draws, by the names that recipes have for it."""
        ...

    @property
    def paths(self) -> tuple[str, ...]:
        """Those of the solvers whose states are pictures under noise of a known level: rules learn from their steps."""
        ...

    @property
    def guided(self) -> bool:
        """Whether it draws with classifier-free guidance; a model that was distilled to do without does not."""
        ...

    def few_steps(self, modules: Modules, scheduler: Any) -> FewSteps | None:
        """How it draws, where its own files say that it was distilled to few steps; None where they do not."""
        ...

    def set_steps(
        self, solver: Any, steps: int, modules: Modules, *, pixels: tuple[int, int], device: torch.device
    ) -> None:
        """Place a solver's steps, for pictures of so many pixels, height and width."""
        ...

    def token_limit(self, modules: Modules) -> int | None:
        """How many tokens of a caption are read, by whichever text encoder reads the most; None for no limit."""
        ...

    def tokens(self, modules: Modules, caption: str) -> int:
        """How many tokens a caption is to that text encoder."""
        ...

    def encode(self, modules: Modules, captions: Sequence[str]) -> Texts:
        """What the network is told of captions, negative ones among them, on the text encoders' device and in their
        dtype, with gradient."""
        ...

    def embedded_guidance(self, modules: Modules) -> float | None:
        """The guidance number that the network is told, as one distilled from guided predictions is, where a recipe
        names no other; None where it is told none."""
        ...

    def ask(
        self,
        network: Any,
        xt: Tensor,
        timesteps: Tensor,
        texts: Texts,
        *,
        pixels: tuple[int, int],
        guidance: float | None,
    ) -> Tensor:
        """The network's prediction, of any dtype.

        Args:
            network: the denoiser or a compiled form of it.
            xt: (batch, channels, rows, columns), in the network's dtype, as are the texts.
            timesteps: one for all, without axes, or one a row; on the scale of the process, integers from some solvers.
            texts: a row for each of ``xt``.
            pixels: height and width of the pictures.
            guidance: the number that it is told, None for a network that is told none.
        """
        ...

    def size(self, modules: Modules) -> tuple[int, int] | None:
        """Height and width, in pixels, of the pictures that the model was trained at; None where it does not say."""
        ...

    def multiple(self, modules: Modules) -> int:
        """Heights and widths of latents must be multiples of it."""
        ...

    def kohya(self, component: str, layer: str, modules: Modules) -> str:
        """What a layer's LoRA is called in the files of kohya's scripts, A1111 and ComfyUI."""
        ...

    def described(self, modules: Modules, prediction_type: str) -> Mapping[str, str]:
        """Metadata by which programs sort LoRAs and checkpoints: ``ss_base_model_version`` and ``modelspec.*``."""
        ...

    def pipeline_arguments(self) -> Mapping[str, Any]:
        """What its pipeline takes beside the modules."""
        ...


@runtime_checkable
class Joined(Protocol):
    """A family of which LoRA files of other programs have layers in one, that diffusers cannot take apart."""

    def joined(self, modules: Modules) -> Mapping[str, Mapping[str, tuple[int, ...]]]:
        """Their names in such files; of each the denoiser's layers that are in it, with their places among its equal
        parts, by rows."""
        ...


@runtime_checkable
class SingleFile(Family, Protocol):
    """A family of which raftdiff reads and writes single files, in the original code's form; one of the next two."""

    def converted(self, weights: Mapping[str, Tensor], configs: Path, dtype: torch.dtype) -> dict[str, Any]:
        """The networks that a file holds, of the sizes that the folder ``configs`` says."""
        ...

    def single_file(self, modules: Modules) -> dict[str, Tensor]:
        """The other way: all weights, VAE and all, under the names of the original checkpoints."""
        ...


@runtime_checkable
class Published(SingleFile, Protocol):
    """One whose files are whole, but perhaps for the VAE, and whose sizes are known."""

    def configs(self, kind: str, prediction_type: str | None, folder: Path, path: Path) -> None:
        """Write the component configs of a kind that is published, and its tokenizers, into ``folder``.

        Raises:
            UserError: the file at ``path`` does not say what its network predicts, and nothing else does.
        """
        ...


@runtime_checkable
class Bundled(SingleFile, Protocol):
    """One whose files hold the denoiser, and perhaps other networks; the rest is in a folder of diffusers'."""

    def held(self, names: Collection[str]) -> frozenset[str]:
        """Which networks a file holds, by the names of its weights."""
        ...
