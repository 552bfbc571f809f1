"""A reward served over HTTP, for ``type: remote`` in the recipes of another process or machine.

The standard library's server, so that an environment that holds the reward and raftdiff is enough. JSON there and back,
pictures in it as PNG. Whoever asks gives the token; nothing of this machine is in reach but the reward's scores.
"""

import base64
import binascii
import hmac
import io
import json
import logging
import math
import os
import secrets
import socket
import threading
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, final

from PIL import Image
from pydantic import Field

from raftdiff.chat.server import key_in
from raftdiff.errors import UserError
from raftdiff.ranking import scores
from raftdiff.recipes.config import Config, check
from raftdiff.rewards.remote import TOKEN, Media
from raftdiff.scoring import described, sees_prompts
from raftdiff.types import Prompt, Reward, Sample, Source

LOG = logging.getLogger(__name__)
LARGEST = 256 * 2**20
"""Bytes of a request."""
MOST_PIXELS = 2**26
"""Of a picture: 8192 x 8192. A small file can hold a picture that fills the memory."""
DRAINED = 2**20
"""Bytes that are read of a request that is refused."""
SILENCE = 60.0
"""Seconds without a byte after which a request is given up."""


class Asked(Config):
    """One sample to score."""

    prompt: str
    index: int = Field(default=0, ge=0)
    seed: int = 0
    source: Source = "policy"
    caption: str
    metadata: dict[str, Any] = Field(default_factory=dict)
    picture: str | None = None
    text: str | None = None

    @property
    def name(self) -> str:
        return f"{self.prompt}-{self.index:03d}"


class Request(Config):
    """What ``POST /v1/scores`` takes."""

    samples: list[Asked] = Field(min_length=1)


@final
class RefusedError(Exception):
    """A status, and a sentence for whoever asked."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


@final
class Served:
    """A reward that is being served, one request at a time."""

    def __init__(
        self, reward: Reward[Any], media: Media, listening: socket.socket, *, token: str, digest: str = ""
    ) -> None:
        """``digest`` names what is served, its options with it: scores that were kept are of this one alone."""
        self._reward, self._media, self._token, self._digest = reward, media, token, digest
        self._lock = threading.Lock()
        self._server = _Server(listening.getsockname()[:2], _handler(self), bind_and_activate=False)
        self._server.socket.close()
        self._server.socket = listening
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Until the server ends, or Ctrl-C."""
        try:
            while self._thread.is_alive():
                self._thread.join(0.5)
        except KeyboardInterrupt:
            self.close()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def admit(self, path: str, authorization: str) -> None:
        """
        Raises:
            RefusedError: who asks does not give the token, or asks for what is not here.
        """
        if not hmac.compare_digest(authorization.encode(), f"Bearer {self._token}".encode()):
            raise RefusedError(401, f"give the token that this server printed when it began, in {TOKEN}")
        if path not in ("/v1/reward", "/v1/scores"):
            raise RefusedError(404, "there are /v1/reward and /v1/scores here")

    def answer(self, path: str, body: bytes) -> dict[str, Any]:
        """
        Raises:
            RefusedError: it is not asked as it should be, or the reward fails.
        """
        try:
            asked = json.loads(body)
        except (ValueError, RecursionError):
            raise RefusedError(400, "the request is not JSON") from None
        if path == "/v1/reward":
            whole = sees_prompts(self._reward)
            return {
                "name": self._reward.name,
                "media": self._media,
                "whole_prompts": whole,
                "digest": self._digest,
                "description": described(self._reward),
            }
        try:
            samples = [self._sample(one) for one in check(Request, asked, "request").samples]
        except UserError as error:
            raise RefusedError(400, str(error)) from None
        return {"scores": self._scored(samples)}

    def _scored(self, samples: Sequence[Sample[Any]]) -> list[float | None]:
        try:
            with self._lock:
                found = scores(self._reward, samples).tolist()
        except UserError as error:
            raise RefusedError(422, str(error)) from None
        except Exception as error:
            LOG.exception("the reward '%s' failed", self._reward.name)
            raise RefusedError(
                422, f"the reward '{self._reward.name}' failed: {type(error).__name__}: {error}"
            ) from None
        return [None if math.isnan(value) else value for value in found]

    def _sample(self, asked: Asked) -> Sample[Any]:
        given = asked.picture if self._media == "picture" else asked.text
        if given is None:
            raise RefusedError(400, f"{asked.name} is no {self._media}, which '{self._reward.name}' scores")
        prompt = Prompt(asked.prompt, asked.caption, asked.caption, asked.caption, meta=asked.metadata)
        media = _picture(given, asked.name) if self._media == "picture" else given
        return Sample(0, prompt, asked.index, asked.seed, asked.source, media)


def token() -> tuple[str, bool]:
    """What whoever asks must give, and whether it was made up here: the environment's own comes first.

    Raises:
        UserError: what the environment holds cannot be a token.
    """
    return (str(key_in(TOKEN)), False) if os.environ.get(TOKEN) else (secrets.token_urlsafe(24), True)


def _picture(text: str, name: str) -> Image.Image:
    try:
        with Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=["PNG"]) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise RefusedError(413, f"{name}: a picture of {picture.width} x {picture.height} is too large")
            picture.load()
            return picture
    except RefusedError:
        raise
    except (OSError, ValueError, SyntaxError, binascii.Error, Image.DecompressionBombError) as error:
        raise RefusedError(400, f"{name}: the picture is no PNG in base64 ({error})") from None


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Who asked went away: nothing to say, and no traceback."""
        LOG.info("%s went away", client_address, exc_info=True)


def _handler(served: Served) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = SILENCE
        server_version, sys_version = "raftdiff", ""

        def do_POST(self) -> None:
            try:
                self._answer(200, served.answer(self.path, self._body()))
            except RefusedError as error:
                self._answer(error.status, {"error": str(error)})

        def _body(self) -> bytes:
            told = self.headers.get("Content-Length", "")
            length = int(told) if told.isdecimal() else 0
            try:
                served.admit(self.path, self.headers.get("Authorization", ""))
                if length > LARGEST or not told.isdecimal():
                    sentence = f"say how long the request is, {LARGEST} bytes at most; try a lower batch_size"
                    raise RefusedError(413 if told.isdecimal() else 411, sentence)
            except RefusedError:
                self.rfile.read(min(length, DRAINED))  # who still writes would not hear why it is refused
                raise
            return self.rfile.read(length)

        def _answer(self, status: int, told: Mapping[str, Any]) -> None:
            data = json.dumps(told, allow_nan=False).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            LOG.info(format, *args)

    return Handler
