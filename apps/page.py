"""What the pages share: their look, and how mistakes are told."""

import atexit
import importlib
import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from functools import cache, wraps
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, ParamSpec, TypeVar

from PIL.Image import Image

from raftdiff.errors import UserError
from raftdiff.reports.page import picture_uri, template

Given = ParamSpec("Given")
Made = TypeVar("Made")
ANY = 2.0**53
"""No number of a window is larger: beyond it a browser counts in twos."""
ASKED: Mapping[str, Any] = {
    "queue": False,
    "preprocess": False,
    "show_progress": "hidden",
    "api_visibility": "private",
}
"""How every handler is called: by one request, whose answer is the handler's.

Not through Gradio's queue, which answers by a connection of its own and closes that one when nothing is due: whoever
presses in this moment is never answered. Gradio shows nothing of what a handler outside its queue refuses, hence
``told``; and what arrives is JSON of any kind, so handlers read it with ``words`` and ``number``."""


class Shown(NamedTuple):
    """What stands in the place of a picture or an answer."""

    uri: str
    """Empty where there is no picture to show."""
    text: str
    """An answer, or why a picture is not shown."""
    shape: str = "1 / 1"
    """Of the picture, width / height."""


@cache
def gradio() -> ModuleType:
    """The library of the pages, with a folder for its files that is this process's own.

    Raises:
        UserError: it is not installed, or does not load.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(scratch())  # the one that it would share may be somebody else's
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        if (path := os.environ.get(name)) and not Path(path).exists():
            raise UserError(f"{name} names {path}, which is not there. Name the certificates' place, or: unset {name}")
    try:
        return importlib.import_module("gradio")
    except ModuleNotFoundError as error:
        if error.name == "gradio":
            raise UserError("The pages need Gradio. Install it with: pip install 'raftdiff[apps]'") from None
        raise UserError(f"Gradio does not load ({error}). Mend it with: pip install 'raftdiff[apps]'") from None
    except (ImportError, OSError, ValueError) as error:
        raise UserError(f"Gradio does not load: {error}") from None


@cache
def scratch() -> Path:
    """A folder that lives as long as the process.

    Raises:
        UserError: no temporary folder can be written to.
    """
    try:
        folder = Path(tempfile.mkdtemp(prefix="raftdiff-"))
    except OSError as error:
        raise UserError(f"The pages need a folder for temporary files; name one with TMPDIR ({error}).") from None
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def blocks(title: str) -> Any:
    """An empty page. Nothing is reported to anybody.

    Raises:
        UserError: Gradio is not installed, or does not load.
    """
    made = gradio().Blocks(title=title, analytics_enabled=False, fill_width=True, delete_cache=(3600, 3600))
    made.preprocess_data = _plain(made.preprocess_data)
    made.has_launched = True  # else Gradio lets a request name any file, as it does for code that runs without a page
    return made


def _plain(read: Callable[..., Awaitable[Made]]) -> Callable[..., Awaitable[Made]]:
    """Gradio's reading of a request. Texts, numbers and yes or no are all that a window of a page sends: an object may
    name a file, which Gradio would then copy to where it is served from. Anything else is refused, without a traceback.
    """

    async def wrapped(handler: Any, inputs: list[Any], *args: Any, **kwargs: Any) -> Made:
        given, wanted = len(inputs), len(handler.inputs)
        if given != wanted:
            sentence = f"No window of this page asks like this: with {given} values instead of {wanted}."
        elif not all(value is None or isinstance(value, str | float | int) for value in inputs):
            sentence = "No window of this page asks like this: with lists or objects."
        elif handler.fn is None:
            sentence = "No window of this page asks for this."
        else:
            return await read(handler, inputs, *args, **kwargs)
        raise gradio().Error(sentence, print_exception=False)

    return wrapped


def theme() -> Any:
    """Gradio's plainest, in the colours of the report and in the reader's own fonts: nothing is fetched."""
    fonts = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif"]
    mono = ["ui-monospace", "Menlo", "Consolas", "monospace"]
    base = gradio().themes.Base(primary_hue="teal", neutral_hue="stone", font=fonts, font_mono=mono)
    return base.set(body_background_fill="#fbfaf7", body_background_fill_dark="#171614")


@cache
def css() -> str:
    return (Path(__file__).parent / "page.css").read_text(encoding="utf-8")


@cache
def head() -> str:
    """Keyboard shortcuts, and the sliders."""
    script = (Path(__file__).parent / "page.js").read_text(encoding="utf-8")
    return f"<script>{script}</script>"


def mistake() -> Any:
    """The place of a page where the sentence of ``told`` appears, and stays until something is done."""
    return gradio().HTML(elem_id="mistake")


def told(handler: Callable[Given, Any], *, outputs: int = 1, clears: bool = True) -> Callable[Given, list[Any]]:
    """A handler that gives one value more than its own ``outputs``: for ``mistake``, what went wrong, or nothing.

    One that nobody asked for does not clear the sentence of another.
    """

    @wraps(handler)
    def wrapped(*args: Given.args, **kwargs: Given.kwargs) -> list[Any]:
        skip = gradio().skip()
        try:
            made = handler(*args, **kwargs)
        except UserError as error:
            sentence = str(error)
        except FileNotFoundError as error:
            sentence = f"{error.filename}: this file is gone. Was the run moved or deleted? Reload the page."
        else:
            return [*(made if isinstance(made, list) else [made]), "" if clears else skip]
        return [*[skip] * outputs, view("gone", sentence=sentence)]

    return wrapped


def words(value: Any) -> str:
    """A text as it came from a window.

    Raises:
        UserError: it is none.
    """
    if value is None or isinstance(value, str):
        return value or ""
    raise UserError(f"Here a text belongs, not {str(value)[:40]}.")


def number(value: Any, name: str, lowest: float | int = 0, highest: float | int = ANY) -> float | int:
    """A number as it came from a window.

    Raises:
        UserError: it is none, or out of bounds.
    """
    if value is None or value == "":
        raise UserError(f"{name} is empty; give it a number.")
    if isinstance(value, bool) or not isinstance(value, float | int):
        raise UserError(f"{name}: {str(value)[:40]} is no number.")
    if not lowest <= value <= highest:  # which NaN is not either
        bounds = f"from {lowest:g} to {highest:g}" if highest < ANY else f"from {lowest:g} on"
        raise UserError(f"{name}: {value} is no number {bounds}.")
    return value


def visited(handler: Callable[..., Made]) -> Callable[..., Made]:
    """A handler that is given first who calls: the name of the visitor's window, which no other window can guess."""

    def wrapped(request: Any, *values: Any) -> Made:
        return handler(str(request.session_hash), *values)

    wrapped.__annotations__["request"] = gradio().Request  # by which Gradio knows what to give
    return wrapped


def view(name: str, **fields: Any) -> str:
    """One of the views in ``views.html.jinja``, as HTML. All text is escaped, and so is what Gradio's own templates
    would take for a placeholder."""
    views = template("raftdiff.apps", "views.html.jinja").module
    made = str(getattr(views, name)(**fields))
    return made.replace("{", "&#123;").replace("}", "&#125;").replace("$", "&#36;")


def uri(image: Image) -> str:
    """The picture itself as text, so that no path is served."""
    return picture_uri(image)


def picture(path: Path) -> Shown:
    """A picture of the run, or a word on why it cannot be shown."""
    from PIL import Image as pil  # noqa: N813

    try:
        with pil.open(path) as opened:
            opened.load()
            return Shown(picture_uri(opened), "", f"{opened.width} / {opened.height}")
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError, ValueError, pil.DecompressionBombError):  # as Pillow tells what was cut short
        return Shown("", f"{path.name}: this picture cannot be read; was it cut short?")
