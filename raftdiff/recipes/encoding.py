"""Bytes that people saved as text, with a sentence for those that are no UTF-8."""

from raftdiff.errors import UserError

MARKS = (
    (b"\xff\xfe\0\0", "UTF-32"),
    (b"\0\0\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)
"""Byte order marks, the longer ones first."""


def decode(data: bytes, name: object) -> str:
    """The text of a file called ``name``, without its byte order mark.

    Raises:
        UserError: it is no UTF-8; with the encoding where a mark or zero bytes tell it, else with the line and how
            Windows would read it.
    """
    wide = next((kind for mark, kind in MARKS if data.startswith(mark)), "UTF-16" if b"\0" in data else "")
    if wide:
        raise UserError(f"{name}: this file is {wide}, or no text at all; save it as UTF-8.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        start, end = data.rfind(b"\n", 0, error.start) + 1, data.find(b"\n", error.start)
        line = data[start : end if end >= 0 else len(data)].decode("cp1252", errors="replace").strip()
        number = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{name}:{number}: this line is not UTF-8 (in Windows' encoding, cp1252, it reads {line[:60]!r}); "
            "save the file as UTF-8."
        ) from None
