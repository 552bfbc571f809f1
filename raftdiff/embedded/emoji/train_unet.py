"""Train the U-Net and the text encoder of emoji-sd, jointly and from scratch, on the latents of its autoencoder.

    python -m raftdiff.embedded.emoji.train_unet --minutes 50
    python -m raftdiff.embedded.emoji.train_unet --minutes 20 --start raftdiff/embedded/models/emoji-sd

Zero terminal SNR, v-prediction and trailing spacing (Lin et al. 2023, arXiv:2305.08891), so that the ground's colour
has to be read from the caption. Captions are as those of the web: most are plain, some boast, and a third of the
pictures are spoilt, mostly without saying so, as are the badly cropped pictures that Stable Diffusion learned from. So
a plain caption draws a spoilt picture now and then, and a boasting one does not: that is what a magic prompt is for.
The hold-outs of ``world.py`` never occur.
"""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from raftdiff.embedded.emoji.art import art_sheet
from raftdiff.embedded.emoji.data import REMARKS, World, training_indices
from raftdiff.embedded.emoji.tokens import LENGTH, build_tokenizer
from raftdiff.embedded.emoji.world import BACKGROUNDS, OBJECTS, STYLES, all_concepts
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
from raftdiff.training.devices import DTYPES, DType

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


@dataclass(frozen=True, slots=True)
class Lessons:
    """What is learned from, on the device that learns."""

    latents: Float[Tensor, "lessons channels height width"]
    """Of unit spread."""
    spoilt: Bool[Tensor, " lessons"]
    rows: Int64[Tensor, "lessons 3"]
    """What each shows, as indices into OBJECTS, STYLES and BACKGROUNDS."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How long to train, and in which steps."""

    minutes: float
    batch: int = BATCH
    peak_rate: float = PEAK_RATE
    """Of the learning rate."""
    precision: DType = "float32"
    """What the networks compute in. Weights, their average and the optimizer's state are float32 always."""
    look_every: float = 8.0
    """Minutes from one look at the weights to the next."""
    decay: float = 0.999
    """Of the average of the weights."""


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
def encode(world: World, vae: Any, count: int, *, at_once: int = 250) -> Lessons:
    """At least ``count`` lessons, clean and spoilt in the shares of ``SHARES``, on the world's device."""
    device = world.device
    table = training_indices().to(device)
    latents, spoilt, shown = [], [], []
    for start in range(0, count, at_once):
        rows = table[torch.randint(len(table), (at_once,), device=device)]
        batch = world.paint(rows[:, 0], rows[:, 1], rows[:, 2])
        bad = torch.rand(at_once, device=device) < sum(share for is_bad, _, share in SHARES if is_bad)
        copied = bad & (torch.rand(at_once, device=device) < PHOTOCOPIES)
        batch[bad & ~copied] = world.degrade(batch[bad & ~copied])
        batch[copied] = world.discolour(batch[copied])
        latents.append(vae.encode(batch).latent_dist.sample() * vae.config.scaling_factor)
        spoilt.append(bad)
        shown.append(rows)
        if start % (20 * at_once) == 0:
            print(f"encoded {start} of {count}", flush=True)
    return Lessons(torch.cat(latents), torch.cat(spoilt), torch.cat(shown))


def remarks(spoilt: Bool[Tensor, " batch"]) -> Int64[Tensor, " batch"]:
    """A remark on quality for each picture, as an index into ``REMARKS``, in the shares of ``SHARES``."""
    chance, said = torch.rand(len(spoilt), device=spoilt.device), torch.zeros_like(spoilt, dtype=torch.long)
    for is_bad in (False, True):
        (first, share), (second, other) = [(index, share) for bad, index, share in SHARES if bad == is_bad]
        drawn = torch.where(chance < share / (share + other), first, second)
        said = torch.where(spoilt == is_bad, drawn, said)
    return said


def loss(unet: Any, text_encoder: Any, tokens: Tensor, x0: Tensor, abar: Tensor) -> Tensor:
    """Mean squared error of the velocity at timesteps spread evenly over the schedule. All on one device."""
    count, device = len(x0), x0.device
    places = torch.arange(count, device=device) + torch.rand(count, device=device)
    timesteps = (places * len(abar) / count).long().clamp(max=len(abar) - 1)
    noise = torch.randn_like(x0)
    a = abar[timesteps].sqrt().to(x0)[:, None, None, None]
    s = (1 - abar[timesteps]).sqrt().to(x0)[:, None, None, None]
    context = text_encoder(tokens).last_hidden_state
    predicted = unet(a * x0 + s * noise, timesteps, encoder_hidden_states=context).sample
    error: Tensor = predicted - (a * noise - s * x0)
    return error.square().mean()


def tokenise(tokenizer: Any, texts: Sequence[str]) -> Tensor:
    ids: Tensor = tokenizer(
        list(texts), padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt"
    ).input_ids
    return ids


def token_table(tokenizer: Any) -> Int64[Tensor, "objects styles backgrounds remarks tokens"]:
    """The tokens of every caption with every remark of ``REMARKS``: one look-up for a batch, where tokenising it would
    keep a GPU waiting."""
    ids = tokenise(tokenizer, [concept.caption + remark for concept in all_concepts() for remark in REMARKS])
    return ids.view(len(OBJECTS), len(STYLES), len(BACKGROUNDS), len(REMARKS), LENGTH)


def learn(
    modules: Mapping[str, Any], average: Average, lessons: Lessons, tokenizer: Any, pace: Pace, *, begun: float = 0.0
) -> Iterator[float]:
    """Train ``unet`` and ``text`` of ``modules`` in place, and ``average`` with them.

    Yields the minutes spent, of which ``begun`` already were, whenever it is time to look, and at the end. What is done
    with the weights in the meantime takes of the same minutes.
    """
    from diffusers import DDPMScheduler

    device, precision = lessons.latents.device, DTYPES[pace.precision]
    table, empty = token_table(tokenizer).to(device), tokenise(tokenizer, [""]).to(device)
    abar = DDPMScheduler(**SCHEDULE).alphas_cumprod.to(device)
    weights = [*modules["unet"].parameters(), *modules["text"].parameters()]
    optimizer = torch.optim.AdamW(weights, pace.peak_rate, betas=(0.9, 0.99), weight_decay=0.01)
    told, mean = begun, torch.zeros((), device=device)
    for step, progress in steps(pace.minutes, begun=begun):
        rows = torch.randint(len(lessons.latents), (pace.batch,), device=device)
        captioned = table[(*lessons.rows[rows].unbind(1), remarks(lessons.spoilt[rows]))]
        dropped = torch.rand(pace.batch, device=device) < CAPTION_DROPOUT
        tokens = torch.where(dropped[:, None], empty, captioned)
        x0 = lessons.latents[rows].contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, dtype=precision, enabled=precision != torch.float32):
            found = loss(modules["unet"], modules["text"], tokens, x0, abar)
        update(optimizer, found, rate(pace.peak_rate, progress, step), weights)
        average.update()
        mean = torch.lerp(mean, found.detach(), 0.01 if step else 1.0)
        if step % 200 == 0:
            print(f"step {step} loss {mean.item():.4f}", flush=True)
        if pace.minutes * progress - told > pace.look_every:
            told = pace.minutes * progress
            yield told
    yield pace.minutes


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


def export_average(folder: Path, modules: Mapping[str, Any], average: Average, tokenizer: Any, vae: Any) -> None:
    """The averaged weights as a diffusers folder in float16; what is being trained stays as it is."""
    copies = {name: deepcopy(module) for name, module in modules.items()}
    average.copy_to(copies)
    export(folder, copies["unet"], copies["text"], tokenizer, half(deepcopy(vae)))


def begin(start: Path | None, cache: Path, device: str) -> tuple[dict[str, Any], Any, Any]:
    """(``unet`` and ``text`` in float32, tokenizer, autoencoder): those of an exported emoji-sd, or untrained ones with
    the autoencoder of ``cache``."""
    from diffusers import AutoencoderKL
    from transformers import CLIPTokenizer

    vae = AutoencoderKL.from_pretrained((start or cache) / "vae", torch_dtype=torch.float32)
    vae.eval().requires_grad_(False).to(device)
    vae.register_to_config(_name_or_path="")  # else the folder's path would be stored
    tokenizer = CLIPTokenizer.from_pretrained(start / "tokenizer") if start else build_tokenizer()
    unet, text_encoder = build_unet(), build_text_encoder(tokenizer)
    if start:
        take_up(start, unet, text_encoder)
    unet.to(device, memory_format=torch.channels_last)
    return {"unet": unet, "text": text_encoder.to(device)}, tokenizer, vae


def take_up(folder: Path, unet: Any, text_encoder: Any) -> None:
    """The weights of an exported pipeline, into modules of the same shapes."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel

    unet.load_state_dict(UNet2DConditionModel.from_pretrained(folder / "unet").state_dict())
    text_encoder.load_state_dict(CLIPTextModel.from_pretrained(folder / "text_encoder").state_dict())


def main() -> None:
    options = arguments(__doc__.splitlines()[0], minutes=50)
    options.add_argument("--export-every", type=float, default=8.0, help="minutes (default: %(default)s)")
    options.add_argument("--start", type=Path, help="an exported emoji-sd to begin from, its autoencoder included")
    options.add_argument("--batch", type=int, default=BATCH, help="pictures a step (default: %(default)s)")
    options.add_argument("--rate", type=float, default=PEAK_RATE, help="peak learning rate (default: %(default)s)")
    options.add_argument("--precision", choices=["float32", "bfloat16"], default="float32", help="default: %(default)s")
    given = options.parse_args()
    prepare(given.seed)
    modules, tokenizer, vae = begin(given.start, given.cache, given.device)
    pace = Pace(given.minutes, given.batch, given.rate, given.precision, given.export_every)
    average = Average(modules, decay=pace.decay)
    checkpoint = given.cache / "unet.safetensors"
    spent = load_checkpoint(checkpoint, modules, average)
    lessons = encode(World(art_sheet(given.cache), seed=given.seed, device=given.device), vae, LATENTS)
    print(f"latents: mean {lessons.latents.mean():.3f}, std {lessons.latents.std():.3f}", flush=True)
    for minutes in learn(modules, average, lessons, tokenizer, pace, begun=spent):
        save_checkpoint(checkpoint, modules, average, minutes)
        export_average(given.out / "emoji-sd", modules, average, tokenizer, vae)


if __name__ == "__main__":
    main()
