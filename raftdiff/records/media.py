"""The two media on disk: a picture is a file beside its line of metadata, a text stands in the line itself."""

import io
import json
import re
import struct
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from math import isnan, nan
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from PIL import Image

from raftdiff.errors import UserError
from raftdiff.measures.pictures import whole
from raftdiff.records.disk import append, damaged, fresh, naming, read_appended, read_json_lines, write_text
from raftdiff.types import Preview, Sample

Medium: TypeAlias = Image.Image | str
TensorFile: TypeAlias = Literal["latents", "tokens"]
TENSOR_FILES: tuple[TensorFile, ...] = ("latents", "tokens")
MEAN_FILTER = 3
APART = "~"
"""Follows a split's word in a picture's name. No prompt id holds it, so the id is read back from the name."""
ROW = {"prompt_id": str, "index": int, "caption": str, "sampling": str, "learning": str, "negative": str, "seed": int}
"""What each line of metadata.jsonl holds at least, beside the source and the text or the picture's name."""
LARGEST_INDEX = 10**6
PREVIEWS: Final = "previews.jsonl"
"""Of a round whose sampler prunes: what was seen of each candidate before it was drawn, and whether it was."""
_SPLIT = re.compile(
    r"(?:(?<=[-._ 0-9])|^)(train|training|validation|valid|val|dev|test|testing|eval|evaluation)(?=[-._ 0-9])", re.I
)
"""What ``datasets`` takes for the name of a split: pictures beside one that has it in its name are left out there, and
all of their metadata with them."""


def store(folder: Path, sample: Sample[Any]) -> dict[str, str]:
    """Put a sample's media into ``folder``; returns what its line of metadata says of it."""
    if isinstance(sample.media, str):
        return {"text": sample.media}
    name = file_name(sample)
    with naming(folder / name):
        fresh(folder / name).write_bytes(png(sample.media))
    return {"file_name": name}


def png(image: Image.Image) -> bytes:
    """A picture as a PNG file, to the bit. RGB is filtered by the mean of the byte to the left and the one above
    (filter 3 of ISO/IEC 15948), and of that only runs are packed: a third of the time of Pillow, which tries five
    filters for each row, and no larger. Pillow writes other modes, and what is said beside pixels, as by a colour
    profile."""
    if image.mode != "RGB" or image.info:
        image.save(file := io.BytesIO(), "png", compress_level=1)
        return file.getvalue()
    width, height = image.size
    rows = np.asarray(image).reshape(height, 3 * width)
    left, above = np.zeros_like(rows), np.zeros_like(rows)
    left[:, 3:], above[1:] = rows[:, :-3], rows[:-1]
    filtered = np.full((height, 1 + 3 * width), MEAN_FILTER, dtype=np.uint8)
    filtered[:, 1:] = rows - ((left & above) + ((left ^ above) >> 1))  # their mean, without a ninth bit
    packer = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_RLE)
    packed = packer.compress(filtered.data) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + _chunk(b"IDAT", packed) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def opened(folder: Path, row: Mapping[str, Any]) -> Any:
    """The media that a line of metadata speaks of.

    Raises:
        UserError: the file is no whole picture, as after a power loss.
    """
    if "text" in row:
        return row["text"]
    path = folder / row["file_name"]
    try:
        return whole(path)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(
            f"{path}: this picture is damaged ({error}). In an unfinished round 'raftdiff sample' draws it again; "
            "one of a finished round is to be taken from a copy."
        ) from None


def described(sample: Sample[Any]) -> dict[str, Any]:
    """What the line of metadata says of a sample beside its media."""
    prompt = sample.prompt
    return {
        "prompt_id": prompt.id,
        "index": sample.index,
        "caption": prompt.caption,
        "sampling": prompt.sampling,
        "learning": prompt.learning,
        "negative": prompt.negative,
        "seed": sample.seed,
        "source": sample.source,
        **({"cut": True} if sample.cut else {}),
        **({"meta": dict(prompt.meta)} if prompt.meta else {}),
    }


def line(row: Mapping[str, Any]) -> str:
    """A line of metadata.jsonl. Prompt files bring what they like, a number here and a text there: ``meta`` is JSON
    within a text, or the table would have no type that Arrow and Parquet can hold."""
    told = {"meta": json.dumps(row["meta"], ensure_ascii=False)} if "meta" in row else {}
    return json.dumps({**row, **told}) + "\n"


def lines(file: Path) -> list[dict[str, Any]]:
    """What ``line`` wrote, each ``meta`` a mapping again; a torn last line is dropped.

    Raises:
        UserError: a line is not one of a sample.
    """
    try:
        rows = [_read(row) for row in read_appended(file)]
    except ValueError as error:
        raise damaged(file, f"meta: {error}") from None
    for row in rows:
        if any(not isinstance(row.get(name), kind) for name, kind in ROW.items()):
            raise damaged(file, f"a line without {', '.join(ROW)}: {str(row)[:80]}")
        named = names(row.get("file_name"), row["prompt_id"], row["index"])
        if not 0 <= row["index"] <= LARGEST_INDEX or not ("text" in row or named):
            raise damaged(file, f"a line that is of no sample: {str(row)[:80]}")
    return rows


def _read(row: dict[str, Any]) -> dict[str, Any]:
    """Earlier versions wrote ``meta`` as an object."""
    return {**row, "meta": json.loads(row["meta"])} if isinstance(row.get("meta"), str) else row


def is_whole(folder: Path, row: Mapping[str, Any]) -> bool:
    """Whether the media is there, all of it."""
    if "text" in row:
        return True
    try:
        whole(folder / row["file_name"])
    except OSError:
        return False
    return True


def keep(folder: Path, samples: Sequence[Sample[Any]]) -> None:
    """Samples that are only looked at: pictures under their names, texts as JSON lines."""
    folder.mkdir(exist_ok=True)
    rows = [{"prompt": sample.prompt.caption, **store(folder, sample)} for sample in samples]
    texts = [row for row in rows if "text" in row]
    if texts:
        write_text(folder / "texts.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in texts))


def kept(folder: Path) -> dict[str, Path | str]:
    """What ``keep`` left: where the pictures are, by file name, and the texts, by prompt; of several to one prompt the
    later ones are numbered.

    Raises:
        UserError: a line is none of a text.
    """
    pictures: dict[str, Path | str] = {path.name: path for path in sorted(folder.glob("*.png"))}
    told, texts = Counter[str](), {}
    for row in read_json_lines(file := folder / "texts.jsonl"):
        if not isinstance(row.get("prompt"), str) or not isinstance(row.get("text"), str):
            raise damaged(file, f"a line without prompt and text: {str(row)[:80]}")
        told[row["prompt"]] += 1
        number = told[row["prompt"]]
        texts[f"{row['prompt']} ({number})" if number > 1 else row["prompt"]] = row["text"]
    return pictures | texts


def note_previews(folder: Path, seen: Sequence[Preview]) -> None:
    """Add what was seen of candidates before they were drawn to those of a round in ``folder``."""
    rows = [one._asdict() | {"total": None if isnan(one.total) else one.total} for one in seen]
    if rows:
        append(folder / PREVIEWS, [json.dumps(row) + "\n" for row in rows])


def previews(folder: Path) -> list[Preview]:
    """Those of a round, by step; what was seen twice, as after a kill, counts once.

    Raises:
        UserError: a line is of no preview.
    """
    rows = read_appended(folder / PREVIEWS)
    try:
        seen = [Preview(**{**row, "total": nan if row["total"] is None else float(row["total"])}) for row in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(folder / PREVIEWS, f"a line that is of no preview: {error}") from None
    return sorted({(one.step, one.prompt, one.index): one for one in seen}.values(), key=lambda one: one.step)


def tensor_file(sample: Sample[Any]) -> TensorFile:
    """What the file of a sample's tensors is called: latents of pictures, tokens of texts."""
    return "tokens" if isinstance(sample.media, str) else "latents"


def file_name(sample: Sample[Any]) -> str:
    """``airplane-003.png``; prompt ids are checked when they are read, so that this stays inside the folder.

    A word that names a split is set apart: ``a-train~-in-the-snow-003.png``.
    """
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", sample.prompt.id):
        raise UserError(f"The prompt id '{sample.prompt.id}' cannot name a file; use letters, digits, '.', '_', '-'.")
    return apart(f"{sample.prompt.id}-{sample.index:03d}.png")


def apart(name: str) -> str:
    """A picture's file name with the words that name a split set apart.

    >>> apart("0001-a-train-in-the-snow.png")
    '0001-a-train~-in-the-snow.png'
    """
    return _SPLIT.sub(rf"\1{APART}", name)


def names(file: object, prompt_id: str, index: int) -> bool:
    """Whether a picture's name is that of a sample, and so of no other one and of nothing elsewhere. Earlier versions
    set no words apart.

    >>> names("a-train~-003.png", "a-train", 3), names("../a-train-003.png", "a-train", 3)
    (True, False)
    """
    return isinstance(file, str) and file.replace(APART, "") == f"{prompt_id}-{index:03d}.png"


def plain_name(file: object) -> bool:
    """Of a file in the folder itself, not of one elsewhere."""
    return isinstance(file, str) and file == Path(file).name and file not in ("", "..")


def prompt_of(name: str) -> str:
    """The prompt id within the name of a picture or a text.

    >>> prompt_of("rounds/000/samples/a-train~-001.png"), prompt_of("eval/after/llama-3.1-001")
    ('a-train', 'llama-3.1')
    """
    return name.rpartition("/")[2].rpartition("-")[0].replace(APART, "")
