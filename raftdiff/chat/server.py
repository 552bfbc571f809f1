"""The client of an OpenAI-compatible chat server: one request, with retries. A judge and a sampler stand on it."""

import http.client
import json
import logging
import os
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic, sleep
from typing import Any, NamedTuple, Protocol, final, runtime_checkable
from urllib.parse import urlsplit

from raftdiff.chat.dialogue import untorn
from raftdiff.chat.threads import within
from raftdiff.errors import Need, UserError, printable

LOG = logging.getLogger(__name__)
RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
LONGEST_PAUSE = 60.0
LARGEST_REPLY = 16 * 2**20
"""Bytes. More than any text of a language model."""
LONGEST_REPLY = 10
"""Times the timeout: what a try may take from its first byte to its last, however the bytes drip."""
SLOW = 0
"""In place of a status: it took the request, and did not answer in time."""
SHOWN = 300
HELD_BACK = {"choices": [{"message": {"content": ""}}]}
"""What stands for an answer that the server's content filter held back."""
VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]{0,63}")
NO_VARIABLE = (
    "api_key_env takes the name of an environment variable in capitals, for example OPENAI_API_KEY; a key itself does "
    "not belong into a recipe"
)
"""Said without what was given, which may be a key."""


class Reply(NamedTuple):
    """What a server says."""

    text: str
    cut: bool
    """Whether it reached the most tokens before it ended (``finish_reason: length``)."""


@runtime_checkable
class Chat(Protocol):
    """What answers conversations: a ``ChatServer``, or a stand-in for one."""

    def replies(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        temperature: float = 1.0,
        max_tokens: int | None = None,
        n: int = 1,
        seed: int | None = None,
        stop: Sequence[str] = (),
    ) -> list[Reply]: ...


@final
@dataclass(frozen=True, slots=True)
class ChatServer:
    """``POST {base_url}/chat/completions``, as OpenAI, vLLM, llama.cpp, Ollama, TGI and others serve it.

    The key is read from the environment at each request and goes into the Authorization header only: it is in no
    field, message or file. Redirects are refused, so that it cannot travel to another host.

    Raises:
        UserError: on construction, an address or the name of a variable that cannot be used.
    """

    base_url: str
    """With the version, for example http://localhost:8000/v1."""
    model: str
    """The name under which the server knows the model."""
    api_key_env: str | None = None
    """The environment variable that holds the key; None sends none. Over plain http it can be read on its way."""
    timeout: float = 60.0
    """Seconds without a byte before a try counts as failed; a whole reply may take ten times as many."""
    retries: int = 4
    """Tries after the first, where a failure may pass: no connection, a busy server, too many requests."""
    pause: float = 1.0
    """Seconds before the second try; doubled each time, and no less than the server asks for, up to 60."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further keys of the request, for example top_p, or max_completion_tokens where max_tokens is refused."""

    def __post_init__(self) -> None:
        check_address(self.base_url)
        key_in(self.api_key_env)

    def replies(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        temperature: float = 1.0,
        max_tokens: int | None = None,
        n: int = 1,
        seed: int | None = None,
        stop: Sequence[str] = (),
    ) -> list[Reply]:
        """``n`` answers to the ``messages`` ({"role", "content"}, oldest first), in the server's order.

        A server that gives fewer at once is asked again for the rest, with the seed moved on by as many as there are.
        Servers need not honour the seed. An answer held back by the server's content filter is the empty text.

        Raises:
            UserError: no answer after all tries, a request that the server refuses, or a reply of another form.
        """
        answers: list[Reply] = []
        while len(answers) < n:
            body: dict[str, Any] = {
                "model": self.model,
                "messages": [dict(message) for message in messages],
                "temperature": temperature,
            }
            optional = {
                "max_tokens": max_tokens,
                "n": n - len(answers) if n - len(answers) > 1 else None,
                "seed": None if seed is None else (seed + len(answers)) % 2**31,  # some servers hold it in 32 bits
                "stop": list(stop) or None,
            }
            body |= {key: value for key, value in optional.items() if value is not None}
            answers += replies_in(self._post(body | dict(self.extra)), self.base_url)
        return answers[:n]

    def _post(self, body: Mapping[str, Any]) -> Any:
        return post(
            self.base_url,
            "chat/completions",
            body,
            api_key_env=self.api_key_env,
            timeout=self.timeout,
            retries=self.retries,
            pause=self.pause,
            instead=lambda status, text: HELD_BACK if status == 400 and "content_filter" in text else None,
        )


def post(
    base_url: str,
    path: str,
    body: Mapping[str, Any] | None,
    *,
    api_key_env: str | None = None,
    timeout: float = 60.0,
    retries: int = 4,
    pause: float = 1.0,
    instead: Callable[[int, str], Any] = lambda status, text: None,
) -> Any:
    """What a server answers to ``POST {base_url}/{path}``, JSON there and back; for the others see ``ChatServer``.

    Args:
        body: None asks by ``GET``.
        instead: what to take for the answer where the server refuses, given its status and what it says; where it takes
            too long, the status is ``SLOW``, and where its reply is not JSON, 200. None for nothing, which is an error.

    Raises:
        UserError: no answer after all tries, a request that the server refuses, or a reply that is not JSON.
    """
    key = key_in(api_key_env)
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    sent, method = (None, "GET") if body is None else (json.dumps(body).encode(), "POST")
    request = urllib.request.Request(f"{base_url.rstrip('/')}/{path}", sent, headers, method=method)
    opener = urllib.request.build_opener(_NoRedirect)
    for attempt in range(retries + 1):
        asked = 0.0
        try:
            reply = within(LONGEST_REPLY * timeout, lambda: _read(opener, request, timeout))
            _silent.discard(base_url)
            return _parsed(reply, base_url, instead)
        except urllib.error.HTTPError as error:
            with error:
                text = _readable(error, key)
            if (answer := instead(error.code, text)) is not None:
                return answer
            what = f"answered {error.code}: {text}"
            if error.code not in RETRIED:
                raise UserError(f"The server at {base_url} {what}. {_advice(error.code)}") from None
            asked = _seconds(error.headers.get("Retry-After"))
        except (OSError, http.client.HTTPException) as error:  # URLError and timeouts are OSErrors
            if isinstance(error, TimeoutError) and (answer := instead(SLOW, str(error))) is not None:
                return answer
            reason = getattr(error, "reason", error)
            if isinstance(reason, ssl.SSLCertVerificationError):
                raise UserError(f"The certificate of {base_url} is not trusted: {reason}.") from None
            what = f"gave no answer ({printable(str(reason)) or type(reason).__name__})"
            _tell_silence(base_url, what, [pause * 2**tried for tried in range(attempt, retries)])
        if attempt < retries:
            sleep(min(LONGEST_PAUSE, max(asked, pause * 2**attempt)))
    tries = "1 try" if retries == 0 else f"{retries + 1} tries"
    raise UserError(f"The server at {base_url} {what}, after {tries}. Is it running, and the address right?")


_silent: set[str] = set()
"""Servers of which it was said that they do not answer, and that have not answered since."""


def _tell_silence(base_url: str, what: str, pauses: Sequence[float]) -> None:
    """Say it at once where it will be tried again: whoever waits should know what for."""
    if pauses and base_url not in _silent:
        _silent.add(base_url)
        spent = sum(min(LONGEST_PAUSE, one) for one in pauses)
        LOG.warning("The server at %s %s; trying again for %.0f s", base_url, what, spent)


def _read(opener: urllib.request.OpenerDirector, request: urllib.request.Request, timeout: float) -> bytes:
    """The body of the reply."""
    end, parts, size = monotonic() + LONGEST_REPLY * timeout, [], 0
    with opener.open(request, timeout=timeout) as response:
        while part := response.read1(2**16):
            parts.append(part)
            size += len(part)
            if size > LARGEST_REPLY:
                raise UserError(
                    f"The server at {request.full_url} sent a reply of more than {LARGEST_REPLY // 2**20} MiB, which "
                    "is no answer of a language model. Is the address right?"
                )
            if monotonic() > end:
                raise TimeoutError(f"no whole reply within {LONGEST_REPLY * timeout:g} s")  # as whoever waits says
        if response.length:  # reading piece by piece does not notice that the rest never came
            raise http.client.IncompleteRead(b"".join(parts), response.length)
    return b"".join(parts)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect stays an error: urllib would turn the request into a GET and carry the key along."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        del args, kwargs


def check_address(url: str) -> None:
    """
    Raises:
        UserError: ``base_url`` is no address, or one that could give a key away.
    """
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        raise UserError("base_url is not an address; write it like http://localhost:8000/v1.") from None
    if "@" in url or parts.query or parts.fragment:
        raise UserError(
            "base_url: an address with a name, a password, '?' or '#' in it could give a key away; write it like "
            "http://localhost:8000/v1 and name the variable that holds the key in api_key_env."
        )
    if not usable or re.search(r"[\s\x00-\x1f\x7f]", url) or not url.isascii():
        raise UserError(f"base_url: '{url}' is not an http or https address; write it like http://localhost:8000/v1.")


def demand_variable(name: str | None) -> None:
    """A recipe's ``api_key_env`` is the name of a variable, or nothing.

    Raises:
        ValueError: it is no plain name, and so may be a key, which is not repeated.
    """
    if name is not None and not VARIABLE.fullmatch(name):
        raise ValueError(NO_VARIABLE)


def key_needs(variable: str | None) -> Iterator[Need]:
    """What of a server's key is not there; see ``recipes.needs``."""
    try:
        key_in(variable)
    except UserError as error:
        yield Need("api_key_env", str(error).removeprefix("api_key_env: "))


def key_in(variable: str | None) -> str | None:
    """The key in the environment. What is no plain variable name may be a key itself, and is not repeated.

    Raises:
        UserError: the variable is not set, or what it holds cannot be a key.
    """
    if variable is None:
        return None
    if not VARIABLE.fullmatch(variable):
        raise UserError(f"{NO_VARIABLE}.")
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UserError(f"api_key_env: the environment variable {variable} is not set; export it before the run.")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise UserError(f"api_key_env: what {variable} holds cannot be a key: it has spaces or odd characters in it.")
    return key


def replies_in(reply: Any, where: str) -> list[Reply]:
    """What a reply of ``chat/completions`` from ``where`` says, a choice each.

    Raises:
        UserError: it has another form.
    """
    try:
        told = [(choice["message"].get("content"), choice.get("finish_reason")) for choice in reply["choices"]]
    except (TypeError, KeyError, AttributeError):
        told = []
    if not told or not all(isinstance(content, str | None) for content, _ in told):
        raise UserError(
            f"The server at {where} sent a reply without choices[].message.content. Does it speak the OpenAI chat "
            "format under this address?"
        )
    replies = [(content or "", reason == "length") for content, reason in told]
    return [Reply(untorn(text) if cut else text, cut) for text, cut in replies]


def _parsed(reply: bytes, where: str, instead: Callable[[int, str], Any]) -> Any:
    try:
        return json.loads(reply)
    except (ValueError, RecursionError):
        if (answer := instead(200, "")) is not None:
            return answer
        raise UserError(f"The server at {where} sent a reply that is not JSON. Does base_url end in /v1?") from None


def _readable(error: urllib.error.HTTPError, key: str | None) -> str:
    """What the server says is wrong, short and on one line, the key blotted out."""
    try:
        text = error.read(64 * 1024).decode(errors="replace")
    except (OSError, http.client.HTTPException):
        text = ""
    try:
        found = json.loads(text)["error"]
        text = f"{found['message']} {found.get('code') or ''}" if isinstance(found, Mapping) else str(found)
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    text = " ".join(text.split())
    text = text.replace(key, "***") if key else text
    return printable(text)[:SHOWN].rstrip(" .") or printable(str(error.reason))


def _advice(status: int) -> str:
    if 300 <= status < 400:
        return "Redirects are not followed; write the address that it leads to."
    if status in (401, 403):
        return "Does api_key_env name the variable with the right key?"
    if status == 404:
        return "Is the model's name right, and does base_url end in /v1?"
    return "The request needs another setting."


def _seconds(header: str | None) -> float:
    """Retry-After in seconds; 0 for none and for the form with a date."""
    try:
        return max(0.0, float(header or 0))
    except ValueError:
        return 0.0
