"""Painted scenes of captions as a folder of pictures: right in all that is said, and free in the rest.

    python tests/benchmarks/painted.py --art build/art --out painted
    raftdiff train scene_align prompts.file=painted/captions.txt "sampler={type: folder, path: painted}" ...

The captions are the 64 of ``scene_align``, first, and 192 more of such kinds, which ``scene-sd`` never saw, none of
them among those that ``scene_align`` is evaluated on. ``--art`` is where ``npm pack`` puts the art. The whole commands
are in docs/results.md ("What limits it").
"""

import argparse
import json
from pathlib import Path

from raftdiff.embedded.scenes.art import art_sheet
from raftdiff.embedded.scenes.data import Painter
from raftdiff.embedded.scenes.measure import to_images
from raftdiff.embedded.scenes.rows import to_rows
from raftdiff.embedded.scenes.world import Scene, draw, parse
from raftdiff.recipes.prompts import read_captions

PROMPTS = Path(__file__).parents[2] / "configs" / "prompts"
PICTURES, MORE, DRAWN, SEED = 8, 192, 400, 77


def captions() -> list[str]:
    """Those of the recipe, and more of such kinds."""
    own, held_out = (
        [str(one) for one in read_captions(PROMPTS / f"scene_align{name}.txt")] for name in ("", "_held_out")
    )
    drawn = dict.fromkeys(scene.caption for scene in draw(DRAWN, seed=SEED, held_out=True))
    return own + [one for one in drawn if one not in own and one not in held_out][:MORE]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--art", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    asked = captions()
    (given.out / "captions.txt").write_text("\n".join(asked) + "\n")
    scenes = [scene for scene in map(_parsed, asked) for _ in range(PICTURES)]
    pictures = to_images(Painter(art_sheet(given.art), seed=123).paint(to_rows(scenes)).pictures)
    rows = []
    for place, (scene, picture) in enumerate(zip(scenes, pictures, strict=True)):
        picture.save(given.out / f"{place:05d}.png")
        rows.append({"file_name": f"{place:05d}.png", "caption": scene.caption})
    (given.out / "metadata.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def _parsed(caption: str) -> Scene:
    scene = parse(caption)
    assert scene is not None, caption
    return scene


if __name__ == "__main__":
    main()
