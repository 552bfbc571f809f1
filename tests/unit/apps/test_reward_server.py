"""A reward behind a socket of this machine, and what asks for its scores."""

import base64
import io
import json
import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from raftdiff.apps import reward_server
from raftdiff.apps.door import Door, addresses
from raftdiff.apps.reward_server import Served, token
from raftdiff.errors import UserError
from raftdiff.rewards.callable import CallableReward
from raftdiff.rewards.duplicates import DuplicatesConfig, DuplicateTextsConfig
from raftdiff.rewards.remote import TOKEN, RemoteConfig, RemoteReward, png, row
from raftdiff.rewards.signals import SaturationConfig
from raftdiff.testing.conformance import check_reward
from raftdiff.testing.examples import answer_samples, reward_samples
from raftdiff.types import KeepsReplies, Reward, Sample

SECRET = "a-token-of-the-tests"
Serve = Callable[..., str]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Serves a reward; gives its base_url."""
    monkeypatch.setenv(TOKEN, SECRET)
    running: list[Served] = []

    def start(reward: Reward[Any], media: Any = "picture", digest: str = "") -> str:
        door = Door(browser=False)
        listening = door.listen()
        running.append(Served(reward, media, listening, token=SECRET, digest=digest))
        return f"{addresses(door, listening.getsockname()[1])[0]}v1"

    yield start
    for served in running:
        served.close()


def remote(url: str, **options: Any) -> RemoteReward:
    return RemoteConfig(base_url=url, timeout=20, retries=0, **options).build()


class Counting:
    """The mean of the red channel; keeps what it saw. Higher is redder."""

    name = "counting"

    def __init__(self) -> None:
        self.seen: list[Sample[Any]] = []

    def score(self, samples: Sequence[Sample[Any]]) -> torch.Tensor:
        self.seen += samples
        return torch.tensor([float(np.asarray(one.media)[..., 0].mean()) for one in samples])


def test_it_scores_as_the_reward_itself_and_keeps_the_contract(serve: Serve) -> None:
    samples = reward_samples(count=5)
    found = remote(serve(SaturationConfig().build()), batch_size=2)
    torch.testing.assert_close(found.score(samples), SaturationConfig().build().score(samples))
    report = check_reward(found, samples)
    assert all(check.passed for check in report.checks), str(report)


def test_what_the_reward_sees_is_what_was_sent(serve: Serve) -> None:
    reward = Counting()
    (given,) = reward_samples(count=1)
    meta = {"include": [{"class": "fox", "count": 2}], "target": "Füchse"}
    given = replace(given, index=3, seed=7, source="teacher", prompt=replace(given.prompt, meta=meta))
    remote(serve(reward)).score([given])
    (seen,) = reward.seen
    assert (seen.prompt.id, seen.prompt.caption, dict(seen.prompt.meta)) == ("example-0", "a red circle", meta)
    assert (seen.index, seen.seed, seen.source) == (3, 7, "teacher")
    assert seen.media.tobytes() == given.media.tobytes()


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1", "CMYK", "F"])
def test_pictures_of_any_mode_arrive_to_the_pixel(mode: str) -> None:
    ramp = Image.linear_gradient("L").resize((16, 16))
    picture = ramp.convert("RGB").convert(mode)
    with Image.open(io.BytesIO(base64.b64decode(png(picture)))) as arrived:
        assert arrived.convert("RGB").tobytes() == picture.convert("RGB").tobytes()


def test_a_picture_is_asked_for_once_and_after_a_failure_only_the_rest(serve: Serve, tmp_path: Path) -> None:
    reward, samples = Counting(), reward_samples(count=4)
    url = serve(reward, digest="one")
    asking = remote(url)
    assert isinstance(asking, KeepsReplies)
    asking.keep_replies(tmp_path / "replies.jsonl")
    first = asking.score([*samples[:3], samples[0]])
    assert len(reward.seen) == 3
    assert torch.equal(asking.score(samples)[:3], first[:3])
    assert len(reward.seen) == 4
    again = remote(url)  # another process, which goes on where the first was killed
    again.keep_replies(tmp_path / "replies.jsonl")
    assert torch.equal(again.score(samples), asking.score(samples))
    assert len(reward.seen) == 4
    other = remote(serve(reward, digest="two"))  # of another reward nothing is known
    other.keep_replies(tmp_path / "replies.jsonl")
    other.score(samples)
    assert len(reward.seen) == 8


def test_a_damaged_reply_on_disk_is_asked_for_again(serve: Serve, tmp_path: Path) -> None:
    reward, samples, file = Counting(), reward_samples(count=2), tmp_path / "replies.jsonl"
    url = serve(reward)
    first = remote(url)
    first.keep_replies(file)
    wanted = first.score(samples)
    rows = [json.loads(line) for line in file.read_text().splitlines() if line]
    file.write_text(
        "".join(json.dumps({**it, "reply": reply}) + "\n" for it, reply in zip(rows, ("[1, 2]", "{"), strict=True))
    )
    again = remote(url)
    again.keep_replies(file)
    assert torch.equal(again.score(samples), wanted)
    assert len(reward.seen) == 4


def test_nan_discards_over_the_line_too(serve: Serve) -> None:
    url = serve(CallableReward(lambda images: [1.0, float("nan"), 3.0], function="mine:f"))
    assert remote(url).score(reward_samples(count=3)).isnan().tolist() == [False, True, False]


def test_answers_are_scored_too_and_the_other_medium_is_a_sentence(serve: Serve) -> None:
    url = serve(CallableReward(lambda texts: list(map(len, texts)), function="mine:f"), "text")
    answers = answer_samples(count=3)
    assert remote(url).score(answers).tolist() == [len(one.media) for one in answers]
    with pytest.raises(UserError, match=r"'remote': the server at http.* scores texts, and example-0-000 is none"):
        remote(url).score(reward_samples(count=1))


def restless(images: list[Image.Image]) -> list[float]:
    COUNT.append(0)
    return [float(len(COUNT))] * len(images)


COUNT: list[int] = []


@pytest.mark.parametrize(
    ("reward", "failing"),
    [
        (CallableReward(lambda images: [float(image.width) for image in images], function="mine:f"), {"direction"}),
        (CallableReward(restless, function="mine:restless"), {"direction", "deterministic", "batch-invariant"}),
    ],
)
def test_what_is_checked_is_the_reward_there_and_not_the_client(
    serve: Serve, reward: Reward[Any], failing: set[str]
) -> None:
    report = check_reward(remote(serve(reward)), reward_samples(count=4))
    assert {check.name for check in report.checks if not check.passed} - {"varied"} == failing


@pytest.mark.parametrize("size", [1, 3, 100])
def test_whole_prompts_stay_whole_over_the_line(serve: Serve, size: int) -> None:
    for own, media, samples in (
        (DuplicatesConfig(discard=0.5).build(), "picture", reward_samples(count=6)),
        (DuplicateTextsConfig(discard=0.5).build(), "text", answer_samples(count=6)),
    ):
        asking = remote(serve(own, media), batch_size=size)
        assert asking.whole_prompts
        report = check_reward(asking, samples)
        assert report.passed, str(report)
        torch.testing.assert_close(asking.score(samples), own.score(samples), equal_nan=True)


def broken(images: list[Any]) -> list[float]:
    raise ZeroDivisionError("my own mistake")


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (broken, "'remote': the server at .* says: the reward 'mine' failed: ZeroDivisionError: my own mistake"),
        (lambda images: 1.0, "says: The reward function 'mine:f' returned a float. It should return 2 numbers"),
        (lambda images: [float("inf")] * 2, "says: The reward function 'mine:f' returned infinity"),
    ],
)
def test_what_goes_wrong_there_is_told_here(
    serve: Serve, call: Callable[..., Any], sentence: str, caplog: pytest.LogCaptureFixture
) -> None:
    asking = remote(serve(CallableReward(call, function="mine:f", name="mine")))
    with pytest.raises(UserError, match=sentence):
        asking.score(reward_samples(count=2))
    assert ("ZeroDivisionError" in caplog.text) == (call is broken), "with its traceback, where the reward is"


def asked(url: str, path: str, body: bytes, **headers: str) -> tuple[int, Any]:
    request = urllib.request.Request(
        f"{url}/{path}", body, {"Authorization": f"Bearer {SECRET}", **headers}, method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=20) as reply:
            return reply.status, json.loads(reply.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())["error"]


def test_who_has_no_token_hears_nothing(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    url = serve(Counting())
    assert asked(url, "reward", b"{}", Authorization="Bearer wrong")[0] == 401
    assert asked(url, "scores", b"{}" * 10**6, Authorization="")[0] == 401
    monkeypatch.setenv(TOKEN, "wrong")
    with pytest.raises(UserError, match="answered 401: give the token .* Does api_key_env name the"):
        remote(url)
    monkeypatch.delenv(TOKEN)
    with pytest.raises(UserError, match=f"the environment variable {TOKEN} is not set"):
        remote(url)
    (need,) = RemoteConfig(base_url=url).needs(str)
    assert (need.key, need.fetched) == ("api_key_env", False)


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        (b"not JSON", 400, "the request is not JSON"),
        (b"[" * 10**5, 400, "the request is not JSON"),
        (b"[]", 400, "request"),
        (b"{}", 400, "samples"),
        (b'{"samples": []}', 400, "samples"),
        (b'{"samples": [{"prompt": "a", "caption": "a", "run": "rm"}]}', 400, "run"),
        (
            b'{"samples": [{"prompt": "a", "caption": "a", "text": "yes"}]}',
            400,
            "a-000 is no picture",
        ),
        (b'{"samples": [{"prompt": "a", "caption": "a", "picture": "?"}]}', 400, "a-000: the picture is no PNG"),
        (b'{"samples": [{"prompt": "a", "caption": "a", "picture": "R0lGODlh"}]}', 400, "a-000: the picture is no PNG"),
    ],
)
def test_what_is_asked_wrongly_is_a_sentence(serve: Serve, body: bytes, status: int, sentence: str) -> None:
    reward = Counting()
    found = asked(serve(reward), "scores", body)
    assert found[0] == status
    assert sentence in found[1]
    assert not reward.seen


def test_what_is_too_large_is_refused_before_it_is_read(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    url = serve(Counting())
    monkeypatch.setattr(reward_server, "MOST_PIXELS", 100)
    body = json.dumps({"samples": [row(reward_samples(count=1)[0])]}).encode()
    assert asked(url, "scores", body) == (413, "example-0-000: a picture of 64 x 64 is too large")
    monkeypatch.setattr(reward_server, "LARGEST", 10)
    assert asked(url, "scores", body)[0] == 413
    assert asked(url, "elsewhere", b"{}") == (404, "there are /v1/reward and /v1/scores here")
    port = int(url.split(":")[2].split("/")[0])
    with socket.create_connection(("127.0.0.1", port), timeout=20) as line:
        line.sendall(f"POST /v1/reward HTTP/1.0\r\nAuthorization: Bearer {SECRET}\r\n\r\n".encode())
        assert line.recv(64).startswith(b"HTTP/1.0 411")


def test_the_token_is_the_environments_or_a_fresh_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN, raising=False)
    one, other = token(), token()
    assert one[1]
    assert one != other
    assert len(one[0]) >= 32
    monkeypatch.setenv(TOKEN, "mine")
    assert token() == ("mine", False)
