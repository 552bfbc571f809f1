"""A diffusion model, by folder, hub id or single file, as the parts that sampler and fine-tuner share."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
from pydantic import Field, model_validator

from raftdiff.diffusion.families.family import Checkpoint, Family
from raftdiff.diffusion.models.adapters.embeddings import EmbeddingConfig, teach
from raftdiff.diffusion.models.adapters.loras import LoRAConfig, merge
from raftdiff.diffusion.models.blocks import in_turn, let_wait
from raftdiff.diffusion.models.checkpoints import folder_layout, hub_folder, recognise_file
from raftdiff.diffusion.models.components import read_folder, read_part, read_single_file, set_attention
from raftdiff.diffusion.models.kept import Kept, encoders, filling, keeping
from raftdiff.diffusion.models.loaded import Parts
from raftdiff.diffusion.models.text import PromptEncoder
from raftdiff.errors import Need, UserError
from raftdiff.recipes.config import Config
from raftdiff.recipes.needs import model_at, refuse
from raftdiff.training import quantised, sharded
from raftdiff.training.compiled import Compiled
from raftdiff.training.devices import DTYPES, DType, Idle, convolves_slowly, device_needs, find_device
from raftdiff.training.quantised import Bits
from raftdiff.training.tokenizers import check_tokenizer, table_rows
from raftdiff.training.weights import laid_out

WHERE = (
    "It can be a folder in diffusers' format, a .safetensors file or a hub id, such as "
    "stable-diffusion-v1-5/stable-diffusion-v1-5 from huggingface.co."
)
"""What a model may be, and where to get one."""


class ModelConfig(Config):
    """Which model, and how it is held in memory."""

    base: str
    """A diffusers folder, a hub id (owner/name), one file (.safetensors, .ckpt, .pth), or a shipped model's name."""
    dtype: DType = "float32"
    """What the frozen weights and the sampling network are held in; trained weights are always kept in float32."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N. auto takes a GPU where there is one."""
    text_device: str | None = None
    """Where captions are read, if elsewhere: on the cpu, a large text encoder leaves the GPU to the rest. A caption is
    read once."""
    attention: Literal["sdpa", "xformers", "default"] = "sdpa"
    """sdpa is PyTorch's own; xformers must be installed; default leaves what the model came with."""
    channels_last: bool = False
    """Hold the U-Net's convolutions in channels-last order while sampling: often faster on a GPU, and in float32."""
    compile: bool | Literal["graphs"] = False
    """torch.compile what draws: minutes at the start, then faster; each size's last batch is filled up for it. graphs:
    with CUDA graphs too, for small networks and batches, where a GPU waits for the calls."""
    quantise: Bits | None = None
    """Round the frozen weights of the denoiser's blocks to 8 bits (int8) or 4 (nf4), under a LoRA in full precision. It
    needs raftdiff[quantised]; what is exported goes with the weights as they were."""
    keep_texts: bool = True
    """Keep on disk what large text encoders (T5, Qwen3, Gemma) said: where a run asks nothing new, they stay there."""
    offload: bool | Literal["blocks"] = False
    """Keep text encoders and VAE in main memory while nobody asks them; blocks: those of the transformer that draws
    too, each on the GPU only while it computes. Of it a LoRA is trained then, with gradient checkpointing."""
    sharded: bool = False
    """Where several processes share a run, each holds a part of every block's weights, and the whole of one while it
    computes: for what does not fit on one card. A LoRA is trained then."""
    vae_tiling: bool = False
    """Decode large pictures in overlapping tiles: less memory, and seams that are hardly seen."""
    vae: str | None = None
    """Another AutoencoderKL in place of the model's own: its folder, a hub id, or one file (.safetensors, .ckpt, .pth,
    .pt)."""
    loras: list[LoRAConfig] = Field(default_factory=list)
    """LoRAs that it starts from, merged into its weights."""
    embeddings: list[EmbeddingConfig] = Field(default_factory=list)
    """Textual inversions, whose tokens prompts can then name."""
    config: str | None = None
    """For a single-file model: the diffusers folder, or hub id, that says how large its parts are, where they are not
    of their family's usual sizes, and that has what the file lacks, as a flow's lacks text encoders."""
    prediction_type: Literal["epsilon", "v_prediction"] | None = None
    """What the network predicts, where the model's own scheduler config is wrong or does not say."""
    zero_terminal_snr: bool | None = None
    """Whether the noise schedule ends in pure noise (arXiv:2305.08891); None takes the model's own."""
    embedded_guidance: float | None = Field(default=None, ge=0)
    """The guidance number that a network distilled from guided predictions is told, while it draws and while it learns,
    as FLUX.1 dev is; None takes its family's usual. Not classifier-free guidance, which is sampler.guidance."""

    @model_validator(mode="after")
    def _blocks_are_plain(self) -> "ModelConfig":
        ways = {"offload: blocks moves": self.offload == "blocks", "sharded: true splits": self.sharded}
        for way in (way for way, taken in ways.items() if taken):
            for key in ("quantise", "compile", "channels_last", "sharded"):
                if getattr(self, key) and key not in way:
                    raise ValueError(f"{way} plain weights, and does not go with {key}; leave one out")
        return self

    def needs(self, resolve: Callable[[str], str]) -> Iterator[Need]:
        """What is not on this machine; see ``recipes.needs``."""
        yield from model_at("base", resolve(self.base), where=WHERE)
        if self.vae is not None:
            yield from model_at("vae", self.vae, where="It can be an AutoencoderKL's folder, one file, or a hub id.")
        if self.config is not None and Path(resolve(self.base)).expanduser().is_file():
            yield from model_at("config", self.config, where="It can be a folder in diffusers' format, or a hub id.")
        yield from self.machine_needs()

    def machine_needs(self) -> Iterator[Need]:
        """What it asks of hardware and packages."""
        yield from device_needs(self.device, self.dtype)
        if self.text_device is not None:
            yield from device_needs(self.text_device, self.dtype, "text_device")
        if self.compile == "graphs" and (self.device == "cpu" or not torch.cuda.is_available()):
            yield Need("compile", "graphs are CUDA graphs, which need a GPU; use compile: true here, or false.")
        if self.quantise is not None:
            yield from quantised.needs("quantise")
        if self.attention == "xformers" and find_spec("xformers") is None:
            sentence = "xformers is not installed. Install it with: pip install 'raftdiff[xformers]', or use "
            yield Need("attention", f"{sentence}attention: sdpa, which needs nothing.")
        elif self.attention == "xformers" and self.device in ("auto", "cpu") and not torch.cuda.is_available():
            yield Need("attention", "xformers needs a GPU; use attention: sdpa here.")


def load(config: ModelConfig, resolve: Callable[[str], str] | None = None) -> Parts:
    """The model that ``config.base`` names. A local folder or file never touches the network.

    Args:
        resolve: turns a shipped model's name into its folder; anything else it returns unchanged.

    Raises:
        UserError: nothing is there, it is of no family that is known, it cannot be read, or this machine lacks what
            the config asks for.
    """
    refuse("model", config.machine_needs())
    device, dtype = find_device(config.device), DTYPES[config.dtype]
    base = resolve(config.base) if resolve else config.base
    path = Path(base).expanduser()
    own = config.vae is None
    if not path.is_file():
        if config.config is not None:
            raise UserError(f"model.config: it is for a single file, and '{base}' is none. Leave model.config out.")
        layout = folder_layout(path if path.is_dir() else hub_folder(base), vae=own)
        whole = not config.loras and not config.embeddings  # what these change in text encoders is not in their files
        texts = device if config.text_device is None else find_device(config.text_device)
        kept = keeping(layout, dtype, texts) if config.keep_texts and whole else None
        later = {} if kept is None else {name: partial(read_part, layout, name, dtype) for name in encoders(layout)}
        modules = read_folder(layout, dtype, config.vae, without=list(later))
        return assemble(layout.family, modules, config, device, dtype, kept=kept, later=later)
    found = recognise_file(path, vae=own)
    config = _as_stated(config, found)
    predicts = config.prediction_type or found.prediction_type
    read = read_single_file(path, found, dtype, vae=config.vae, configs=config.config, prediction_type=predicts)
    return assemble(*read, config, device, dtype)


def assemble(
    family: Family,
    modules: Mapping[str, Any],
    config: ModelConfig,
    device: torch.device,
    dtype: torch.dtype,
    *,
    kept: Kept | None = None,
    later: Mapping[str, Callable[[], Any]] = MappingProxyType({}),
) -> Parts:
    """Loaded modules, checked against each other, on their device, in their dtype and attention, frozen. ``kept``: what
    text encoders said, on disk; ``later``: how those of them are read that have no numbers yet."""
    family.check(modules, config.base)
    merge(family, modules, config.loras)
    teach(family, modules, config.embeddings)
    for name, (encoder, _) in family.tokenizers.items():
        check_tokenizer(f"{config.base}: {name}/", modules[name], table_rows(modules[encoder]))
    scheduler, denoiser = _scheduler(family, modules["scheduler"], config), modules[family.denoiser]
    texts = device if config.text_device is None else find_device(config.text_device)
    readers = {encoder for encoder, _ in family.tokenizers.values()}
    settled = {family.denoiser} if config.text_device is None else {family.denoiser, *readers}
    aside = [name for name in family.components if config.offload and name not in settled]
    split = sharded.wanted(config.sharded)
    waits = {*aside, *([family.denoiser] if split or config.offload == "blocks" else [])}
    slow = convolves_slowly(dtype, device)
    last = {family.denoiser: config.channels_last or (slow and not split), "vae": slow}

    def put(name: str) -> None:
        module = modules[name].requires_grad_(False).eval()
        wide = name == "vae" and dtype == torch.float16 and family.full_vae and module.config.get("force_upcast")
        held = torch.float32 if wide else dtype
        there = torch.device("cpu") if name in waits else texts if name in readers else device
        torch.nn.Module.to(module, device=there, dtype=held)  # past diffusers' own .to, which warns at any dtype
        if last.get(name):
            for parameter in module.parameters():
                parameter.data = laid_out(parameter.data, channels_last=True)

    for name in family.components:
        if name not in later:
            put(name)
    if config.offload == "blocks":
        let_wait(denoiser, device, family.told)
    if split:
        sharded.split(denoiser, in_turn(denoiser), device)
    if config.quantise is not None:
        quantised.quantise(denoiser, config.quantise, dtype, device)
    if config.vae_tiling:
        family.autoencoder.tile(modules["vae"])
    set_attention(denoiser, config.attention, family)
    if device.type == "cuda" and dtype == torch.float32:
        torch.set_float32_matmul_precision("high")  # TF32: about twice as fast, and no picture shows the difference
    idle = Idle([modules[name] for name in aside], device)
    return Parts(
        family=family,
        modules={name: modules[name] for name in (*family.components, *family.tokenizers)},
        idle=idle,
        scheduler=scheduler,
        process=family.process(scheduler, config.base),
        device=device,
        dtype=dtype,
        channels_last=last[family.denoiser],
        name=config.base,
        prompts=PromptEncoder(family, modules, idle, device, kept=kept, fill=filling(modules, later, put)),
        network=called(denoiser, config.compile),
        embedded_guidance=_embedded_guidance(family, modules, config),
    )


def called(denoiser: Any, how: bool | Literal["graphs"]) -> Any:
    """What is called to draw: the denoiser, or its compiled form."""
    if not how:
        return denoiser
    return Compiled(denoiser, mode="reduce-overhead") if how == "graphs" else Compiled(denoiser)


def _as_stated(config: ModelConfig, found: Checkpoint) -> ModelConfig:
    """The config with what a single file says of itself, which a config folder's scheduler cannot know.

    Only of v is its word believed against the recipe's and a config folder's: kohya's script that merges SDXL writes
    epsilon whatever the model predicts, and a schedule that ends in pure noise is nothing without v.

    Raises:
        UserError: the recipe says something else.
    """
    sure = found.prediction_type == "v_prediction"
    stated = {
        "prediction_type": found.prediction_type if sure else None,
        "zero_terminal_snr": found.zero_terminal_snr if sure or config.zero_terminal_snr is None else None,
    }
    for key, value in stated.items():
        if value is not None and getattr(config, key) not in (None, value):
            raise UserError(
                f"model.{key}: {config.base} says of itself that it is {value} (by its key v_pred or ztsnr, or its "
                f"metadata), the recipe says {getattr(config, key)}. Leave model.{key} out."
            )
    return config.model_copy(update={key: value for key, value in stated.items() if value is not None})


def _scheduler(family: Family, scheduler: Any, config: ModelConfig) -> Any:
    """The model's scheduler with the config's overrides.

    A schedule that ends in pure noise cannot go with epsilon-prediction: there the noise says nothing of the picture.
    """
    changes: dict[str, Any] = {}
    if family.process(scheduler, config.base).predicts == "flow":
        for key in ("prediction_type", "zero_terminal_snr"):
            if getattr(config, key) is not None:
                raise UserError(f"model.{key}: {family.told} is a flow, which has no such choice. Leave it out.")
        return scheduler
    if config.prediction_type is not None:
        changes["prediction_type"] = config.prediction_type
    if config.zero_terminal_snr is not None:
        changes["rescale_betas_zero_snr"] = config.zero_terminal_snr
        if config.zero_terminal_snr:
            changes["timestep_spacing"] = "trailing"
    if changes:
        import diffusers

        # DDIM understands every key that matters here; PNDM, the default of SD 1.x, cannot end in pure noise. It would
        # clip where PNDM, which knows no clipping, did not.
        changes["clip_sample"] = scheduler.config.get("clip_sample", False)
        scheduler = diffusers.DDIMScheduler.from_config(scheduler.config, **changes)
    found = scheduler.config
    if found.get("rescale_betas_zero_snr") and found.get("prediction_type", "epsilon") == "epsilon":
        raise UserError(
            f"{config.base}: a zero-terminal-SNR schedule does not go with epsilon-prediction, whose last step would "
            "divide by zero. Set model.zero_terminal_snr: false, or, for a model trained so, "
            "model.prediction_type: v_prediction."
        )
    return scheduler


def _embedded_guidance(family: Family, modules: Mapping[str, Any], config: ModelConfig) -> float | None:
    """The guidance number that the network is told: the recipe's, or the family's.

    Raises:
        UserError: the recipe names one for a network that is told none.
    """
    usual = family.embedded_guidance(modules)
    if usual is None and config.embedded_guidance is not None:
        raise UserError(
            f"model.embedded_guidance: the network of {config.base} is told no guidance; sampler.guidance is for the "
            "classifier-free one. Leave it out."
        )
    return usual if config.embedded_guidance is None else config.embedded_guidance
