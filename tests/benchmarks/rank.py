"""What ``raftdiff rank`` costs beside the tower: its pictures a second, and the tower's with pictures that are open.

    python tests/benchmarks/rank.py --pictures 1000 --size 96

Both are timed in turn, ``--repeats`` times, each with a tower that has seen nothing; the ratio is that of the medians.
The command's time is all of it but imports and loading: reading the folder, opening, scoring, sorting, tables, copies,
contact sheet. Seconds of the main thread's own work are told beside those of the clock: pictures are opened in threads
beside it, and a machine that is busy with other things makes the clock's worthless. A third line is the command with a
function that looks at nothing in place of the reward: what is not the tower's.
"""

import argparse
import contextlib
import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from raftdiff.cli.main import main
from raftdiff.embedded import resolve
from raftdiff.measures.pictures import opened
from raftdiff.rewards.tower import Tower, open_tower

MODEL = "scene-clip"


class Seconds(NamedTuple):
    clock: float
    work: float
    """Of the main thread."""


def write(folder: Path, count: int, size: int) -> None:
    """Pictures of smooth noise as PNG, and a caption for each."""
    rows = []
    for k in range(count):
        coarse = np.random.default_rng(k).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC).save(folder / f"p{k:05d}.png")
        rows.append({"file_name": f"p{k:05d}.png", "caption": f"a fox and {k % 50} cats"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def alone(tower: Tower, folder: Path) -> Seconds:
    """The tower, for pictures that are open, and for their captions."""
    pictures = [opened(path) for path in sorted(folder.glob("*.png"))]
    captions = [json.loads(line)["caption"] for line in (folder / "metadata.jsonl").read_text().splitlines()]
    began = _forgotten(tower)
    for start in range(0, len(pictures), tower.batch_size):
        tower.image_features(pictures[start : start + tower.batch_size])
        tower.text_features(captions[start : start + tower.batch_size])
    return _since(began)


def nothing(images: Sequence[Image.Image]) -> list[float]:
    """A reward that looks at nothing."""
    return [float(place) for place in range(len(images))]


def command(tower: Tower, folder: Path, out: Path, reward: str = f"clip:model={MODEL}") -> Seconds:
    """The command; ``tower`` is held, so that its weights are not loaded again."""
    words = ["rank", str(folder), "--reward", reward, "--device", "cpu", "--out", str(out)]
    began = _forgotten(tower)
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(words) == 0
    return _since(began)


def _forgotten(tower: Tower) -> Seconds:
    tower._seen.clear()
    tower._texts.clear()
    return Seconds(time.perf_counter(), time.thread_time())


def _since(began: Seconds) -> Seconds:
    return Seconds(time.perf_counter() - began.clock, time.thread_time() - began.work)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        (folder := Path(place) / "pictures").mkdir()
        write(folder, given.pictures, given.size)
        tower = open_tower(resolve(MODEL))
        tower.image_features([opened(folder / "p00000.png")])
        command(tower, folder, Path(place) / "first", "__main__:nothing")  # imports what the command needs
        times: dict[str, list[Seconds]] = {"the tower": [], "raftdiff rank": [], "without the tower": []}
        for repeat in range(given.repeats):
            out = [Path(place) / f"out{repeat}-{part}" for part in range(2)]
            times["without the tower"].append(command(tower, folder, out[0], "__main__:nothing"))
            times["the tower"].append(alone(tower, folder))
            times["raftdiff rank"].append(command(tower, folder, out[1]))
            print({who: held[-1] for who, held in times.items()}, file=sys.stderr, flush=True)
    for way in Seconds._fields:
        seconds = {who: [getattr(one, way) for one in held] for who, held in times.items()}
        middle = {who: statistics.median(held) for who, held in seconds.items()}
        for who, held in seconds.items():
            told = ", ".join(f"{one:.2f}" for one in held)
            print(f"{way}: {who} {given.pictures / middle[who]:.1f} pictures/s ({told} s)")
        print(f"{way}: ratio {middle['the tower'] / middle['raftdiff rank']:.2f}")
