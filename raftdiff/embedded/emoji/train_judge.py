"""Train emoji-judge, the held-out classifier of object, style and ground.

python -m raftdiff.embedded.emoji.train_judge --minutes 4 --seed 7
"""

import json

import torch
from jaxtyping import Int64
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from raftdiff.embedded.emoji.art import art_sheet
from raftdiff.embedded.emoji.data import World
from raftdiff.embedded.emoji.judge import FACTORS, Network
from raftdiff.embedded.emoji.rough import Bank, load_vae, random_rows
from raftdiff.embedded.emoji.world import BACKGROUNDS, OBJECTS, STYLES
from raftdiff.embedded.training import Average, arguments, half, prepare, rate, steps, update

BATCH = 64
PEAK_RATE = 2e-3
CHANNELS = (32, 64, 96, 128, 160)
HEADS = {"object": len(OBJECTS), "style": len(STYLES), "background": len(BACKGROUNDS)}


def loss(network: Network, pictures: Tensor, rows: Int64[Tensor, "batch 3"]) -> Tensor:
    """Sum of the three cross-entropies, labels smoothed a little."""
    logits = network(pictures)
    labels = zip(FACTORS, rows.to(pictures.device).unbind(1), strict=True)
    return torch.stack([functional.cross_entropy(logits[f], row, label_smoothing=0.05) for f, row in labels]).sum()


def main() -> None:
    given = arguments(__doc__.splitlines()[0], minutes=4).parse_args()
    prepare(given.seed)
    vae = load_vae(given.cache, given.device)
    bank = Bank(World(art_sheet(given.cache), seed=given.seed), vae)
    network = Network(CHANNELS, HEADS).to(given.device).to(memory_format=torch.channels_last)
    average = Average({"judge": network}, decay=0.998)
    optimizer = torch.optim.AdamW(network.parameters(), PEAK_RATE, weight_decay=0.02)
    for step, progress in steps(given.minutes):
        rows = random_rows(BATCH)
        pictures = bank.pictures(rows).to(given.device, memory_format=torch.channels_last)
        found = loss(network, pictures, rows)
        update(optimizer, found, rate(PEAK_RATE, progress, step), network.parameters())
        average.update()
        if step % 100 == 0:
            print(f"step {step} loss {found.item():.3f}", flush=True)
    average.copy_to({"judge": network})
    folder = given.out / "emoji-judge"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"channels": CHANNELS, "heads": HEADS}, indent=2) + "\n")
    weights = half(network.eval()).state_dict()
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "model.safetensors")


if __name__ == "__main__":
    main()
