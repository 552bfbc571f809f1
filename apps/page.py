"""What the pages share: their look, how mistakes are told, and how they are served."""

import html
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, final

from PIL.Image import Image

from raftdiff.errors import UserError
from raftdiff.reports.page import picture_uri, template

Given = ParamSpec("Given")
Made = TypeVar("Made")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
PRIVATE: Mapping[str, Any] = {"api_visibility": "private"}
"""No page offers its handlers as an API."""
QUIETLY: Mapping[str, Any] = {**PRIVATE, "show_progress": "hidden"}
"""A handler that is done before anybody would look for a bar."""
VISITORS = 64
"""How many may wait in line at most; the next is told so."""


@final
@dataclass(frozen=True, slots=True)
class Door:
    """Who may come in. By default this machine alone."""

    host: str = "127.0.0.1"
    port: int | None = None
    """None takes the first free one from 7860."""
    share: bool = False
    """A public address through Gradio's servers, for three days at most."""
    user: str | None = None
    """NAME:PASSWORD that visitors must give."""
    browser: bool = True
    """Open a browser window, where there is one to open."""

    def login(self) -> tuple[str, str] | None:
        """
        Raises:
            UserError: no colon in it, or one of the two is empty.
        """
        if self.user is None:
            return None
        name, _, password = self.user.partition(":")
        if not name or not password:
            raise UserError("--auth: write NAME:PASSWORD, for example --auth ada:correct-horse.")
        return name, password

    def warning(self) -> str | None:
        """A word to whoever opens the door further than this machine."""
        if not self.share and self.host in LOOPBACK:
            return None
        who = "anybody on the internet who has the address" if self.share else "anybody on your network"
        lock = "knows the password" if self.user else "comes by; set one with --auth NAME:PASSWORD"
        return f"warning: this page is open to {who} and {lock}. It runs your GPU and shows what the run made."


def serve(page: Any, door: Door) -> str:
    """Serve a page from now on, and return its address.

    Only what a page hands out is served: no path of this machine, of the run directory neither, is in reach.

    Raises:
        UserError: the port is taken, or the address is not this machine's.
    """
    login = door.login()
    page.queue(max_size=VISITORS, default_concurrency_limit=1)
    try:
        _, local, shared = page.launch(
            server_name=door.host,
            server_port=door.port,
            share=door.share,
            auth=login,
            inbrowser=door.browser,
            prevent_thread_lock=True,
            quiet=True,
            show_error=True,
            theme=theme(),
            css=css(),
            head=head(),
            footer_links=[],
            run_history=False,
            ssr_mode=False,
            pwa=False,
            allowed_paths=[],
            enable_monitoring=False,
            mcp_server=False,
        )
    except OSError as error:
        raise UserError(f"The page cannot be served at {door.host}, port {door.port or 7860}: {error}.") from None
    return str(shared or local)


def blocks(title: str) -> Any:
    """An empty page. Nothing is reported to anybody.

    Raises:
        UserError: Gradio is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ImportError:
        raise UserError("The pages need Gradio. Install it with: pip install 'raftdiff[apps]'") from None
    return gradio.Blocks(title=title, analytics_enabled=False, fill_width=True, delete_cache=(3600, 3600))


def theme() -> Any:
    """Gradio's plainest, in the colours of the report and in the reader's own fonts: nothing is fetched."""
    import gradio

    fonts = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif"]
    mono = ["ui-monospace", "Menlo", "Consolas", "monospace"]
    base = gradio.themes.Base(primary_hue="teal", neutral_hue="stone", font=fonts, font_mono=mono)
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
        import gradio

        try:
            return handler(*args, **kwargs)
        except UserError as error:
            raise gradio.Error(html.escape(str(error)), print_exception=False) from None
        except FileNotFoundError as error:
            sentence = f"{error.filename}: this file is gone. Was the run moved or deleted? Reload the page."
            raise gradio.Error(html.escape(sentence), print_exception=False) from None

    return wrapped


def view(name: str, **fields: Any) -> str:
    """One of the views in ``views.html.jinja``, as HTML. All text is escaped, and so is what Gradio's own templates
    would take for a placeholder."""
    views = template("raftdiff.apps", "views.html.jinja").module
    made = str(getattr(views, name)(**fields))
    return made.replace("{", "&#123;").replace("}", "&#125;").replace("$", "&#36;")


def uri(image: Image | Path) -> str:
    """The picture itself as text, so that no path is served."""
    if isinstance(image, Path):
        from PIL import Image as pil  # noqa: N813

        with pil.open(image) as picture:
            picture.load()
            return picture_uri(picture)
    return picture_uri(image)
