"""What reaches a page: by which name, from which site, of which kind; and how fast passwords are tried."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from raftdiff.apps.guard import LARGEST, TRIES, Guard


async def open_app(scope: Any, receive: Any, send: Any) -> None:
    """Lets everything in; a login with the path's own password alone."""
    wrong = scope["path"] == "/login" and scope.get("password") != "right"
    await send({"type": "http.response.start", "status": 400 if wrong else 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def request(path: str, method: str = "GET", **headers: str) -> dict[str, Any]:
    told = {"host": "127.0.0.1:7860", **({"content-length": "2"} if method == "POST" else {}), **headers}
    raw = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in told.items()]
    return {"type": "http", "method": method, "path": path, "headers": raw, "client": ("127.0.0.1", 1)}


async def asked(guard: Guard, scope: Mapping[str, Any]) -> int:
    seen: list[int] = []

    async def send(message: Any) -> None:
        if "status" in message:
            seen.append(message["status"])

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    await guard(dict(scope), receive, send)
    return seen[0]


def status(scope: Mapping[str, Any], **options: Any) -> int:
    return asyncio.run(asked(Guard(open_app, **options), scope))


@pytest.mark.parametrize("host", ["127.0.0.1:7860", "localhost:7860", "LOCALHOST", "[::1]:7860", "127.8.8.8"])
def test_its_own_names_pass(host: str) -> None:
    assert status(request("/", host=host)) == 200


@pytest.mark.parametrize(
    "host", ["evil.example:7860", "localhost.evil.example", "10.0.0.1", "", "[::1", "a@127.0.0.1@b"]
)
def test_other_names_do_not(host: str) -> None:
    assert status(request("/", host=host)) == 403


def test_all_names_pass_where_the_door_is_open() -> None:
    assert status(request("/", host="its-name.example"), names=None) == 200
    assert status(request("/", host="hub.example"), names=frozenset({"hub.example"})) == 200


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/upload",
        "/gradio_api/component_server",
        "/gradio_api/stream/x",
        "/gradio_api/queue/join",
        "/",
        "/gradio_api/vibe-edit",
    ],
)
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_only_what_a_pages_buttons_call_is_taken(path: str, method: str) -> None:
    assert status(request(path, method, content_length="2")) == 404


def test_a_button_is_taken_from_the_pages_own_windows_alone() -> None:
    join = "/gradio_api/run/press"
    assert status(request(join, "POST")) == 200
    assert status(request(join, "POST", origin="http://127.0.0.1:7860")) == 200
    assert status(request(join, "POST", origin="http://evil.example")) == 403
    assert status(request(join, "POST", origin="null")) == 403
    assert status(request(join, "POST", origin="http://127.0.0.1:8000")) == 403, "another program of this machine"
    shared = request(join, "POST", host="127.0.0.1:7860", origin="https://hub.example", x_forwarded_host="hub.example")
    assert status(shared) == 200


@pytest.mark.parametrize(("length", "expected"), [(str(LARGEST + 1), 413), ("", 411), ("-1", 411), (str(LARGEST), 200)])
def test_what_a_button_sends_is_small(length: str, expected: int) -> None:
    assert status(request("/gradio_api/run/predict", "POST", content_length=length)) == expected


def test_a_wrong_password_costs_time_and_a_right_one_none() -> None:
    paused: list[float] = []

    async def pause(seconds: float) -> None:
        paused.append(seconds)

    guard = Guard(open_app, pause=pause)
    assert asyncio.run(asked(guard, {**request("/login", "POST"), "password": "right"})) == 200
    assert not paused
    assert asyncio.run(asked(guard, request("/login", "POST"))) == 400
    assert paused == [1.0]


def test_a_visitor_tries_one_password_at_a_time_and_others_do_not_wait() -> None:
    async def many() -> tuple[list[int], int, int]:
        held, going, most = asyncio.Event(), 0, 0

        async def pause(seconds: float) -> None:
            nonlocal going, most
            going += 1
            most = max(most, going)
            await held.wait()
            going -= 1

        guard = Guard(open_app, pause=pause)
        tries = [asyncio.create_task(asked(guard, request("/login", "POST"))) for _ in range(TRIES + 3)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        owner = {**request("/login", "POST"), "password": "right", "client": ("10.0.0.2", 1)}
        entered = await asked(guard, owner)
        held.set()
        return await asyncio.gather(*tries), most, entered

    answers, most, entered = asyncio.run(many())
    assert entered == 200
    assert most == 1
    assert sorted(answers) == [400] * TRIES + [429] * 3


@pytest.mark.parametrize("begun", [True, False])
def test_what_breaks_on_its_way_is_a_line(begun: bool, caplog: pytest.LogCaptureFixture) -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        if begun:
            await send({"type": "http.response.start", "status": 418, "headers": []})
        raise KeyError(999)

    assert asyncio.run(asked(Guard(broken), request("/gradio_api/run/x", "POST"))) == (418 if begun else 500)
    assert "POST /gradio_api/run/x: KeyError: 999" in caplog.text
