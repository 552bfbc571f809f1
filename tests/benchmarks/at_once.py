"""How many pictures at once are drawn fastest: steps of pictures a second, by processor time.

    OMP_NUM_THREADS=1 python tests/benchmarks/at_once.py scene-sd

Two denoising steps with guidance 3, all batches in turn, and with batches of 16 ``model.channels_last`` and
``model.compile`` among them: medians of the repeats, with the least and the greatest. What compiling takes is told
apart, by the clock: the first time, and in another process, which finds what the first one's compiler left behind.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from statistics import median
from typing import Any

import torch

from raftdiff.diffusion.models.loading import ModelConfig, load
from raftdiff.diffusion.probe import drawing
from raftdiff.diffusion.sampler import DiffusionSampler, DiffusionSamplerConfig
from raftdiff.embedded import folder
from raftdiff.records.provenance import provenance
from raftdiff.training.devices import flush_denormals

BATCHES, AGAIN = (1, 2, 4, 8, 16, 32), 16
HELD = {
    "channels_last": {"channels_last": True},
    "compile": {"compile": True},
    "compile, channels_last": {"compile": True, "channels_last": True},
}
"""Of the model, with ``AGAIN`` pictures at once."""
FIRST_CALL = "compile: its first call"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="scene-sd", help="one that ships")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--first-call", action="store_true", help="no more than what compiling takes in this process")
    args = parser.parse_args()
    torch.set_num_threads(1)
    flush_denormals()
    if args.first_call:
        print(f"{FIRST_CALL:>24}  {first_call(args.model):.1f} s by the clock", flush=True)
        return
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache  # so that the first process finds nothing, and the second all
        for _ in range(2):
            subprocess.run([sys.executable, __file__, args.model, "--first-call"], check=True)
        measured(args.model, args.repeats)
    print(json.dumps(provenance()))


def sampler(model: str, **held: Any) -> DiffusionSampler:
    parts = load(ModelConfig(base=str(folder(model)), device="cpu", **held))
    return DiffusionSamplerConfig(steps=2, guidance=3.0).build(parts)


def first_call(model: str) -> float:
    """Seconds by the clock of a first batch less those of the second."""
    own = sampler(model, compile=True)
    work, seconds = drawing(own, AGAIN, own.sizes[0])[0], []
    for _ in range(2):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return seconds[0] - seconds[1]


def measured(model: str, repeats: int) -> None:
    plain = sampler(model)
    ways = {str(count): (count, plain) for count in BATCHES}
    ways |= {name: (AGAIN, sampler(model, **held)) for name, held in HELD.items()}
    work = {name: drawing(own, count, own.sizes[0])[0] for name, (count, own) in ways.items()}
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):  # the first warms up
        for name, (count, _) in ways.items():
            began = time.process_time()
            work[name]()
            if turn:
                speeds[name].append(2 * count / (time.process_time() - began))
    for name, found in speeds.items():
        print(f"{name:>24}  {median(found):5.1f} ({min(found):.1f} to {max(found):.1f})", flush=True)


if __name__ == "__main__":
    main()
