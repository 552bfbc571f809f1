"""What the pages share: their look, and how mistakes are told."""

import atexit
import html
import importlib
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from functools import cache, wraps
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, ParamSpec, TypeVar

from PIL.Image import Image

from raftdiff.errors import UserError
from raftdiff.reports.page import picture_uri, template

Given = ParamSpec("Given")
Made = TypeVar("Made")
PRIVATE: Mapping[str, Any] = {"api_visibility": "private"}
"""No page offers its handlers as an API."""
BRIEFLY: Mapping[str, Any] = {**PRIVATE, "show_progress": "hidden"}
"""A handler that somebody waits for, though not long enough for a bar. What it refuses is shown as a sentence."""
QUIETLY: Mapping[str, Any] = {**BRIEFLY, "queue": False}
"""A handler that nobody asked for, such as a timer's: one request, and no connection that stays open. Gradio shows
nothing of what it refuses, so it says that itself."""


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
    return gradio().Blocks(title=title, analytics_enabled=False, fill_width=True, delete_cache=(3600, 3600))


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


def told(handler: Callable[Given, Made]) -> Callable[Given, Made]:
    """A handler whose mistakes appear on the page as sentences, and whatever a user typed in them as text."""

    @wraps(handler)
    def wrapped(*args: Given.args, **kwargs: Given.kwargs) -> Made:
        try:
            return handler(*args, **kwargs)
        except UserError as error:
            raise gradio().Error(html.escape(str(error)), print_exception=False) from None
        except FileNotFoundError as error:
            sentence = f"{error.filename}: this file is gone. Was the run moved or deleted? Reload the page."
            raise gradio().Error(html.escape(sentence), print_exception=False) from None

    return wrapped


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
