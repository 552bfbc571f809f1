"""A Stable Diffusion model, by folder, hub id or single file, as the parts that sampler and fine-tuner share."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch

from raftdiff.diffusion.models.checkpoints import COMPONENTS, Layout, folder_layout, hub_folder, recognise_file
from raftdiff.diffusion.models.text import PromptEncoder
from raftdiff.errors import Need, UserError
from raftdiff.recipes.config import Config
from raftdiff.recipes.needs import model_at, refuse
from raftdiff.training.devices import DTYPES, DType, device_needs, find_device

WHERE = (
    "It can be a folder in diffusers' format, a .safetensors file or a hub id, such as "
    "stable-diffusion-v1-5/stable-diffusion-v1-5 from huggingface.co."
)
"""What a model may be, and where to get one."""


class ModelConfig(Config):
    """Which model, and how it is held in memory."""

    base: str
    """A diffusers folder, a hub id (owner/name), a single .safetensors or .ckpt file, or a shipped model's name."""
    dtype: DType = "float32"
    """What the frozen weights and the sampling network are held in; trained weights are always kept in float32."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N. auto takes a GPU where there is one."""
    attention: Literal["sdpa", "xformers", "default"] = "sdpa"
    """sdpa is PyTorch's own; xformers must be installed; default leaves what the model came with."""
    channels_last: bool = False
    """Hold the U-Net's convolutions in channels-last order while sampling: often faster on a GPU, and in float32."""
    compile: bool = False
    """torch.compile the U-Net: minutes at the start, faster afterwards; pays for long runs of one picture size."""
    vae: str | None = None
    """A folder with another AutoencoderKL to use in place of the model's own."""
    config: str | None = None
    """For a single-file model that is not of the usual SD 1.x or 2.x sizes: the diffusers folder with its configs."""
    prediction_type: Literal["epsilon", "v_prediction"] | None = None
    """What the network predicts, where the model's own scheduler config is wrong or does not say."""
    zero_terminal_snr: bool | None = None
    """Whether the noise schedule ends in pure noise (arXiv:2305.08891); None takes the model's own."""

    def needs(self, resolve: Callable[[str], str]) -> Iterator[Need]:
        """What is not on this machine; see ``recipes.needs``."""
        yield from model_at("base", resolve(self.base), where=WHERE)
        yield from self.machine_needs()

    def machine_needs(self) -> Iterator[Need]:
        """What it asks of hardware and packages."""
        yield from device_needs(self.device, self.dtype)
        if self.attention == "xformers" and find_spec("xformers") is None:
            sentence = "xformers is not installed. Install it with: pip install 'raftdiff[xformers]', or use "
            yield Need("attention", f"{sentence}attention: sdpa, which needs nothing.")
        elif self.attention == "xformers" and self.device in ("auto", "cpu") and not torch.cuda.is_available():
            yield Need("attention", "xformers needs a GPU; use attention: sdpa here.")


@dataclass(slots=True, repr=False)
class Parts:
    """One loaded model. The fine-tuner changes ``unet`` (and ``text_encoder``) in place; the sampler reads them."""

    unet: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    scheduler: Any
    """The model's own scheduler: the noise schedule and the prediction type. Never stepped."""
    device: torch.device
    dtype: torch.dtype
    channels_last: bool
    name: str
    """What the user called the model; for sentences."""
    prompts: PromptEncoder
    """Text -> embeddings, cached. Cleared by whoever changes the text encoder."""
    network: Callable[..., Any]
    """The U-Net to call: ``unet`` itself, or its compiled form, which shares the weights."""

    @property
    def prediction_type(self) -> str:
        return str(self.scheduler.config.prediction_type)

    @property
    def size(self) -> int:
        """The side, in pixels, of the pictures that the model was trained at."""
        side = self.unet.config.sample_size
        return int(side if isinstance(side, int) else side[0]) * self.vae_factor

    @property
    def vae_factor(self) -> int:
        """Pixels per latent position, along one side."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    def predict(
        self, xt: torch.Tensor, timesteps: torch.Tensor, embeddings: torch.Tensor, dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        """The U-Net's word on some rows, float32; under autocast where ``dtype`` is another than its weights' own.

        One autocast region a call: its cache of cast weights must not outlive a change of the weights, nor hand
        weights that were cast without gradient to a pass that needs one.
        """
        own = dtype or self.dtype
        with torch.autocast(self.device.type, dtype=own, enabled=dtype is not None and dtype != torch.float32):
            found: torch.Tensor = self.unet(
                xt.to(self.device, own),
                timesteps.to(self.device),
                encoder_hidden_states=embeddings.to(own),
                return_dict=False,
            )[0]
        return found.float()


def load(config: ModelConfig, resolve: Callable[[str], str] | None = None) -> Parts:
    """The model that ``config.base`` names. A local folder or file never touches the network.

    Args:
        resolve: turns a shipped model's name into its folder; anything else it returns unchanged.

    Raises:
        UserError: nothing is there, it is not a Stable Diffusion model, it cannot be read, or this machine lacks what
            the config asks for.
    """
    refuse("model", config.machine_needs())
    device, dtype = find_device(config.device), DTYPES[config.dtype]
    base = resolve(config.base) if resolve else config.base
    path = Path(base).expanduser()
    if path.is_file():
        modules = _single_file(path, config, dtype)
    elif path.is_dir():
        modules = _folder(folder_layout(path), dtype)
    else:
        modules = _folder(folder_layout(hub_folder(base)), dtype)
    if config.vae is not None:
        modules["vae"] = _vae(Path(config.vae).expanduser(), dtype)
    return assemble(modules, config, device, dtype)


def assemble(modules: Mapping[str, Any], config: ModelConfig, device: torch.device, dtype: torch.dtype) -> Parts:
    """Loaded modules, checked against each other, on their device, in their dtype and attention, frozen."""
    unet, vae, text_encoder = (modules[name] for name in ("unet", "vae", "text_encoder"))
    _check_sizes(unet, vae, text_encoder, config.base)
    scheduler = _scheduler(modules["scheduler"], config)
    for module in (unet, vae, text_encoder):
        module.requires_grad_(False).eval()
        torch.nn.Module.to(module, device=device, dtype=dtype)  # past diffusers' own .to, which warns at any dtype
    if config.channels_last:
        unet.to(memory_format=torch.channels_last)
    _set_attention(unet, config.attention)
    if device.type == "cuda" and dtype == torch.float32:
        torch.set_float32_matmul_precision("high")  # TF32: about twice as fast, and no picture shows the difference
    return Parts(
        unet=unet,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=modules["tokenizer"],
        scheduler=scheduler,
        device=device,
        dtype=dtype,
        channels_last=config.channels_last,
        name=config.base,
        prompts=PromptEncoder(modules["tokenizer"], text_encoder),
        network=torch.compile(unet) if config.compile else unet,
    )


def _folder(layout: Layout, dtype: torch.dtype) -> dict[str, Any]:
    """Each component by its own loader: no safety checker, no feature extractor, no remote code, safetensors only."""
    import diffusers
    import transformers

    classes = {
        "unet": diffusers.UNet2DConditionModel,
        "vae": diffusers.AutoencoderKL,
        "text_encoder": transformers.CLIPTextModel,
        "tokenizer": transformers.CLIPTokenizer,
        "scheduler": getattr(diffusers, layout.scheduler, diffusers.DDIMScheduler),
    }
    local: dict[str, Any] = {"local_files_only": True}
    try:
        with quietly():
            return {
                name: kind.from_pretrained(
                    layout.path / name,
                    **local,
                    **(
                        {"use_safetensors": True, "dtype": dtype, "variant": layout.variant(name)}
                        if name in COMPONENTS
                        else {}
                    ),
                )
                for name, kind in classes.items()
            }
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{layout.path}: this model cannot be read: {_first_line(error)}") from error


def _single_file(path: Path, config: ModelConfig, dtype: torch.dtype) -> dict[str, Any]:
    import tempfile

    import diffusers

    from raftdiff.diffusion.models.single_file import write_configs

    kind = recognise_file(path)
    with tempfile.TemporaryDirectory() as scratch:
        if config.config is not None:
            configs = folder_layout(Path(config.config).expanduser(), weights=False).path
        else:
            configs = write_configs(kind, Path(scratch), config.prediction_type, path)
        try:
            with quietly():
                pipeline = diffusers.StableDiffusionPipeline.from_single_file(
                    str(path),
                    config=str(configs),
                    local_files_only=True,
                    torch_dtype=dtype,
                    safety_checker=None,
                    feature_extractor=None,
                    requires_safety_checker=False,
                )
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise UserError(
                f"{path}: these weights do not fit the model configs in {config.config or kind}: {_first_line(error)} "
                "Name the diffusers folder that holds the right ones as model.config."
            ) from error
    return {name: getattr(pipeline, name) for name in ("unet", "vae", "text_encoder", "tokenizer", "scheduler")}


@contextmanager
def quietly() -> Iterator[None]:
    """Within, diffusers and transformers draw no progress bars and log errors only."""
    import diffusers.utils.logging as diffusers_log
    import transformers.utils.logging as transformers_log

    logs = (diffusers_log, transformers_log)
    before = [(log.get_verbosity(), log.is_progress_bar_enabled()) for log in logs]
    for log in logs:
        log.set_verbosity_error()
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log, (level, bars) in zip(logs, before, strict=True):
            log.set_verbosity(level)
            if bars:
                log.enable_progress_bar()


def _vae(path: Path, dtype: torch.dtype) -> Any:
    import diffusers

    if not (path / "config.json").is_file():
        raise UserError(f"model.vae: {path} is not the folder of an AutoencoderKL: it has no config.json.")
    try:
        return diffusers.AutoencoderKL.from_pretrained(path, local_files_only=True, use_safetensors=True, dtype=dtype)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"model.vae: {path} cannot be read: {_first_line(error)}") from error


def _scheduler(scheduler: Any, config: ModelConfig) -> Any:
    """The model's scheduler with the config's overrides.

    A schedule that ends in pure noise cannot go with epsilon-prediction: there the noise says nothing of the picture.
    """
    changes: dict[str, Any] = {}
    if config.prediction_type is not None:
        changes["prediction_type"] = config.prediction_type
    if config.zero_terminal_snr is not None:
        changes["rescale_betas_zero_snr"] = config.zero_terminal_snr
        if config.zero_terminal_snr:
            changes["timestep_spacing"] = "trailing"
    if changes:
        import diffusers

        # DDIM understands every key that matters here; PNDM, the default of SD 1.x, cannot end in pure noise.
        scheduler = diffusers.DDIMScheduler.from_config(scheduler.config, **changes)
    found = scheduler.config
    if found.get("prediction_type", "epsilon") not in ("epsilon", "v_prediction"):
        raise UserError(
            f"{config.base}: this model predicts '{found.prediction_type}'; raftdiff knows epsilon and v_prediction."
        )
    if found.get("rescale_betas_zero_snr") and found.get("prediction_type", "epsilon") == "epsilon":
        raise UserError(
            f"{config.base}: a zero-terminal-SNR schedule does not go with epsilon-prediction, whose last step would "
            "divide by zero. Set model.zero_terminal_snr: false, or, for a model trained so, "
            "model.prediction_type: v_prediction."
        )
    return scheduler


def _check_sizes(unet: Any, vae: Any, text_encoder: Any, name: str) -> None:
    if unet.config.in_channels != vae.config.latent_channels:
        kind = "an inpainting model" if unet.config.in_channels == 9 else "another kind of model"
        raise UserError(
            f"{name}: its U-Net takes {unet.config.in_channels} channels where the VAE makes "
            f"{vae.config.latent_channels}: this is {kind}; raftdiff tunes text-to-image models."
        )
    if unet.config.cross_attention_dim != text_encoder.config.hidden_size:
        raise UserError(
            f"{name}: its U-Net expects text embeddings of width {unet.config.cross_attention_dim}, the text encoder "
            f"makes {text_encoder.config.hidden_size}: these parts are not of one model."
        )


def _set_attention(unet: Any, attention: str) -> None:
    if attention == "sdpa":
        from diffusers.models.attention_processor import AttnProcessor2_0

        unet.set_attn_processor(AttnProcessor2_0())
    elif attention == "xformers":
        unet.enable_xformers_memory_efficient_attention()


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") + "." if lines else f"{type(error).__name__}."
