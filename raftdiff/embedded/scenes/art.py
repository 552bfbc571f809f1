"""The art of the picture world: where it comes from, under which licence, and how it is rendered.

Nothing here is needed to use the embedded models; it is how their training data was made. `npm pack` fetches four
packages into a cache folder, and every picture is rendered once, with its transparency, so that any ground can be put
behind it. There is more on the sheet than the scenes of today are made of: 120 objects in four styles.
"""

import io
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from raftdiff.errors import UserError

__all__ = ["OBJECTS", "SHEET", "SIDE", "SOURCES", "STYLES", "Source", "art_sheet", "download"]

SIDE = 128
"""Side of the rendered art, in pixels."""
SHEET = "sheet.npz"
"""The file, in a cache folder, that holds all art rendered."""


@dataclass(frozen=True, slots=True)
class Source:
    """One npm package of emoji art."""

    package: str
    """Package and version, as `npm pack` takes it."""
    member: str
    """Path of one picture inside the package; ``{code}`` is the Unicode code point, ``{slug}`` the English name."""
    licence: str
    """Licence of the art, and who holds it."""

    @property
    def tarball(self) -> str:
        """The file name that `npm pack` gives the package."""
        name, _, version = self.package.rpartition("@")
        return f"{name.lstrip('@').replace('/', '-')}-{version}.tgz"


SOURCES: dict[str, Source] = {
    "3d render": Source("@lobehub/fluent-emoji-3d@1.1.0", "assets/{code}.webp", "MIT, Microsoft Corporation"),
    "cartoon": Source("emoji-datasource-google@16.0.0", "img/google/64/{code}.png", "Apache-2.0, Google (Noto Emoji)"),
    "flat icon": Source("@twemoji/svg@15.0.0", "{code}.svg", "CC BY 4.0, Twitter, Inc. and other contributors"),
    "line sketch": Source("fluentui-emoji@1.3.0", "icons/high-contrast/{slug}.svg", "MIT, Microsoft Corporation"),
}

STYLES: tuple[str, ...] = tuple(SOURCES)

# object: code point, and name in Microsoft's files; a sheet that was rendered holds them in this order
_TABLE = """
cat: 1f431 cat-face; dog: 1f436 dog-face; monkey: 1f435 monkey-face; fox: 1f98a fox; lion: 1f981 lion;
tiger: 1f42f tiger-face; cow: 1f42e cow-face; pig: 1f437 pig-face; mouse: 1f42d mouse-face; rabbit: 1f430 rabbit-face;
panda: 1f43c panda; frog: 1f438 frog; elephant: 1f418 elephant; penguin: 1f427 penguin; owl: 1f989 owl;
turtle: 1f422 turtle; snake: 1f40d snake; whale: 1f433 spouting-whale; dolphin: 1f42c dolphin; octopus: 1f419 octopus;
crab: 1f980 crab; snail: 1f40c snail; butterfly: 1f98b butterfly; bee: 1f41d honeybee; ladybug: 1f41e lady-beetle;
unicorn: 1f984 unicorn; flamingo: 1f9a9 flamingo; dinosaur: 1f995 sauropod; rose: 1f339 rose;
sunflower: 1f33b sunflower; tulip: 1f337 tulip; cactus: 1f335 cactus; palm tree: 1f334 palm-tree;
pine tree: 1f332 evergreen-tree; maple leaf: 1f341 maple-leaf; mushroom: 1f344 mushroom; apple: 1f34e red-apple;
banana: 1f34c banana; watermelon: 1f349 watermelon; lemon: 1f34b lemon; pineapple: 1f34d pineapple;
cherry: 1f352 cherries; strawberry: 1f353 strawberry; pear: 1f350 pear; carrot: 1f955 carrot; avocado: 1f951 avocado;
eggplant: 1f346 eggplant; croissant: 1f950 croissant; pretzel: 1f968 pretzel; pizza: 1f355 pizza;
hamburger: 1f354 hamburger; hot dog: 1f32d hot-dog; doughnut: 1f369 doughnut; cake: 1f382 birthday-cake;
lollipop: 1f36d lollipop; ice cream: 1f368 ice-cream; beer: 1f37a beer-mug; coffee: 2615 hot-beverage;
cheese wedge: 1f9c0 cheese-wedge; house: 1f3e0 house; castle: 1f3f0 castle; tent: 26fa tent; volcano: 1f30b volcano;
bus: 1f68c bus; taxi: 1f695 taxi; airplane: 2708 airplane; helicopter: 1f681 helicopter; rocket: 1f680 rocket;
flying saucer: 1f6f8 flying-saucer; sailboat: 26f5 sailboat; anchor: 2693 anchor; hourglass: 231b hourglass-done;
watch: 231a watch; moon: 1f319 crescent-moon; sun: 2600 sun; star: 2b50 star; cloud: 2601 cloud;
rainbow: 1f308 rainbow; umbrella: 2602 umbrella; lightning bolt: 26a1 high-voltage; snowflake: 2744 snowflake;
snowman: 2603 snowman; flame: 1f525 fire; ringed planet: 1fa90 ringed-planet; christmas tree: 1f384 christmas-tree;
balloon: 1f388 balloon; gift: 1f381 wrapped-gift; trophy: 1f3c6 trophy; soccer ball: 26bd soccer-ball;
basketball: 1f3c0 basketball; tennis ball: 1f3be tennis; bullseye: 1f3af bullseye; kite: 1fa81 kite;
puzzle piece: 1f9e9 puzzle-piece; teddy bear: 1f9f8 teddy-bear; heart: 2665 heart-suit; spade: 2660 spade-suit;
pumpkin: 1f383 jack-o-lantern; shirt: 1f455 t-shirt; backpack: 1f392 backpack; crown: 1f451 crown;
top hat: 1f3a9 top-hat; gem: 1f48e gem-stone; bell: 1f514 bell; musical note: 1f3b5 musical-note;
guitar: 1f3b8 guitar; drum: 1f941 drum; laptop: 1f4bb laptop; camera: 1f4f7 camera; candle: 1f56f candle;
light bulb: 1f4a1 light-bulb; book: 1f4d5 closed-book; envelope: 2709 envelope; pencil: 270f pencil;
padlock: 1f512 locked; key: 1f511 key; hammer: 1f528 hammer; magnet: 1f9f2 magnet; gear: 2699 gear; bomb: 1f4a3 bomb
"""


def _entries() -> dict[str, tuple[str, str]]:
    """Object -> (code point, slug)."""
    rows = (entry.split(":") for entry in _TABLE.replace("\n", " ").split(";"))
    return {name.strip(): (codes.split()[0], codes.split()[1]) for name, codes in rows}


OBJECTS: tuple[str, ...] = tuple(_entries())


def download(cache: Path) -> None:
    """Fetch the packages that `cache` lacks, with `npm pack`, which uses the registry that npm is configured for."""
    cache.mkdir(parents=True, exist_ok=True)
    for source in SOURCES.values():
        if not (cache / source.tarball).exists():
            subprocess.run(["npm", "pack", source.package], cwd=cache, check=True, capture_output=True)


def art_sheet(cache: Path) -> npt.NDArray[np.uint8]:
    """All art as uint8 RGBA, shape (objects, styles, SIDE, SIDE, 4), in the order of `OBJECTS` and `STYLES`.

    Rendered once and kept in `cache` as ``sheet.npz``, about 5 MB.
    """
    kept = cache / SHEET
    if kept.exists():
        with np.load(kept) as file:
            sheet: npt.NDArray[np.uint8] = file["sheet"]
        if sheet.shape == (len(OBJECTS), len(STYLES), SIDE, SIDE, 4):
            return sheet
    download(cache)
    columns = [_render_style(cache / SOURCES[style].tarball, SOURCES[style].member) for style in STYLES]
    sheet = np.stack(columns, axis=1)
    np.savez_compressed(kept, sheet=sheet)
    return sheet


def _render_style(tarball: Path, member: str) -> npt.NDArray[np.uint8]:
    """The art of one style, shape (objects, SIDE, SIDE, 4)."""
    entries = _entries()
    with tarfile.open(tarball) as archive:
        names = set(archive.getnames())
        pictures = []
        for name in OBJECTS:
            code, slug = entries[name]
            paths = [f"package/{member.format(code=code + suffix, slug=slug)}" for suffix in ("", "-fe0f")]
            found = next((path for path in paths if path in names), None)
            if found is None:
                raise UserError(f"The package {tarball.name} holds no picture of '{name}' (looked for {paths[0]}).")
            stream = archive.extractfile(found)
            assert stream is not None, "a regular file of the archive has content"
            pictures.append(_rasterise(stream.read(), svg=found.endswith(".svg")))
    return np.stack(pictures)


def _rasterise(content: bytes, *, svg: bool) -> npt.NDArray[np.uint8]:
    """A picture file as uint8 RGBA, shape (SIDE, SIDE, 4)."""
    if svg:
        import resvg_py

        content = bytes(resvg_py.svg_to_bytes(svg_string=content.decode(), width=SIDE, height=SIDE))
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGBA").resize((SIDE, SIDE), Image.Resampling.LANCZOS))
