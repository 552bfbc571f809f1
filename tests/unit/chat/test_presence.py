"""Whether a server is there and knows a model: what is certain is told, and what may be otherwise passes."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from raftdiff.chat import presence
from raftdiff.chat.presence import demand_chat, demand_model
from raftdiff.chat.server import ChatServer
from raftdiff.errors import UserError
from raftdiff.llm.sampling.served import ServerSamplerConfig
from raftdiff.mixing import MixSampler
from raftdiff.rewards.ocr import OcrReward
from raftdiff.rewards.ocr_readers import VlmReader
from raftdiff.rewards.server_judge import ServerConfig
from raftdiff.rewards.vqa import VqaConfig
from raftdiff.scoring import demand_servers
from raftdiff.testing.servers import Replying

LIST = (200, {"object": "list", "data": [{"id": "judge-8b"}, {"id": "writer"}]})
NO_LIST = (404, {"error": "no such page"})
UNKNOWN = (404, {"error": {"message": "The model does not exist"}})
ANSWER = (200, {"choices": [{"message": {"content": "Hi"}}]})


@dataclass
class Stub:
    url: str
    asked: list[tuple[str, Any]] = field(default_factory=list)


@pytest.fixture
def serve() -> Iterator[Callable[..., Stub]]:
    """A server that answers a question for its models with the one, and any other with the other."""
    running = []

    def start(models: tuple[int, Any], chat: tuple[int, Any]) -> Stub:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"] or 0)) or b"null")
                stub.asked.append((f"{self.command} {self.path}", body))
                status, answer = models if self.command == "GET" else chat
                data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST  # noqa: N815

            def log_message(self, *args: Any) -> None:
                del args

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        running.append(server)
        stub = Stub(f"http://127.0.0.1:{server.server_port}/v1")
        return stub

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


@pytest.fixture
def nobody() -> str:
    """An address at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        return f"http://127.0.0.1:{closed.getsockname()[1]}/v1"


def test_a_model_in_the_list_costs_no_token(serve: Callable[..., Stub]) -> None:
    stub = serve(LIST, UNKNOWN)
    demand_model(stub.url, "judge-8b")
    assert stub.asked == [("GET /v1/models", None)]


def test_a_name_that_the_list_lacks_and_the_server_refuses_is_told_with_the_nearest(serve: Callable[..., Stub]) -> None:
    told = r"has no model 'judge-8': The model does not exist\. Did you mean 'judge-8b'\? Known: judge-8b, writer\.$"
    with pytest.raises(UserError, match=told):
        demand_model(serve(LIST, UNKNOWN).url, "judge-8")


@pytest.mark.parametrize("models", [LIST, NO_LIST, (200, b"<html>"), (200, []), (500, {}), (200, {"data": [{}, 3]})])
def test_a_name_that_no_list_has_passes_where_the_model_answers(serve: Callable[..., Stub], models: Any) -> None:
    stub = serve(models, ANSWER)
    demand_model(stub.url, "alias", extra={"max_completion_tokens": 9})
    (_, (path, body)) = stub.asked
    assert path == "POST /v1/chat/completions"
    assert (body["model"], body["max_tokens"], body["max_completion_tokens"]) == ("alias", 1, 9)


@pytest.mark.parametrize("chat", [(400, {"error": "max_tokens is not supported"}), (429, {}), (503, {}), (422, {})])
def test_what_is_no_clear_refusal_passes_at_once(serve: Callable[..., Stub], chat: Any) -> None:
    stub = serve(NO_LIST, chat)
    demand_model(stub.url, "judge")
    assert len(stub.asked) == 2, "none is tried again"


@pytest.mark.parametrize(
    ("chat", "sentence"),
    [
        (UNKNOWN, r"answered 404: The model does not exist\. Is the model's name right, and does base_url end in /v1"),
        ((401, {"error": "who?"}), r"answered 401: who\?\. Does api_key_env name the variable with the right key"),
        ((200, b"<html>"), "sent a reply that is not JSON. Does base_url end in /v1"),
        ((301, {}), "Redirects are not followed"),
    ],
)
def test_without_a_list_a_wrong_path_name_or_key_is_told(serve: Callable[..., Stub], chat: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        demand_model(serve(NO_LIST, chat).url, "judge")


def test_a_server_that_is_not_there_is_told_and_one_that_is_slow_is_not(
    nobody: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"gave no answer \(.*refused\), after 1 try\. Is it running"):
        demand_model(nobody, "judge", retries=0)
    monkeypatch.setattr(presence, "PATIENCE", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as hanging:  # takes the request and never answers
        demand_model(f"http://127.0.0.1:{hanging.getsockname()[1]}/v1", "judge", timeout=60.0, retries=4, pause=60.0)


def test_a_client_is_asked_as_it_will_ask(serve: Callable[..., Stub], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAFTDIFF_TEST_KEY", "k")
    stub = serve(NO_LIST, ANSWER)
    demand_chat(ChatServer(stub.url, "judge", "RAFTDIFF_TEST_KEY", extra={"top_p": 0.5}))
    assert stub.asked[1][1]["top_p"] == 0.5
    demand_chat(Replying("a stand-in is there"))


def test_whoever_asks_a_server_says_that_it_is_not_there(nobody: str) -> None:
    config = VqaConfig(model="judge", server=nobody, retries=0)
    vlm = config.vlm("cpu", str)
    judge = ServerConfig(base_url=nobody, model="judge", retries=0).build()
    teacher = ServerSamplerConfig(base_url=nobody, model="teacher", retries=0).build()
    for asking in (config.build(), OcrReward(VlmReader(vlm)), judge, teacher):  # type: ignore[arg-type]
        with pytest.raises(UserError, match=r"gave no answer \(.*refused"):
            demand_servers([object(), asking])
    with pytest.raises(UserError, match=r"gave no answer \(.*refused"):
        demand_servers([MixSampler([(1, object()), (1, teacher)])])  # type: ignore[list-item]
