"""What of a diffusion model is learned: a LoRA or all of the denoiser, and the text encoders by choice."""

from raftdiff.diffusion.models.blocks import is_transformer
from raftdiff.diffusion.models.loaded import Parts
from raftdiff.errors import UserError
from raftdiff.seeds import fold
from raftdiff.training.quantised import is_quantised
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
    merge_half: bool,
    seed: int,
) -> Trainable:
    """Make the weights of ``parts`` trainable, in place; a LoRA starts as a change of nothing.

    Args:
        targets: which layers of the denoiser get a LoRA: attention, all, all-linear, or names.
        text_encoders: whether the text encoders are trained too.
        merge_half: whether a U-Net's LoRA is merged between rounds in half precision too. A transformer's is not: its
            blocks may wait in main memory, which is to change nothing that is drawn.

    Raises:
        UserError: the model is being tuned already, none of its layers is a target, or its text encoders cannot be
            trained where they are.
    """
    denoiser, texts, layers = parts.denoiser, parts.text_encoders, parts.family.layers
    if lora_layers([denoiser, *texts.values()]):
        raise UserError(f"{parts.name}: this model already carries a LoRA; load it afresh to put another on.")
    if adapter == "full" and is_quantised(denoiser):
        raise UserError("finetuner.adapter: full trains every weight, which model.quantise rounds; use adapter: lora.")
    trained = {name: texts[name] for name in layers.text if name in texts} if text_encoders else {}
    if trained:
        parts.prompts.own()
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
    if trained and parts.idle.fetches(*trained.values()):
        raise UserError(
            "finetuner.train_text_encoder: what is trained stays on the device, and model.offload keeps text encoders "
            "in main memory. Set one of them to false."
        )
    if adapter == "lora":
        known = {"attention": layers.attention, "all": layers.everything}
        names = targets if isinstance(targets, tuple) else known.get(targets) or all_linear(denoiser, layers.everything)
        add_lora(denoiser, rank, alpha, names, fold(seed, "lora", parts.family.denoiser))
        for name, parameter in denoiser.named_parameters():
            if "lora_" in name:  # peft puts it where its layer lies, which may wait in main memory
                parameter.data = parameter.data.to(parts.device)
        for name, module in trained.items():
            add_lora(module, rank, alpha, layers.text[name], fold(seed, "lora", name))
    for layer in lora_layers([denoiser, *trained.values()]):
        # Autocast casts what must be cast; peft would first make a float32 copy of what each layer sees, and autocast
        # keep another for the backward pass: half as much memory again.
        layer.cast_input_dtype_enabled = False
    return Trainable(
        parts.name,
        {parts.family.denoiser: denoiser, **trained},
        adapter,
        dtype=parts.dtype,
        channels_last=channels_last,
        rest_channels_last=parts.channels_last,
        merge_half=merge_half and not is_transformer(denoiser),
        changed=parts.prompts.clear if trained else lambda: None,
    )
