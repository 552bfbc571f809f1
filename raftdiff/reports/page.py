"""Pages that open without a network: their templates, the pictures in them, and the one way to the disk."""

import base64
import io
from functools import cache
from pathlib import Path

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, Template
from PIL import Image

from raftdiff.measures.pictures import on_paper
from raftdiff.records.disk import write_text, written
from raftdiff.reports.images import data_uri
from raftdiff.reports.words import duration, figure

SMALL = 128
"""Pictures up to this side, in pixels, are kept to the last bit; larger ones are compressed."""
LARGEST = 512
"""Longest side of a picture in a report."""


@cache
def template(package: str, name: str) -> Template:
    """A page of ours, from the folder of a package; what it includes may stand here. Everything that a user typed is
    escaped: captions, names of rewards, title, recipe."""
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package, "."), PackageLoader("raftdiff.reports", ".")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["duration"] = duration
    environment.filters["figure"] = figure
    return environment.get_template(name)


def write_html(path: Path, page: str) -> Path:
    """Write a page and return its path; folders are made, an older page is replaced.

    Raises:
        UserError: the file cannot be written; OSError: the disk is full.
    """
    with written("the report", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, page)
    return path


def picture_uri(image: Image.Image) -> str:
    """The picture itself as text: lossless PNG when small, else WebP of at most ``LARGEST`` pixels a side."""
    if max(image.size) <= SMALL:
        return data_uri(image)
    copy = on_paper(image)
    copy.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    copy.save(file, "WEBP", quality=88)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
