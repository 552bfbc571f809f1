"""Train the U-Net and the text encoder of emoji-sd, jointly and from scratch, on the latents of its autoencoder.

    python -m raftdiff.embedded.emoji.train_unet --minutes 50
    python -m raftdiff.embedded.emoji.train_unet --minutes 20 --start raftdiff/embedded/models/emoji-sd

Zero terminal SNR, v-prediction and trailing spacing (Lin et al. 2023, arXiv:2305.08891), so that the ground's colour
has to be read from the caption. Captions are as those of the web: most are plain, some boast, and a third of the
pictures are spoilt, mostly without saying so, as are the badly cropped pictures that Stable Diffusion learned from. So
a plain caption draws a spoilt picture now and then, and a boasting one does not: that is what a magic prompt is for.
The hold-outs of ``world.py`` never occur.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raftdiff.embedded.emoji.data import REMARKS, World, captions, concepts, training_indices
from raftdiff.embedded.emoji.tokens import LENGTH, build_tokenizer
from raftdiff.embedded.emoji.world import Concept
from raftdiff.embedded.training import (
    Average,
    arguments,
    half,
    load_checkpoint,
    prepare,
    rate,
    save_checkpoint,
    steps,
    update,
)

BATCH = 32
PEAK_RATE = 1e-3
CAPTION_DROPOUT = 0.1
SHARES = ((False, 0, 0.45), (False, 1, 0.20), (True, 2, 0.12), (True, 0, 0.23))
"""(spoilt, index into REMARKS, share of the training data)."""
PHOTOCOPIES = 0.6
"""Share of the spoilt pictures that have lost their colours; the others are blurred, noisy, cropped or washed out."""
LATENTS = 16000
SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
}


def build_unet() -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 80, 160),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=128,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def build_text_encoder(tokenizer: Any) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        projection_dim=128,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


@torch.no_grad()
def encode(world: World, vae: Any, count: int, device: str) -> tuple[Tensor, Tensor, list[Concept]]:
    """Latents scaled to unit spread, whether each is spoilt, and its concept, in the shares of ``SHARES``."""
    table, latents, spoilt, plain = training_indices(), [], [], []
    for start in range(0, count, 250):
        rows = table[torch.randint(len(table), (250,))]
        batch = world.paint(rows[:, 0], rows[:, 1], rows[:, 2])
        bad = torch.rand(250) < sum(share for is_bad, _, share in SHARES if is_bad)
        copied = bad & (torch.rand(250) < PHOTOCOPIES)
        batch[bad & ~copied] = world.degrade(batch[bad & ~copied])
        batch[copied] = world.discolour(batch[copied])
        drawn = vae.encode(batch.to(device)).latent_dist.sample() * vae.config.scaling_factor
        latents.append(drawn.cpu())
        spoilt.append(bad)
        plain += concepts(rows)
        if start % 5000 == 0:
            print(f"encoded {start} of {count}", flush=True)
    return torch.cat(latents), torch.cat(spoilt), plain


def remarks(spoilt: Tensor) -> list[str]:
    """A remark on quality for each picture, in the shares of ``SHARES``."""
    chance = torch.rand(len(spoilt))
    said = []
    for bad, draw in zip(spoilt.tolist(), chance.tolist(), strict=True):
        options = [(index, share) for is_bad, index, share in SHARES if is_bad == bad]
        first, share = options[0]
        said.append(REMARKS[first] if draw < share / sum(s for _, s in options) else REMARKS[options[1][0]])
    return said


def loss(unet: Any, text_encoder: Any, tokens: Tensor, x0: Tensor, abar: Tensor) -> Tensor:
    """Mean squared error of the velocity at timesteps spread evenly over the schedule."""
    count = len(x0)
    timesteps = ((torch.arange(count) + torch.rand(count)) * len(abar) / count).long().clamp(max=len(abar) - 1)
    noise = torch.randn_like(x0)
    a = abar[timesteps].sqrt().to(x0)[:, None, None, None]
    s = (1 - abar[timesteps]).sqrt().to(x0)[:, None, None, None]
    context = text_encoder(tokens).last_hidden_state
    predicted = unet(a * x0 + s * noise, timesteps.to(x0.device), encoder_hidden_states=context).sample
    error: Tensor = predicted - (a * noise - s * x0)
    return error.square().mean()


def tokenise(tokenizer: Any, texts: Sequence[str]) -> Tensor:
    ids: Tensor = tokenizer(
        list(texts), padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt"
    ).input_ids
    return ids


def export(folder: Path, unet: Any, text_encoder: Any, tokenizer: Any, vae: Any) -> None:
    """The whole pipeline as a diffusers folder in float16, swapped in when it is complete."""
    import shutil

    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=half(text_encoder),
        tokenizer=tokenizer,
        unet=half(unet),
        scheduler=DPMSolverMultistepScheduler(**SCHEDULE, algorithm_type="dpmsolver++", use_karras_sigmas=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    aside = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(aside, ignore_errors=True)
    pipeline.save_pretrained(aside, safe_serialization=True)
    for kept in ("README.md", "held_out.json"):
        if (folder / kept).is_file():
            shutil.copy2(folder / kept, aside / kept)
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)


def take_up(folder: Path, unet: Any, text_encoder: Any) -> None:
    """The weights of an exported pipeline, into modules of the same shapes."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel

    unet.load_state_dict(UNet2DConditionModel.from_pretrained(folder / "unet").state_dict())
    text_encoder.load_state_dict(CLIPTextModel.from_pretrained(folder / "text_encoder").state_dict())


def main() -> None:
    from copy import deepcopy

    from diffusers import AutoencoderKL, DDPMScheduler
    from transformers import CLIPTokenizer

    options = arguments(__doc__.splitlines()[0], minutes=50)
    options.add_argument("--export-every", type=float, default=8.0, help="minutes (default: %(default)s)")
    options.add_argument("--start", type=Path, help="an exported emoji-sd to begin from, its autoencoder included")
    given = options.parse_args()
    prepare(given.seed)
    vae = AutoencoderKL.from_pretrained((given.start or given.cache) / "vae", torch_dtype=torch.float32)
    vae.eval().requires_grad_(False).to(given.device)
    vae.register_to_config(_name_or_path="")  # else the folder's path would be stored
    tokenizer = CLIPTokenizer.from_pretrained(given.start / "tokenizer") if given.start else build_tokenizer()
    unet, text_encoder = build_unet(), build_text_encoder(tokenizer)
    if given.start:
        take_up(given.start, unet, text_encoder)
    unet.to(given.device, memory_format=torch.channels_last)
    text_encoder.to(given.device)
    modules = {"unet": unet, "text": text_encoder}
    average = Average(modules, decay=0.999)
    checkpoint = given.cache / "unet.safetensors"
    spent = load_checkpoint(checkpoint, modules, average)
    latents, spoilt, shown = encode(World(given.cache, seed=given.seed), vae, LATENTS, given.device)
    print(f"latents: mean {latents.mean():.3f}, std {latents.std():.3f}", flush=True)
    abar = DDPMScheduler(**SCHEDULE).alphas_cumprod
    weights = [*unet.parameters(), *text_encoder.parameters()]
    optimizer = torch.optim.AdamW(weights, PEAK_RATE, betas=(0.9, 0.99), weight_decay=0.01)
    every, told, mean = given.export_every, spent, 0.0
    for step, progress in steps(given.minutes, begun=spent):
        rows = torch.randint(len(latents), (BATCH,))
        texts = captions([shown[row] for row in rows.tolist()], remarks(spoilt[rows]))
        dropped = (torch.rand(BATCH) < CAPTION_DROPOUT).tolist()
        tokens = tokenise(tokenizer, ["" if drop else text for drop, text in zip(dropped, texts, strict=True)])
        x0 = latents[rows].to(given.device, memory_format=torch.channels_last)
        found = loss(unet, text_encoder, tokens.to(given.device), x0, abar)
        update(optimizer, found, rate(PEAK_RATE, progress, step), weights)
        average.update()
        mean = 0.99 * mean + 0.01 * found.item() if step else found.item()
        if step % 200 == 0:
            print(f"step {step} loss {mean:.4f}", flush=True)
        if given.minutes * progress - told > every:
            told = given.minutes * progress
            save_checkpoint(checkpoint, modules, average, told)
            copies = {name: deepcopy(module) for name, module in modules.items()}
            average.copy_to(copies)
            export(given.out / "emoji-sd", copies["unet"], copies["text"], tokenizer, half(deepcopy(vae)))
    save_checkpoint(checkpoint, modules, average, given.minutes)
    average.copy_to(modules)
    export(given.out / "emoji-sd", unet, text_encoder, tokenizer, half(vae))


if __name__ == "__main__":
    main()
