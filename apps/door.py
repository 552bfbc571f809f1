"""How a page is served: to whom, at which address, and until when.

The server is ours, not Gradio's ``launch``: that asks its own page through whatever proxy the environment names, tries
an address which is not this machine's on a hundred ports, and knows no address with colons.
"""

import asyncio
import errno
import os
import socket
import threading
import webbrowser
from concurrent.futures import Future
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, NamedTuple, final
from urllib.parse import urlsplit

from raftdiff.apps import page
from raftdiff.apps.guard import Guard
from raftdiff.errors import UserError

FIRST, TRIED = 7860, 100
"""Ports, where none is named."""
LARGEST_PORT = 2**16 - 1


@final
@dataclass(frozen=True, slots=True)
class Door:
    """Who may come in. By default this machine alone."""

    host: str = "127.0.0.1"
    port: int | None = None
    """None takes the first free one from 7860."""
    share: bool = False
    """A public address through Gradio's servers, for a week at most."""
    user: str | None = None
    """NAME:PASSWORD that visitors must give."""
    browser: bool = True
    """Open a browser window, where there is one to open."""

    @property
    def alone(self) -> bool:
        """Whether only this machine can come in."""
        return not self.share and loopback(self.host)

    def login(self) -> tuple[str, str] | None:
        """
        Raises:
            UserError: no colon in it, or one of the two is empty.
        """
        if self.user is None:
            return None
        name, _, password = self.user.partition(":")
        if not name.strip() or not password:
            raise UserError("--auth: write NAME:PASSWORD, for example --auth ada:correct-horse.")
        return name.strip(), password

    def warning(self, shows: str) -> str | None:
        """A word to whoever opens the door further than this machine; ``shows`` says what the page does for all."""
        if self.alone:
            return None
        who = "anybody on the internet who has the address" if self.share else "anybody on your network"
        lock = "and knows the password" if self.user else "without a password; to ask for one: --auth NAME:PASSWORD"
        return f"warning: this page is open to {who} {lock}. It {shows}."

    def listen(self) -> socket.socket:
        """Take the port, so that nobody else does while models load.

        Raises:
            UserError: the port is taken or forbidden, or the host is no address of this machine.
        """
        if self.port is not None and not 0 < self.port <= LARGEST_PORT:
            raise UserError(f"--port {self.port}: a port is a number from 1 to {LARGEST_PORT}.")
        family, where = self._resolved()
        for port in [self.port] if self.port else range(FIRST, FIRST + TRIED):
            try:
                return _bound(family, (where[0], port, *where[2:]))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise self._refused(port, error) from None
        if self.port:
            raise UserError(f"--port {self.port} is taken by another program; name another, or leave --port out.")
        raise UserError(f"The ports {FIRST} to {FIRST + TRIED - 1} are all taken; name a free one with --port N.")

    def _resolved(self) -> tuple[socket.AddressFamily, tuple[Any, ...]]:
        try:
            found = socket.getaddrinfo(_bare(self.host), 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except (OSError, UnicodeError) as error:
            raise UserError(
                f"--host {self.host}: no machine of this name is known ({getattr(error, 'strerror', error)}). Write "
                "127.0.0.1 for this machine alone, 0.0.0.0 for all of its networks."
            ) from None
        family, _, _, _, where = found[0]
        return family, where

    def _refused(self, port: int, error: OSError) -> UserError:
        if error.errno == errno.EADDRNOTAVAIL:
            return UserError(
                f"--host {self.host} is not an address of this machine. Write 127.0.0.1 for this machine alone, "
                "0.0.0.0 for all of its networks."
            )
        if error.errno == errno.EACCES:
            return UserError(f"--port {port} is kept for the system's own services; name one above 1023.")
        return UserError(f"The page cannot be served at {self.host}, port {port}: {error.strerror}.")


class Served(NamedTuple):
    """A page that is being served."""

    address: str
    """For a browser on this machine; with ``share`` the public one."""
    elsewhere: str | None
    """For other machines, where they may come in."""
    server: Any
    thread: threading.Thread
    blocks: Any

    def wait(self) -> None:
        """Until the server ends, or Ctrl-C."""
        try:
            while self.thread.is_alive():
                self.thread.join(0.5)
        except KeyboardInterrupt:
            self.close()

    def close(self) -> None:
        self.blocks.is_running = False
        self.server.should_exit = True
        self.thread.join(5)


def serve(blocks: Any, door: Door, listening: socket.socket | None = None) -> Served:
    """Serve a page from now on, at ``listening`` where the door listens already.

    Only what a page hands out is served: no path of this machine, of the run directory neither, is in reach.

    Raises:
        UserError: the port is taken, the address is not this machine's, or there is no public one to be had.
    """
    login, listening = door.login(), listening or door.listen()
    port = listening.getsockname()[1]
    begun: Future[Any] = Future()

    async def run() -> None:
        try:
            server = _server(blocks, door, login, port)
        except BaseException as error:
            begun.set_exception(error)
            return
        begun.set_result(server)
        await server.serve(sockets=[listening])

    # all of it in one event loop: Gradio takes the one that it finds, and would leave another behind, open
    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True, name="served")
    thread.start()
    server = begun.result()
    address, elsewhere = addresses(door, port)
    served = Served(address, elsewhere, server, thread, blocks)
    if door.share:
        try:
            served = served._replace(address=_shared(door, port))
        except BaseException:
            served.close()
            raise
    if door.browser:
        webbrowser.open(served.address)
    return served


def _server(blocks: Any, door: Door, login: tuple[str, str] | None, port: int) -> Any:
    import fastapi
    import uvicorn

    app = page.gradio().mount_gradio_app(
        fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        blocks,
        "/",
        server_name=door.host,
        server_port=port,
        auth=login,
        root_path=os.environ.get("GRADIO_ROOT_PATH"),
        theme=page.theme(),
        css=page.css(),
        head=page.head(),
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        pwa=False,
        enable_monitoring=False,
        mcp_server=False,
    )
    guard = Guard(app, names=_names() if door.alone else None)
    return uvicorn.Server(uvicorn.Config(guard, log_level="warning", timeout_graceful_shutdown=1, server_header=False))


def loopback(host: str) -> bool:
    """Whether a name leads to this machine alone.

    >>> [loopback(host) for host in ("127.0.0.1", "[::1]", "localhost", "0.0.0.0", "example.org")]
    [True, True, True, False, False]
    """
    try:
        return ip_address(_bare(host)).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _bare(host: str) -> str:
    return host.removeprefix("[").removesuffix("]")


def _bound(family: socket.AddressFamily, where: tuple[Any, ...]) -> socket.socket:
    taken = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":  # a port that was used a moment ago is free; elsewhere this would share it
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(where)
        taken.listen()  # from now on it is taken; who comes early waits until the page is there
    except OSError:
        taken.close()
        raise
    return taken


def _names() -> frozenset[str]:
    """Names other than this machine's own under which a page for it alone is called: of a proxy that serves it."""
    host = urlsplit(os.environ.get("GRADIO_ROOT_PATH", "")).hostname
    return frozenset({host} if host else ())


def addresses(door: Door, port: int) -> tuple[str, str | None]:
    """For this machine, and for others, where they may come in."""
    bare = _bare(door.host)
    everywhere = bare in ("", "0.0.0.0", "::")
    here = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(bare, bare)
    others = None if loopback(door.host) else _network_address() if everywhere else bare
    return _address(here, port), others and _address(others, port)


def _address(host: str, port: int) -> str:
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def _network_address() -> str:
    """This machine's address in its network, as the way to any other begins; its name where there is no way."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
        try:
            way.connect(("192.0.2.1", 9))  # of documentation; nothing is sent
            return str(way.getsockname()[0])
        except OSError:
            return socket.gethostname()


def _shared(door: Door, port: int) -> str:
    """
    Raises:
        UserError: Gradio's servers give no address.
    """
    import secrets

    from gradio import networking

    host = "127.0.0.1" if _bare(door.host) in ("", "0.0.0.0", "::") else _bare(door.host)
    try:
        return str(networking.setup_tunnel(host, port, secrets.token_urlsafe(32), None, None))
    except Exception as error:
        raise UserError(
            f"--share: Gradio's servers gave no public address ({error}). Is there a way to the internet? "
            "For your own network use --host 0.0.0.0."
        ) from None
