"""What of a diffusion model is learned: a LoRA or all of the denoiser, and the text encoders by choice."""

from raftdiff.diffusion.models.loading import Parts
from raftdiff.errors import UserError
from raftdiff.seeds import fold
from raftdiff.training.trainable import Adapter, Trainable, add_lora, all_linear, lora_layers


def attach(
    parts: Parts,
    *,
    adapter: Adapter,
    rank: int,
    alpha: float,
    targets: str | tuple[str, ...],
    text_encoders: bool,
    channels_last: bool,
    seed: int,
) -> Trainable:
    """Make the weights of ``parts`` trainable, in place; a LoRA starts as a change of nothing.

    Args:
        targets: which layers of the denoiser get a LoRA: attention, all, all-linear, or names.
        text_encoders: whether the text encoders are trained too.

    Raises:
        UserError: the model is being tuned already, none of its layers is a target, or its text encoders cannot be
            trained where they are.
    """
    denoiser, texts, layers = parts.denoiser, parts.text_encoders, parts.family.layers
    if lora_layers([denoiser, *texts.values()]):
        raise UserError(f"{parts.name}: this model already carries a LoRA; load it afresh to put another on.")
    trained = {name: texts[name] for name in layers.text if name in texts} if text_encoders else {}
    if text_encoders and not trained:
        raise UserError(
            f"finetuner.train_text_encoder: {parts.family.told} reads captions by a language model, which is not tuned "
            "here. Leave it out."
        )
    if any(next(module.parameters()).device != parts.device for module in trained.values()):
        raise UserError(
            "finetuner.train_text_encoder: what is trained lies on one device, and model.text_device names another for "
            "the text encoder. Leave one of them out."
        )
    if adapter == "lora":
        known = {"attention": layers.attention, "all": layers.everything}
        names = targets if isinstance(targets, tuple) else known.get(targets) or all_linear(denoiser, layers.everything)
        add_lora(denoiser, rank, alpha, names, fold(seed, "lora", parts.family.denoiser))
        for name, module in trained.items():
            add_lora(module, rank, alpha, layers.text[name], fold(seed, "lora", name))
    return Trainable(
        parts.name,
        {parts.family.denoiser: denoiser, **trained},
        adapter,
        dtype=parts.dtype,
        channels_last=channels_last,
        rest_channels_last=parts.channels_last,
        changed=parts.prompts.clear if trained else lambda: None,
    )
