"""What several rewards on text share: fenced blocks, and packages that are not always there."""

import importlib
import re
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Any

from raftdiff.errors import Need, UserError


def fenced(text: str, languages: Sequence[str]) -> str | None:
    """The content of the first fenced block (``` or ~~~) in one of the ``languages``, or without a language; None where
    there is none. A block that is never closed, as in an answer that was cut off, goes on to the end.

    >>> fenced("Look:\\n```python\\nprint(1)\\n```\\nDone.", ["python"])
    'print(1)\\n'
    """
    lines = text.splitlines(keepends=True)
    fence: str | None = None
    block: list[str] = []
    wanted = False
    for line in lines:
        bare = line.strip()
        if fence is None:
            opening = re.match(r"(`{3,}|~{3,})\s*([^\s`{]*)", bare)
            if opening:
                fence, wanted, block = opening[1], opening[2].lower() in ("", *languages), []
        elif bare.startswith(fence) and not bare.strip(fence[0]):
            if wanted:
                return "".join(block)
            fence = None
        else:
            block.append(line)
    return "".join(block) if fence is not None and wanted else None


def extra_needs(module: str, *, brings: str = "llm") -> Iterator[Need]:
    """The extra ``raftdiff[brings]``, where it is not installed."""
    if find_spec(module) is None:
        yield Need("type", f"it needs {module}: pip install 'raftdiff[{brings}]'.")


def extra(module: str, reward: str, *, brings: str = "llm") -> Any:
    """A module that the extra ``raftdiff[brings]`` brings.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"The reward '{reward}' needs {module.partition('.')[0]} ({error}): pip install 'raftdiff[{brings}]'."
        ) from None
