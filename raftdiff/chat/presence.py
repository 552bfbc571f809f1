"""Whether a chat server is there and has a model of a name: what can be asked for nothing, before hours of work."""

import difflib
from collections.abc import Mapping
from typing import Any

from raftdiff.chat.server import Chat, ChatServer, post
from raftdiff.errors import UserError, nearest, printable

PATIENCE = 5.0
"""Seconds without a byte, at most, after which a server that took the request is taken to be there."""
NAMED = 8
"""Models that a sentence names, the nearest."""
REFUSED = (200, 301, 302, 303, 307, 308, 401, 403, 404, 405, 501)
"""What says for certain that whatever is asked later is refused too; 200 is that of a page."""


def demand_chat(chat: Chat) -> None:
    """
    Raises:
        UserError: as ``demand_model``. A stand-in for a server is there.
    """
    if isinstance(chat, ChatServer):
        demand_model(
            chat.base_url,
            chat.model,
            api_key_env=chat.api_key_env,
            timeout=chat.timeout,
            retries=chat.retries,
            pause=chat.pause,
            extra=chat.extra,
        )


def demand_model(
    base_url: str,
    model: str,
    *,
    api_key_env: str | None = None,
    timeout: float = PATIENCE,
    retries: int = 4,
    pause: float = 1.0,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """A server answers, and does not refuse the model; the arguments are those of ``ChatServer``.

    Its list of models is read first. Where that lacks the name, or there is none, the model is asked for one token:
    many servers have no list, and know a model by names that are not in it, such as an alias. Whatever is no clear
    refusal (no answer in time, too many requests, a setting that it does not take) passes.

    Raises:
        UserError: nobody is there, or the key or the name is refused.
    """
    told: dict[str, Any] = {"api_key_env": api_key_env, "retries": retries, "pause": pause}
    told["timeout"] = min(timeout, PATIENCE)
    names = _names(post(base_url, "models", None, **told, instead=lambda status, text: {}))
    if model in names:
        return

    def refused(status: int, text: str) -> Any:
        if status == 404 and names:
            known = nearest(model, difflib.get_close_matches(model, names, n=NAMED, cutoff=0.0))
            raise UserError(f"The server at {base_url} has no model '{printable(model)}': {text}. {known}")
        return None if status in REFUSED else {}

    question = {"messages": [{"role": "user", "content": "Hello."}], "temperature": 0.0, "max_tokens": 1}
    post(base_url, "chat/completions", {"model": model, **question, **(extra or {})}, **told, instead=refused)


def _names(reply: Any) -> list[str]:
    """Those of a list of models; none of another reply."""
    held = reply.get("data") if isinstance(reply, Mapping) else None
    rows = held if isinstance(held, list) else []
    return [printable(row["id"]) for row in rows if isinstance(row, Mapping) and isinstance(row.get("id"), str)]
