"""How many pictures at once are drawn fastest: steps of pictures a second, by processor time.

    OMP_NUM_THREADS=1 python tests/benchmarks/at_once.py scene-sd

Two denoising steps with guidance 3, all batches in turn, and ``model.channels_last`` with batches of 16 among them:
medians of the repeats, with the least and the greatest.
"""

import argparse
import json
import time
from statistics import median

import torch

from raftdiff.diffusion.models.loading import ModelConfig, load
from raftdiff.diffusion.probe import drawing
from raftdiff.diffusion.sampler import DiffusionSampler, DiffusionSamplerConfig
from raftdiff.embedded import folder
from raftdiff.records.provenance import provenance
from raftdiff.training.devices import flush_denormals

BATCHES, LAID_OUT = (1, 2, 4, 8, 16, 32), 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="scene-sd", help="one that ships")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    flush_denormals()

    def sampler(channels_last: bool) -> DiffusionSampler:
        model = load(ModelConfig(base=str(folder(args.model)), device="cpu", channels_last=channels_last))
        return DiffusionSamplerConfig(steps=2, guidance=3.0).build(model)

    plain, laid_out = sampler(False), sampler(True)
    ways = {str(count): (count, plain) for count in BATCHES} | {"channels_last": (LAID_OUT, laid_out)}
    work = {name: drawing(own, count, own.sizes[0])[0] for name, (count, own) in ways.items()}
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(args.repeats + 1):  # the first warms up
        for name, (count, _) in ways.items():
            began = time.process_time()
            work[name]()
            if turn:
                speeds[name].append(2 * count / (time.process_time() - began))
    for name, found in speeds.items():
        print(f"{name:>14}  {median(found):5.1f} ({min(found):.1f} to {max(found):.1f})", flush=True)
    print(json.dumps(provenance()))


if __name__ == "__main__":
    main()
