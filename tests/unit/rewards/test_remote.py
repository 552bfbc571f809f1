"""What a hostile or dead server does to whoever asks it for scores. How a good one is asked: ``test_reward_server``."""

import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from raftdiff.errors import UserError
from raftdiff.ranking import Ranker
from raftdiff.recipes.config import check
from raftdiff.rewards.remote import RemoteConfig, RemoteReward
from raftdiff.selection.best import BestOfKConfig
from raftdiff.testing.examples import reward_samples

SAMPLES = reward_samples(count=3)
PICTURES = {"media": "picture", "name": "x"}
Serve = Callable[..., str]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """A server that says what it is told to: a status and a body, whatever is asked, the last for ever. No pauses."""
    monkeypatch.setattr("raftdiff.chat.server.sleep", lambda seconds: None)
    running = []

    def start(*replies: tuple[int, Any]) -> str:
        left = list(replies)

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                status, told = left.pop(0) if len(left) > 1 else left[0]
                data = told if isinstance(told, bytes) else json.dumps(told).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: Any) -> None:
                del args

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        running.append(server)
        return f"http://127.0.0.1:{server.server_port}/v1"

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


def remote(url: str, **options: Any) -> RemoteReward:
    return RemoteConfig(base_url=url, api_key_env=None, **{"timeout": 20.0, "retries": 2, **options}).build()


@pytest.mark.parametrize("told", [{}, [], {"media": "sound"}, {"choices": []}, "yes", None])
def test_what_serves_no_reward_is_told_before_anything_is_drawn(serve: Serve, told: Any) -> None:
    with pytest.raises(UserError, match="does not say which reward it serves. Is it 'raftdiff rewards serve'"):
        remote(serve((200, told)))


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        (b"\x80\x04garbage", "sent a reply that is not JSON"),
        ({"scores": [1.0, 2.0]}, "returned a list of 2 items .* It should return 3 numbers, one for each sample"),
        ({"scores": [1.0, 2.0, "3"]}, "sent a reply without 'scores', a list of numbers and null"),
        ({"scores": [1.0, 2.0, True]}, "sent a reply without 'scores', a list of numbers and null"),
        ({"scores": [1.0, 2.0, [3.0]]}, "sent a reply without 'scores', a list of numbers and null"),
        ({"scores": {"a": 1}}, "sent a reply without 'scores', a list of numbers and null"),
        ({"score": [1, 2, 3]}, "sent a reply without 'scores', a list of numbers and null"),
        ([1, 2, 3], "sent a reply without 'scores', a list of numbers and null"),
        (b'{"scores": [1, Infinity, 3]}', "returned infinity for 1 of 3 samples"),
        (b'{"scores": [1, 1' + b"0" * 400 + b", 3]}", "returned a whole number that is too large for a score"),
    ],
)
def test_a_wrong_reply_is_a_sentence_that_names_the_server(serve: Serve, told: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=f"The server at http://127.0.0.1.*{sentence}"):
        remote(serve((200, PICTURES), (200, told))).score(SAMPLES)


def test_nan_is_a_discard_however_it_is_spelled(serve: Serve) -> None:
    found = remote(serve((200, PICTURES), (200, b'{"scores": [NaN, null, 3]}'))).score(SAMPLES)
    assert found.isnan().tolist() == [True, True, False]


def test_what_may_pass_is_tried_again_and_what_may_not_is_told_at_once(serve: Serve) -> None:
    good = (200, {"scores": [1, 2, 3]})
    assert remote(serve((503, b""), (200, PICTURES), (500, b"<html>"), (429, b""), good)).score(SAMPLES)[2] == 3
    with pytest.raises(UserError, match=r"The server at .* answered 500: out of memory, after 3 tries"):
        remote(serve((200, PICTURES), (500, {"error": "out of memory"}))).score(SAMPLES)
    with pytest.raises(UserError, match=r"'remote': the server at .* says: the reward 'x' failed: it is broken\.$"):
        remote(serve((200, PICTURES), (422, {"error": "the reward 'x' failed: it is broken"}), good)).score(SAMPLES)


def test_a_server_cannot_write_on_the_terminal(serve: Serve) -> None:
    evil = "red \x1b[31m and \x9b2J \u202e"
    shown = r"red \x1b[31m and \x9b2J \u202e"
    with pytest.raises(UserError, match=re.escape(shown)):
        remote(serve((200, PICTURES), (422, {"error": evil}))).score(SAMPLES)
    with pytest.raises(UserError, match=re.escape(shown)):
        remote(serve((200, PICTURES), (401, {"error": {"message": evil}}))).score(SAMPLES)
    assert remote(serve((200, {**PICTURES, "description": evil}))).description == shown


def test_a_server_that_is_not_there_or_hangs_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raftdiff.chat.server.sleep", lambda seconds: None)
    with socket.create_server(("127.0.0.1", 0)) as hanging:  # takes the request and never answers
        port = hanging.getsockname()[1]
        with pytest.raises(UserError, match=r"gave no answer \(timed out\), after 2 tries. Is it running"):
            remote(f"http://127.0.0.1:{port}/v1", timeout=0.1, retries=1)
    with pytest.raises(UserError, match=r"gave no answer \(.*refused.*\), after 3 tries. Is it running"):
        remote(f"http://127.0.0.1:{port}/v1")


def test_that_a_server_is_silent_is_said_at_once_and_once(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("raftdiff.chat.server.sleep", lambda seconds: None)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
    for _ in range(2):
        with pytest.raises(UserError, match="gave no answer"):
            remote(url, retries=4)
    (told,) = caplog.messages
    assert told.startswith(f"The server at {url} gave no answer (")
    assert told.endswith("refused); trying again for 15 s")


def test_what_is_wrong_with_all_scores_names_the_server(serve: Serve) -> None:
    url = serve((200, PICTURES), (200, {"scores": [None] * 3}))
    ranker = Ranker([(remote(url, name="far"), 1.0)], BestOfKConfig().build(seed=0))
    names = [sample.prompt.id for sample in SAMPLES]
    told = rf"The reward 'far', of the server at {url}, is NaN \(discard\) for all 3 candidates, so none is better than"
    with pytest.raises(UserError, match=told):
        ranker.score(iter([SAMPLES]), names, 1)


def test_a_token_in_place_of_its_name_and_a_wrong_address_are_sentences() -> None:
    with pytest.raises(UserError, match="api_key_env takes the name of an environment variable") as caught:
        check(RemoteConfig, {"base_url": "http://localhost:1/v1", "api_key_env": "sk-secret-token"})
    assert "sk-secret" not in str(caught.value)
    with pytest.raises(UserError, match="'localhost:1' is not an http or https address"):
        remote("localhost:1")
