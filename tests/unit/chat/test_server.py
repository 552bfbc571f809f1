"""The chat client against a server of the standard library on this machine."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from raftdiff.chat import server as servers
from raftdiff.chat.server import ChatServer
from raftdiff.errors import UserError

HELLO = [{"role": "user", "content": "Hello."}]
Reply = tuple[int, dict[str, str], Any]


@dataclass
class Stub:
    """Plays back ``replies`` (status, headers, body), the last one for ever, and keeps what it was asked."""

    replies: list[Reply]
    asked: list[tuple[str, dict[str, str], Any]] = field(default_factory=list)
    url: str = ""


def choices(*texts: str | None) -> Reply:
    return 200, {}, {"choices": [{"index": n, "message": {"content": text}} for n, text in enumerate(texts)]}


@pytest.fixture
def serve() -> Iterator[Callable[..., Stub]]:
    running = []

    def start(*replies: Reply) -> Stub:
        stub = Stub(list(replies))

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"] or 0)) or b"null")
                stub.asked.append((self.path, dict(self.headers), body))
                status, headers, answer = stub.replies[min(len(stub.asked), len(stub.replies)) - 1]
                data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                for name, value in {"Content-Length": str(len(data)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST  # noqa: N815  # a redirect that was followed would arrive as this

            def log_message(self, *args: Any) -> None:
                del args

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        running.append(server)
        stub.url = f"http://127.0.0.1:{server.server_port}/v1"
        return stub

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


def client(stub: Stub, **changes: Any) -> ChatServer:
    return ChatServer(stub.url, "tiny", **{"pause": 0.0, "timeout": 5.0, **changes})


def test_the_request_is_what_the_format_says(serve: Callable[..., Stub]) -> None:
    stub = serve(choices("Hi."))
    server = client(stub, extra={"top_p": 0.5})
    assert server.replies(HELLO, temperature=0.0, max_tokens=9, seed=3, stop=["\n"]) == [("Hi.", False)]
    path, headers, body = stub.asked[0]
    assert path == "/v1/chat/completions"
    assert "Authorization" not in headers
    assert body == {
        "model": "tiny",
        "messages": HELLO,
        "temperature": 0.0,
        "max_tokens": 9,
        "seed": 3,
        "stop": ["\n"],
        "top_p": 0.5,
    }


def test_what_is_not_asked_for_is_not_sent(serve: Callable[..., Stub]) -> None:
    stub = serve(choices("Hi."))
    client(stub).replies(HELLO)
    assert set(stub.asked[0][2]) == {"model", "messages", "temperature"}


def test_a_server_that_gives_fewer_is_asked_for_the_rest(serve: Callable[..., Stub]) -> None:
    stub = serve(choices("a"), choices("b", "c"))
    assert client(stub).replies(HELLO, n=3, seed=2**31 - 1) == [("a", False), ("b", False), ("c", False)]
    assert [body.get("n") for _, _, body in stub.asked] == [3, 2]
    assert [body["seed"] for _, _, body in stub.asked] == [2**31 - 1, 0], "moved on, within what servers hold"


def test_more_than_was_asked_for_is_cut(serve: Callable[..., Stub]) -> None:
    assert client(serve(choices("a", "b", "c"))).replies(HELLO, n=2) == [("a", False), ("b", False)]


def test_a_reply_that_reached_the_most_tokens_was_cut_off(serve: Callable[..., Stub]) -> None:
    told = [
        {"message": {"content": text}, "finish_reason": reason} for text, reason in (("a�", "length"), ("b�", "stop"))
    ]
    stub = serve((200, {}, {"choices": [*told, {"message": {"content": "c"}}]}))
    assert client(stub).replies(HELLO, n=3) == [("a", True), ("b�", False), ("c", False)], "no torn letter"


def test_no_answer_at_all_is_asked_for_by_none(serve: Callable[..., Stub]) -> None:
    stub = serve(choices("a"))
    assert client(stub).replies(HELLO, n=0) == []
    assert stub.asked == []


def test_a_refusal_without_content_is_the_empty_text(serve: Callable[..., Stub]) -> None:
    assert client(serve(choices(None))).replies(HELLO) == [("", False)]
    held_back = (400, {}, {"error": {"message": "The response was filtered.", "code": "content_filter"}})
    assert client(serve(held_back)).replies(HELLO) == [("", False)]


def test_a_busy_server_is_asked_again(serve: Callable[..., Stub]) -> None:
    stub = serve((503, {}, {}), (429, {"Retry-After": "0"}, {"error": {"message": "slow down"}}), choices("Hi."))
    assert client(stub, retries=2).replies(HELLO) == [("Hi.", False)]
    assert len(stub.asked) == 3


def test_pauses_double_and_the_server_may_ask_for_more(
    serve: Callable[..., Stub], monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr("raftdiff.chat.server.sleep", slept.append)
    busy = (503, {}, {})
    asks = (429, {"Retry-After": "7"}, {})
    date = (429, {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, {})
    with pytest.raises(UserError, match=r"answered 503: .*after 6 tries. Is it running"):
        client(serve(busy, busy, asks, date, (503, {"Retry-After": "9999"}, {}), busy), pause=1.0, retries=5).replies(
            HELLO
        )
    assert slept == [1.0, 2.0, 7.0, 8.0, 60.0]


def test_a_wrong_request_is_not_repeated(serve: Callable[..., Stub]) -> None:
    stub = serve((404, {}, {"error": {"message": "The model 'tiny' does not exist."}}))
    with pytest.raises(UserError, match=r"answered 404: The model 'tiny' does not exist\. Is the model's name right"):
        client(stub).replies(HELLO)
    assert len(stub.asked) == 1


def test_nobody_there_gets_a_sentence() -> None:
    with pytest.raises(UserError, match=r"127.0.0.1:9/v1 gave no answer \(.*refused.*\), after 2 tries"):
        ChatServer("http://127.0.0.1:9/v1", "tiny", retries=1, pause=0.0).replies(HELLO)


def test_a_silent_server_times_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        with pytest.raises(UserError, match=r"gave no answer \(.*timed out.*\), after 1 try\."):
            ChatServer(url, "tiny", timeout=0.2, retries=0).replies(HELLO)


def test_a_reply_that_breaks_off_is_asked_for_again(serve: Callable[..., Stub]) -> None:
    stub = serve((200, {"Content-Length": "100"}, b'{"choices": ['), choices("Hi."))
    assert client(stub).replies(HELLO) == [("Hi.", False)]
    with pytest.raises(UserError, match=r"gave no answer \(IncompleteRead\(13 bytes read, 87 more expected\)\)"):
        client(serve((200, {"Content-Length": "100"}, b'{"choices": [')), retries=0).replies(HELLO)


@pytest.mark.parametrize("body", [{}, {"choices": []}, {"choices": [{"text": "a"}]}, [], {"choices": [{"message": 1}]}])
def test_another_form_of_reply_gets_a_sentence(serve: Callable[..., Stub], body: Any) -> None:
    with pytest.raises(UserError, match=r"without choices\[\].message.content. Does it speak the OpenAI chat format"):
        client(serve((200, {}, body))).replies(HELLO)


def test_a_web_page_gets_a_sentence(serve: Callable[..., Stub]) -> None:
    with pytest.raises(UserError, match=r"not JSON. Does base_url end in /v1\?"):
        client(serve((200, {}, b"<html>Welcome</html>"))).replies(HELLO)


def test_the_key_travels_in_the_header_and_nowhere_else(
    serve: Callable[..., Stub], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-very-secret\n")
    stub = serve(choices("Hi."), (401, {}, {"error": {"message": "Incorrect API key provided: sk-very-secret."}}))
    server = client(stub, api_key_env="JUDGE_KEY")
    server.replies(HELLO)
    _, headers, body = stub.asked[0]
    assert headers["Authorization"] == "Bearer sk-very-secret"
    assert "secret" not in json.dumps(body)
    assert "secret" not in repr(server)
    with pytest.raises(UserError, match=r"401: Incorrect API key provided: \*\*\*\. Does api_key_env") as caught:
        server.replies(HELLO)
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_redirect_does_not_carry_the_key_away(serve: Callable[..., Stub], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-very-secret")
    elsewhere = serve(choices("Hi."))
    stub = serve((302, {"Location": f"{elsewhere.url}/chat/completions"}, b""))
    with pytest.raises(UserError, match=r"answered 302: .*Redirects are not followed"):
        client(stub, api_key_env="JUDGE_KEY").replies(HELLO)
    assert elsewhere.asked == []


def test_a_key_in_place_of_a_name_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="takes the name of an environment variable in capitals") as caught:
        ChatServer("http://localhost/v1", "tiny", "gsk_abc123")
    assert "abc123" not in str(caught.value)
    with pytest.raises(UserError, match="the environment variable RAFTDIFF_NO_KEY is not set; export it"):
        ChatServer("http://localhost/v1", "tiny", "RAFTDIFF_NO_KEY")
    monkeypatch.setenv("JUDGE_KEY", "sk-one\r\nX-Other: 1")
    with pytest.raises(UserError, match="what JUDGE_KEY holds cannot be a key") as caught:
        ChatServer("http://localhost/v1", "tiny", "JUDGE_KEY")
    assert "sk-one" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://host/v1",
        "localhost:8000",
        "",
        "http://",
        "http:///v1",
        "http://h/v1\n",
        "http://h é",
    ],
)
def test_only_http_addresses_are_asked(url: str) -> None:
    with pytest.raises(UserError, match="is not an http or https address; write it like http://localhost:8000/v1"):
        ChatServer(url, "tiny")


@pytest.mark.parametrize(
    "url", ["http://me:pass@host/v1", "me:pass@host", "https://host/v1?key=pass", "https://host/v1#pass"]
)
def test_an_address_with_a_secret_in_it_is_not_repeated(url: str) -> None:
    with pytest.raises(UserError, match="could give a key away") as caught:
        ChatServer(url, "tiny")
    assert "pass" not in str(caught.value).replace("password", "")


def test_a_port_out_of_range_gets_a_sentence() -> None:
    with pytest.raises(UserError, match="base_url is not an address"):
        ChatServer("http://host:99999/v1", "tiny")


@contextmanager
def talking(say: Callable[[socket.socket], None]) -> Iterator[str]:
    """The address of a server that reads a request and leaves the rest to ``say``."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection, suppress(OSError):
                    connection.recv(2**16)
                    say(connection)

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"


@pytest.mark.parametrize("before", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n"])
def test_a_reply_that_drips_has_an_end(before: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then keeps the timeout from ever passing, in the headers as in the body."""
    monkeypatch.setattr(servers, "LONGEST_REPLY", 0.01)
    done = threading.Event()

    def drip(connection: socket.socket) -> None:
        connection.sendall(before)
        while not done.wait(0.05):
            connection.sendall(b"x")

    with talking(drip) as url:
        with pytest.raises(UserError, match=r"gave no answer \(no whole reply within 0\.5 s\), after 1 try"):
            ChatServer(url, "tiny", timeout=50.0, retries=0).replies(HELLO)
        done.set()


def test_a_reply_without_end_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "LARGEST_REPLY", 2**20)

    def flood(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            connection.sendall(b" " * 2**16)

    with (
        talking(flood) as url,
        pytest.raises(UserError, match=r"/v1/chat/completions sent a reply of more than 1 MiB, which is no answer"),
    ):
        ChatServer(url, "tiny", retries=3).replies(HELLO)


def test_a_reply_of_brackets_alone_is_a_sentence(serve: Callable[..., Stub]) -> None:
    with pytest.raises(UserError, match="sent a reply that is not JSON"):
        client(serve((200, {}, b"[" * 10**5))).replies(HELLO)
    with pytest.raises(UserError, match="answered 401"):
        client(serve((401, {}, b"[" * 10**4))).replies(HELLO)
