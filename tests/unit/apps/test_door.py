"""Where a page is served and who is let in: addresses, ports, logins, and what the environment says of proxies."""

import asyncio
import http.client
import json
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raftdiff.apps import door as doors
from raftdiff.apps import page
from raftdiff.apps.door import Door, Served, serve
from raftdiff.cli.main import main
from raftdiff.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore")  # of Gradio's own making


def one_word() -> Any:
    async def built() -> Any:  # in an event loop, or Gradio makes some and leaves them open
        with page.blocks("a page") as blocks:
            page.gradio().HTML("here")
        return blocks

    return asyncio.run(built())


@pytest.fixture
def served() -> Iterator[Served]:
    here = serve(one_word(), Door(browser=False))
    yield here
    here.close()


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def status(address: str, **headers: str) -> int:
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
            urllib.request.Request(address, headers=headers)
        ) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as refused:
        return refused.code


def test_the_door_is_this_machines_alone_and_says_nothing() -> None:
    door = Door()
    assert door.host == "127.0.0.1"
    assert door.alone
    assert door.warning("shows it") is None
    assert door.login() is None


@pytest.mark.parametrize(
    ("door", "words"),
    [
        (Door(host="0.0.0.0"), "anybody on your network without a password; to ask for one: --auth NAME:PASSWORD."),
        (Door(host="::"), "anybody on your network without a password"),
        (Door(host="0.0.0.0", user="ada:secret"), "anybody on your network and knows the password. It shows it."),
        (Door(share=True), "anybody on the internet who has the address without a password"),
    ],
)
def test_an_open_door_is_said(door: Door, words: str) -> None:
    assert words in (door.warning("shows it") or "")


@pytest.mark.parametrize("user", ["ada", "ada:", ":secret", " :secret"])
def test_half_a_login_is_a_sentence(user: str) -> None:
    with pytest.raises(UserError, match="--auth: write NAME:PASSWORD"):
        Door(user=user).login()


@pytest.mark.parametrize(
    ("door", "words"),
    [
        (Door(port=80000), "--port 80000: a port is a number from 1 to 65535"),
        (Door(host="192.0.2.7"), "--host 192.0.2.7 is not an address of this machine"),
        (Door(host="256.1.1.1"), "--host 256.1.1.1: no machine of this name is known"),
        (Door(host="no such host"), "--host no such host: no machine of this name is known"),
        (Door(host="x" * 70), "no machine of this name is known"),
    ],
)
def test_a_wrong_address_is_a_sentence(door: Door, words: str) -> None:
    with pytest.raises(UserError, match=words):
        door.listen()


def test_a_port_that_is_taken_is_a_sentence() -> None:
    port = free_port()
    with Door(port=port).listen(), pytest.raises(UserError, match=f"--port {port} is taken by another program"):
        Door(port=port).listen()


def test_without_a_port_the_first_free_one_is_taken_until_none_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    first = free_port()
    monkeypatch.setattr(doors, "FIRST", first)
    monkeypatch.setattr(doors, "TRIED", 2)
    with Door(port=first).listen(), Door().listen() as other:
        assert other.getsockname()[1] == first + 1
        with pytest.raises(UserError, match=f"The ports {first} to {first + 1} are all taken; .* --port N"):
            Door().listen()


@pytest.mark.parametrize(
    "flags",
    [["--port", "80000"], ["--auth", "ada"], ["--host", "256.1.1.1"]],
)
@pytest.mark.parametrize("command", ["compare", "watch", "label"])
def test_wrong_flags_are_told_before_anything_is_opened(
    command: str, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, str(tmp_path / "no-run"), *flags]) == 2
    assert flags[0] in capsys.readouterr().err


def test_other_machines_are_told_an_address_of_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doors, "_network_address", lambda: "192.168.1.5")
    here = serve(one_word(), Door(host="0.0.0.0", browser=False))
    try:
        assert here.address.startswith("http://127.0.0.1:")
        assert here.elsewhere is not None
        assert here.elsewhere.startswith("http://192.168.1.5:")
        assert status(here.address, Host="its-name.example") == 200
    finally:
        here.close()


def test_addresses_with_colons_are_served(monkeypatch: pytest.MonkeyPatch) -> None:
    if not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    here = serve(one_word(), Door(host="::1", browser=False))
    try:
        assert here.address.startswith("http://[::1]:")
        assert status(here.address) == 200
    finally:
        here.close()


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:9", "socks5://127.0.0.1:9", "socks://127.0.0.1:9"])
def test_proxies_of_the_environment_are_not_asked(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, proxy)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    here = serve(one_word(), Door(browser=False))
    try:
        assert status(here.address) == 200
    finally:
        here.close()


def test_a_page_is_reached_by_this_machines_names_alone(served: Served) -> None:
    port = served.address.split(":")[-1].strip("/")
    assert status(served.address, Host=f"localhost:{port}") == 200
    assert status(served.address, Host=f"evil.example:{port}") == 403


def test_a_proxys_name_is_let_in_where_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_ROOT_PATH", "https://hub.example/user/ada/proxy/7860")
    here = serve(one_word(), Door(browser=False))
    try:
        assert status(here.address, Host="hub.example") == 200
        assert status(here.address, Host="evil.example") == 403
    finally:
        here.close()


def test_nothing_can_be_uploaded(served: Served) -> None:
    called = http.client.HTTPConnection("127.0.0.1", int(served.address.split(":")[-1].strip("/")))
    body = b"--x\r\nContent-Disposition: form-data; name=files; filename=it\r\n\r\nhello\r\n--x--\r\n"
    called.request("POST", "/gradio_api/upload", body, {"Content-Type": "multipart/form-data; boundary=x"})
    assert called.getresponse().status == 404
    called.close()
    assert not [path for path in page.scratch().rglob("*") if path.is_file() and path.name == "it"]


def test_a_login_lets_in_who_knows_it() -> None:
    here = serve(one_word(), Door(user="ada:correct-horse", browser=False))
    try:
        assert status(f"{here.address}config") == 401
        answer = urllib.request.Request(f"{here.address}login", b"username=ada&password=correct-horse")
        with urllib.request.urlopen(answer) as told:
            assert json.load(told) == {"success": True}
    finally:
        here.close()


def test_a_public_address_that_is_not_to_be_had_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    page.gradio()
    from gradio import networking

    def refusing(*args: Any) -> str:
        raise RuntimeError("Could not get share link from Gradio API Server.")

    monkeypatch.setattr(networking, "setup_tunnel", refusing)
    with pytest.raises(UserError, match="--share: Gradio's servers gave no public address"):
        serve(one_word(), Door(share=True, browser=False))
    assert "served" not in [thread.name for thread in threading.enumerate()]  # nothing is left that listens


def asking_word() -> Any:
    async def built() -> Any:
        with page.blocks("a page") as blocks:
            field, shown = page.gradio().Textbox(), page.gradio().HTML()
            field.change(page.told(page.words), field, [shown, page.mistake()], **page.ASKED)
        return blocks

    return asyncio.run(built())


def posted(address: str, body: Any) -> tuple[int, str]:
    called = http.client.HTTPConnection("127.0.0.1", int(address.rsplit(":", maxsplit=1)[-1].strip("/")))
    called.request("POST", "/gradio_api/run/predict", json.dumps(body), {"Content-Type": "application/json"})
    answer = called.getresponse()
    told = answer.status, answer.read().decode()
    called.close()
    return told


def test_requests_written_by_hand_are_refused_and_reach_no_file(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """An object that names a file made Gradio copy it to where it is served from."""
    (tmp_path / "secret.txt").write_text("hush")
    named = {"path": str(tmp_path / "secret.txt"), "meta": {"_type": "gradio.FileData"}}
    here = serve(asking_word(), Door(browser=False))
    try:
        ask = {"fn_index": 0, "session_hash": "one"}
        assert "a cat" in posted(here.address, {**ask, "data": ["a cat"]})[1]
        assert "Here a text belongs, not 7" in posted(here.address, {**ask, "data": [7]})[1]
        for data in ([named], [[named]], [{}]):
            status, told = posted(here.address, {**ask, "data": data})
            assert status == 500
            assert "No window of this page asks like this: with lists or objects" in told
        assert "with 0 values instead of 1" in posted(here.address, {**ask, "data": []})[1]
        for wrong in ({**ask, "data": "x"}, ask, [], {"data": [], "fn_index": 999}, {"data": ["x"], "fn_index": "y"}):
            assert posted(here.address, wrong)[0] >= 400
    finally:
        here.close()
    assert "Traceback" not in capfd.readouterr().err
    assert not list(page.scratch().rglob("secret.txt"))
