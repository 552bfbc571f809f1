"""Stand-ins for chat servers, for tests of whatever asks one: a server on this machine, and one without a network."""

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, final

from raftdiff.chat.server import Reply
from raftdiff.errors import UserError


@contextmanager
def chat_server(reply: Callable[[Mapping[str, Any]], str], *, port: int = 0) -> Iterator[str]:
    """An OpenAI-compatible server on the loopback address that says to each request what ``reply`` makes of it, and
    refuses one of which it makes a ``UserError``. Yields its address, ``base_url``; within, several may ask at once.
    Port 0 is any that is free.

    Raises:
        OSError: the port is taken.
    """
    with server(lambda asked: {"choices": [{"message": {"content": reply(asked)}}]}, port=port) as url:
        yield url


@contextmanager
def server(reply: Callable[[Mapping[str, Any]], Any], *, port: int = 0) -> Iterator[str]:
    """The same, of which ``reply`` makes the whole answer, as JSON."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            try:
                status, said = 200, reply(_asked(self.rfile.read(int(self.headers["Content-Length"] or 0))))
            except UserError as error:
                status, said = 400, {"error": {"message": str(error)}}
            data = json.dumps(said).encode()
            with suppress(ConnectionError):  # who asked has been stopped
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        def log_message(self, *args: Any) -> None:
            del args

    running = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{running.server_port}/v1"
    finally:
        running.shutdown()
        running.server_close()


def _asked(body: bytes) -> Mapping[str, Any]:
    try:
        found = json.loads(body)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UserError("A request is an object in JSON.")
    return found


@final
class Replying:
    """A ``chat.server.Chat`` that always says the same, and remembers what it was asked."""

    def __init__(self, reply: str) -> None:
        self.reply = reply
        self.asked: list[Sequence[Mapping[str, str]]] = []
        self.settings: list[dict[str, Any]] = []

    def replies(self, messages: Sequence[Mapping[str, str]], **settings: Any) -> list[Reply]:
        self.asked.append(messages)
        self.settings.append(settings)
        return [Reply(self.reply, cut=False)]
