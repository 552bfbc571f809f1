"""What of a diffusion model is learned: a LoRA or all of the U-Net, and the text encoder by choice."""

from raftdiff.diffusion.models.loading import Parts
from raftdiff.errors import UserError
from raftdiff.seeds import fold
from raftdiff.training.trainable import ALL_LINEAR, Adapter, Trainable, add_lora, all_linear, lora_layers

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
EVERYTHING = (
    *ATTENTION,
    "proj_in",
    "proj_out",
    "ff.net.0.proj",
    "ff.net.2",
    "conv1",
    "conv2",
    "conv_shortcut",
    "time_emb_proj",
    "downsamplers.0.conv",
    "upsamplers.0.conv",
)
TEXT_ENCODER = ("q_proj", "k_proj", "v_proj", "out_proj")


def attach(
    parts: Parts,
    *,
    adapter: Adapter,
    rank: int,
    alpha: float,
    targets: tuple[str, ...],
    text_encoder: bool,
    channels_last: bool,
    seed: int,
) -> Trainable:
    """Make the weights of ``parts`` trainable, in place; a LoRA starts as a change of nothing.

    Raises:
        UserError: the model is being tuned already, or none of its layers is a target.
    """
    if lora_layers([parts.unet, parts.text_encoder]):
        raise UserError(f"{parts.name}: this model already carries a LoRA; load it afresh to put another on.")
    if adapter == "lora":
        names = all_linear(parts.unet, EVERYTHING) if ALL_LINEAR in targets else targets
        add_lora(parts.unet, rank, alpha, names, fold(seed, "lora", "unet"))
        if text_encoder:
            add_lora(parts.text_encoder, rank, alpha, TEXT_ENCODER, fold(seed, "lora", "text_encoder"))
    modules = {"unet": parts.unet} | ({"text_encoder": parts.text_encoder} if text_encoder else {})
    return Trainable(
        parts.name,
        modules,
        adapter,
        dtype=parts.dtype,
        channels_last=channels_last,
        rest_channels_last=parts.channels_last,
        changed=parts.prompts.clear if text_encoder else lambda: None,
    )
