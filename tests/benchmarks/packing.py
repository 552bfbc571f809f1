"""What a picture costs as a PNG file, by Pillow and by ours: processor time to pack and to read it, and its size.

    python tests/benchmarks/packing.py                       # noise that is spread over scales as in photographs
    python tests/benchmarks/packing.py RUN/rounds/000/samples/*.png

Both pack and read each picture in turn; medians over the repeats, in milliseconds of processor time.
"""

import argparse
import io
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from raftdiff.measures.pictures import whole
from raftdiff.records.media import png

SIDES = (96, 256, 512, 1024)


def like_a_photograph(side: int) -> Image.Image:
    """Amplitude falls as 1 / frequency^1.2 in each channel, with grain of 1.5 of 255 over all."""
    random = np.random.default_rng(side)
    squared = np.fft.fftfreq(side)[:, None] ** 2 + np.fft.rfftfreq(side)[None] ** 2
    squared[0, 0] = 1
    waves = random.normal(size=(3, *squared.shape)) + 1j * random.normal(size=(3, *squared.shape))
    channels = np.fft.irfft2(waves / squared**0.6, s=(side, side))
    channels *= 50 / channels.std(axis=(1, 2), keepdims=True)
    pixels = channels.transpose(1, 2, 0) + 128 + random.normal(size=(side, side, 1)) * 1.5
    return Image.fromarray(pixels.clip(0, 255).round().astype(np.uint8))


def by_pillow(image: Image.Image) -> bytes:
    image.save(file := io.BytesIO(), "png", compress_level=1)
    return file.getvalue()


def timed(call: Callable[..., Any], items: Sequence[Any]) -> tuple[float, list[Any]]:
    """Milliseconds an item, and what came of each."""
    began = time.process_time()
    found = [call(item) for item in items]
    return 1000 * (time.process_time() - began) / len(items), found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pictures", nargs="*", type=Path)
    parser.add_argument("--repeats", type=int, default=9)
    given = parser.parse_args()
    own = {"these": [whole(path) for path in given.pictures]} if given.pictures else {}
    print("| pictures | by | packed in ms | read in ms | kB |\n|---|---|--:|--:|--:|")
    for name, images in (own or {f"{side} px": [like_a_photograph(side)] for side in SIDES}).items():
        seen: dict[str, list[tuple[float, float, float]]] = {"Pillow": [], "ours": []}
        for _ in range(given.repeats):
            for by, pack in (("Pillow", by_pillow), ("ours", png)):
                packing, files = timed(pack, images)
                reading, read = timed(whole, files)
                assert all(one.tobytes() == other.tobytes() for one, other in zip(images, read, strict=True))
                seen[by].append((packing, reading, sum(map(len, files)) / len(files) / 1000))
        for by, rows in seen.items():
            packing, reading, size = (statistics.median(column) for column in zip(*rows, strict=True))
            print(f"| {name} | {by} | {packing:.2f} | {reading:.2f} | {size:.1f} |")


if __name__ == "__main__":
    main()
