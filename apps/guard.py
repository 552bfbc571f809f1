"""What reaches a page: requests by its own name, from its own windows, of the kind that it makes."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from ipaddress import ip_address
from typing import Any, TypeAlias, final
from urllib.parse import urlsplit

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

LOG = logging.getLogger("uvicorn.error")
WRITES = ("/login", "/gradio_api/run/")
"""All that a page's buttons call. Gradio takes more: uploads, recordings, calls of components, a queue."""
LARGEST = 2**20
"""Bytes that a button sends at most."""
SECONDS = 1.0
"""That a wrong password costs its visitor."""
TRIES = 8
"""Passwords that one visitor has waiting at most."""
VISITORS = 1024
"""Whose wrong passwords are remembered at most."""


@final
class Guard:
    """Passes on to ``app`` what a page's own windows ask for, and answers everything else with a sentence.

    A web site elsewhere can make a browser call this machine: under a name of its own that it lets lead here, which
    the Host header tells, or across sites, which the Origin header tells.
    """

    def __init__(
        self,
        app: App,
        *,
        names: frozenset[str] | None = frozenset(),
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """``names`` are those it may be called by beside this machine's own; None lets in whoever finds it."""
        self._app, self._names, self._pause = app, names, pause
        self._doors: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._waiting: defaultdict[str, int] = defaultdict(int)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
        elif refusal := self._refusal(scope):
            await _answer(send, *refusal)
        elif scope["method"] == "POST" and scope["path"].rstrip("/") == "/login":
            await self._login(scope, receive, send)
        else:
            await self._pass(scope, receive, send)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        """What breaks on the way to a handler of the page broke on a request that no window of it makes: a line, not
        the traceback of a server."""
        begun = False

        async def noted(message: MutableMapping[str, Any]) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except Exception as error:
            LOG.warning("%s %s: %s: %s", scope["method"], scope["path"], type(error).__name__, error)
            if not begun:
                await _answer(send, 500, "No window of this page asks like this.")

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """The status and the sentence for what may not pass."""
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host = _host(headers.get("host", ""))
        if self._names is not None and not (_own(host) or host in self._names):
            sentence = f"This page is for its own machine, and is not called '{host}'. To let others in: --host"
            return 403, sentence
        if scope["method"] in ("GET", "HEAD"):
            return None
        if "origin" in headers and not self._of_the_page(headers):
            return 403, "This was asked for by another web site."
        if not scope["path"].startswith(WRITES):
            return 404, "No page of raftdiff asks for this."
        length = headers.get("content-length", "")
        if not length.isdecimal() or int(length) > LARGEST:
            return (413 if length.isdecimal() else 411), f"Say how long it is; {LARGEST} bytes are the most."
        return None

    def _of_the_page(self, headers: Mapping[str, str]) -> bool:
        """Whether the window that asks shows this page; a proxy says in a header of its own what it was called."""
        origin = urlsplit(headers["origin"])
        called = {headers.get("host"), headers.get("x-forwarded-host")}
        return bool(origin.netloc) and (origin.netloc in called or origin.hostname in (self._names or ()))

    async def _login(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One password of a visitor at a time; after a wrong one the next waits."""
        visitor = str((scope.get("client") or ("",))[0])
        if self._waiting[visitor] >= TRIES or len(self._waiting) > VISITORS:
            await _answer(send, 429, "Too many passwords at once. Try again in a moment.")
            return
        status = 0

        async def noted(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        self._waiting[visitor] += 1
        try:
            async with self._doors[visitor]:
                await self._app(scope, receive, noted)
                if status >= 400:
                    await self._pause(SECONDS)
        finally:
            self._waiting[visitor] -= 1
            if not self._waiting[visitor]:
                del self._waiting[visitor], self._doors[visitor]


def _host(header: str) -> str:
    """
    >>> [_host(header) for header in ("127.0.0.1:7860", "[::1]:7860", "Name.example", "")]
    ['127.0.0.1', '::1', 'name.example', '']
    """
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""


def _own(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


async def _answer(send: Send, status: int, sentence: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": f"{sentence}\n".encode()})
