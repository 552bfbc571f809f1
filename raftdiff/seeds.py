"""Seeds are derived from names, never carried as generator state.

A sample's noise depends on its own seed alone, so a resumed, re-batched or multi-process run draws the same pictures.
"""

import hashlib


def fold(*parts: int | str) -> int:
    """A 63-bit seed from a path of names and numbers, e.g. ``fold(seed, round, "sample", prompt.id, index)``.

    >>> fold(0, "sample") == fold(0, "sample"), fold(0, "sample") == fold(1, "sample")
    (True, False)
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
