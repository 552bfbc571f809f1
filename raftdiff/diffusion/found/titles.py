"""Which prompt a picture that one already has is of: its own caption's, or one of a file's."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn, final

from raftdiff.diffusion.sampling.pictures import Found
from raftdiff.errors import UserError, counted
from raftdiff.recipes.prompts import made_ids
from raftdiff.types import Prompt


class NoCaptionError(UserError):
    """A reward asked for the caption of a picture whose caption nobody knows."""


@final
class Untitled(Prompt):
    """The prompt of pictures of which no caption is known: whoever reads it is told so."""

    __slots__ = ()

    def __deepcopy__(self, memo: object) -> "Untitled":
        return self

    def __init__(self) -> None:
        for name, value in {"id": "untitled", "sampling": "", "learning": "", "negative": "", "meta": {}}.items():
            object.__setattr__(self, name, value)

    @property
    def caption(self) -> NoReturn:
        raise NoCaptionError("no caption is known of this picture")


def titled(found: Sequence[Found], given: Sequence[Prompt] = ()) -> tuple[list[tuple[Found, Prompt]], list[str]]:
    """Each picture with its prompt; and the pictures that are left out, a sentence each.

    Prompts that are ``given`` come before what is known of the pictures: one alone holds for all of them, of several
    the one with the picture's id or caption, or whose id is its file's name, by choice with a number behind. A picture
    that is of none of them is left out, whatever its caption.

    Raises:
        UserError: some prompts are given, and no picture is of one.
    """
    if len(given) == 1:
        return [(one, given[0]) for one in found], []
    by_id, by_caption = {it.id: it for it in given}, {it.caption: it for it in given}
    matched = [
        next((by_id[name] for name in _names(one) if name in by_id), by_caption.get(one.caption)) for one in found
    ]
    if given and not any(matched):
        raise UserError(
            f"--prompts: not one of {counted(len(found), 'picture')} is of one of these {len(given)} prompts, such as "
            f"'{given[0].id}'. A picture is named after its prompt's id, such as {given[0].id}-000.png, or has its "
            "caption in metadata.jsonl or in a .txt file beside it."
        )
    if given:
        held = [(one, prompt) for one, prompt in zip(found, matched, strict=True) if prompt is not None]
        strange = [one for one, prompt in zip(found, matched, strict=True) if prompt is None]
        return held, [f"{one.where}: this picture is of none of the prompts." for one in strange]
    own = _own([one for one in found if one.caption])
    return [(one, own.get(_key(one)) or UNTITLED) for one in found], []


def retitled(pictures: Sequence[tuple[Found, Prompt]]) -> str:
    """Of how many pictures the caption that they have is not the one of their prompt, with one of them; nothing where
    it is of all."""
    other = [(one, prompt) for one, prompt in pictures if one.caption and one.caption != prompt.caption]
    if not other:
        return ""
    (one, prompt), count = other[0], f"{len(other)} of {counted(len(pictures), 'picture')}"
    return f"{count} with a caption of their own are scored by another: {one.where} by '{prompt.caption}'"


UNTITLED = Untitled()


def untitled(prompt: Prompt) -> bool:
    """Whether it is that of pictures of which no caption is known."""
    return prompt is UNTITLED


def _names(one: Found) -> list[str]:
    """Ids that the picture's prompt may have."""
    stem = one.picture.stem.replace("~", "") if isinstance(one.picture, Path) else ""
    return [name for name in (one.id, stem, re.sub(r"[-_]\d+$", "", stem)) if name]


def _own(found: Sequence[Found]) -> dict[str, Prompt]:
    """The prompts that pictures bring themselves, each once."""
    first = {_key(one): one for one in found}
    twice = Counter(str(one.id).lower() for one in first.values())
    given = [one.id if twice[str(one.id).lower()] == 1 else None for one in first.values()]
    ids = made_ids(given, [one.caption for one in first.values()])
    return {
        key: Prompt(name, one.caption, one.caption, one.caption, meta=one.meta)
        for name, (key, one) in zip(ids, first.items(), strict=True)
    }


def _key(one: Found) -> str:
    return json.dumps([one.id, one.caption, dict(one.meta)], sort_keys=True, default=str)
