"""Train emoji-clip, the reward: a small CLIP in open_clip's format.

    python -m raftdiff.embedded.emoji.train_clip --minutes 10 --seed 3

Half of every batch are neighbours of the other half: the same object with another style or ground. They are the
negatives that make the reward look at all three, not at the object alone.
"""

import json
import logging
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from raftdiff.embedded.emoji.art import art_sheet
from raftdiff.embedded.emoji.data import SIZE, World, concepts
from raftdiff.embedded.emoji.rough import Bank, load_vae
from raftdiff.embedded.emoji.tokens import LENGTH, build_tokenizer
from raftdiff.embedded.emoji.train_unet import tokenise
from raftdiff.embedded.emoji.world import BACKGROUNDS, OBJECTS, STYLES
from raftdiff.embedded.training import Average, arguments, half, prepare, rate, steps, update

BATCH = 96
PEAK_RATE = 1.5e-3
NAMING_WEIGHT = 0.3
COUNTS = (len(OBJECTS), len(STYLES), len(BACKGROUNDS))
MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


def model_config(vocabulary: int) -> dict[str, Any]:
    """open_clip's ``model_cfg``."""
    return {
        "embed_dim": 128,
        "vision_cfg": {"image_size": SIZE, "layers": [1, 1, 1, 1], "width": 16, "head_width": 64},
        "text_cfg": {
            "context_length": LENGTH,
            "vocab_size": vocabulary,
            "width": 128,
            "heads": 4,
            "layers": 3,
            "hf_tokenizer_name": "emoji-clip",
        },
    }


def draw(count: int) -> Tensor:
    """Indices of concepts, (count, 3): the second half are neighbours of the first, with another style or ground."""
    first = torch.stack([torch.randint(limit, (count // 2,)) for limit in COUNTS], dim=1)
    second = first.clone()
    column = torch.randint(1, 3, (count // 2,))
    for index in (1, 2):
        moved = first[:, index] + torch.randint(1, COUNTS[index], (count // 2,))
        second[:, index] = torch.where(column == index, moved % COUNTS[index], first[:, index])
    return torch.cat([first, second])


def loss(model: Any, heads: nn.Linear, pictures: Tensor, tokens: Tensor, rows: Tensor) -> Tensor:
    """Symmetric cross-entropy (CLIP, arXiv:2103.00020); rows that show the same concept share the target.

    Added to it, to hasten the image tower: three linear heads on the pictures' embeddings, thrown away afterwards, name
    the object, the style and the background.
    """
    images, texts, scale = model(pictures, tokens)
    logits = scale * images @ texts.T
    same = (rows[:, None] == rows[None]).all(dim=-1).float()
    target = same / same.sum(dim=1, keepdim=True)
    contrast = (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2
    named = torch.split(heads(scale * images), list(COUNTS), dim=1)
    naming = [functional.cross_entropy(part, row) for part, row in zip(named, rows.unbind(1), strict=True)]
    return contrast + NAMING_WEIGHT * torch.stack(naming).sum()


def main() -> None:
    import open_clip

    logging.disable(logging.WARNING)
    given = arguments(__doc__.splitlines()[0], minutes=10).parse_args()
    prepare(given.seed)
    vae, tokenizer = load_vae(given.cache, given.device), build_tokenizer()
    bank = Bank(World(art_sheet(given.cache), seed=given.seed), vae)
    config = model_config(len(tokenizer))
    model = open_clip.CLIP(**config).to(given.device)
    heads = nn.Linear(config["embed_dim"], sum(COUNTS)).to(given.device)
    weights = [*model.parameters(), *heads.parameters()]
    average = Average({"clip": model}, decay=0.995)
    optimizer = torch.optim.AdamW(weights, PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.05)
    for step, progress in steps(given.minutes):
        rows = draw(BATCH)
        pictures = bank.pictures(rows)
        tokens = tokenise(tokenizer, [concept.caption for concept in concepts(rows)])
        found = loss(model, heads, *(tensor.to(given.device) for tensor in (pictures, tokens, rows)))
        update(optimizer, found, rate(PEAK_RATE, progress, step), weights)
        with torch.no_grad():
            model.logit_scale.clamp_(max=4.6052)  # 100, as in the paper
        average.update()
        if step % 100 == 0:
            print(f"step {step} loss {found.item():.3f} scale {model.logit_scale.exp().item():.1f}", flush=True)
    average.copy_to({"clip": model})
    folder = given.out / "emoji-clip"
    folder.mkdir(parents=True, exist_ok=True)
    preprocess = {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "squash"}
    described = {"model_cfg": config, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(described, indent=2) + "\n")
    stored = half(model.eval()).state_dict()
    save_file({name: tensor.contiguous() for name, tensor in stored.items()}, folder / "open_clip_model.safetensors")
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main()
