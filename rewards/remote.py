"""A reward in another process or on another machine, over HTTP: where one environment cannot hold both.

``raftdiff rewards serve`` is the other side. JSON goes there and back, pictures in it as PNG; nothing that is run.
"""

import base64
import contextlib
import hashlib
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import torch
from jaxtyping import Float32
from PIL import Image
from pydantic import Field, model_validator

from raftdiff.chat.kept import Remembered
from raftdiff.chat.server import check_address, demand_variable, key_in, key_needs, post
from raftdiff.errors import Need, UserError, printable
from raftdiff.measures.pictures import on_paper
from raftdiff.recipes.config import RewardConfig
from raftdiff.scoring import by_prompt, numbers
from raftdiff.types import Sample

TOKEN = "RAFTDIFF_REWARD_TOKEN"
"""The environment variable that holds the token, on both sides."""
MODES = ("1", "L", "LA", "P", "RGB", "RGBA")
"""Pictures that PNG holds as they are."""
Media = Literal["picture", "text"]
Ask = Callable[[str, Mapping[str, Any]], Any]
"""What a server answers to a request at a path."""


class RemoteConfig(RewardConfig):
    type: Literal["remote"] = "remote"
    name: str = "remote"
    """The column of this reward in tables and logs."""
    weight: float = Field(default=1.0, allow_inf_nan=False)
    """Factor in the total reward."""
    base_url: str
    """Where `raftdiff rewards serve` serves, for example http://127.0.0.1:7860/v1."""
    api_key_env: str | None = TOKEN
    """The environment variable that holds the server's token; never the token itself."""
    timeout: float = Field(default=120.0, gt=0)
    """Seconds without a byte before a try counts as failed: what the server needs for one batch. Of a reply that
    comes in drips, the whole may take ten times as many."""
    retries: int = Field(default=4, ge=0)
    """Further tries, after pauses that double."""
    batch_size: int = Field(default=32, ge=1)
    """Samples in one request; more where a prompt has more and the reward compares its candidates."""

    @model_validator(mode="after")  # not of the field: its mistakes are told with the value, which may be a token
    def _key_by_name(self) -> "RemoteConfig":
        demand_variable(self.api_key_env)
        return self

    def needs(self, resolve: Callable[[str], str]) -> Iterator[Need]:
        """What is not on this machine; see ``recipes.needs``."""
        del resolve
        yield from key_needs(self.api_key_env)

    def build(self, *, device: str = "cpu", resolve: Callable[[str], str] = str) -> "RemoteReward":
        """
        Raises:
            UserError: nobody answers there, or another than a server of rewards.
        """
        del device, resolve  # the reward is elsewhere
        check_address(self.base_url)
        key_in(self.api_key_env)

        def refused(status: int, text: str) -> None:
            if status in (400, 404, 411, 413, 422):  # in the words of raftdiff's own server
                raise UserError(f"The reward '{self.name}': the server at {self.base_url} says: {text}.")

        def ask(path: str, body: Mapping[str, Any]) -> Any:
            return post(
                self.base_url,
                path,
                body,
                api_key_env=self.api_key_env,
                timeout=self.timeout,
                retries=self.retries,
                instead=refused,
            )

        return RemoteReward(ask, where=self.base_url, batch_size=self.batch_size, name=self.name)


@final
class RemoteReward:
    """What a reward behind a server says, in its own unit and range. Higher is better; NaN discards.

    The server is asked once for each picture or answer to a prompt, and what it said is remembered; within a round that
    is kept on disk too, so that one that failed asks only for the rest. Of a reward that compares the candidates of a
    prompt, whole prompts are asked for and remembered.

    Raises:
        UserError: nobody answers, the reward there fails, it scores the other medium, or a reply is not one number a
            sample.
    """

    def __init__(self, ask: Ask, *, where: str, batch_size: int = 32, name: str = "remote") -> None:
        self.name = name
        self._ask, self._who, self._batch = ask, f"The server at {where}", batch_size
        told = ask("reward", {})
        if not isinstance(told, Mapping) or told.get("media") not in ("picture", "text"):
            raise UserError(
                f"{self._who} does not say which reward it serves. Is it 'raftdiff rewards serve', and base_url its "
                "address with /v1?"
            )
        self._media: Media = told["media"]
        self.where = where
        self.whole_prompts = told.get("whole_prompts") is True
        self.description = printable(str(told.get("description") or ""))
        """What the reward there says of itself."""
        self._mark = hashlib.sha256(f"{where} {told.get('digest')}".encode()).digest()
        self._known = Remembered()

    def forget(self) -> None:
        """Ask again for what was asked before: for whoever wants to know whether the answers are the same."""
        self._known = Remembered()

    def keep_replies(self, file: Path) -> None:
        """Keep scores in ``file`` from now on, and ask for none that is there."""
        self._known.keep(file)

    def score(self, samples: Sequence[Sample[Any]]) -> Float32[torch.Tensor, " samples"]:
        if wrong := [one for one in samples if isinstance(one.media, str) != (self._media == "text")]:
            raise UserError(
                f"The reward '{self.name}': {self._who[:1].lower()}{self._who[1:]} scores {self._media}s, and "
                f"{wrong[0].prompt.id}-{wrong[0].index:03d} is none."
            )
        rows = [row(sample) for sample in samples]
        prompts = by_prompt((sample.prompt.id, sample.index) for sample in samples)
        units = prompts if self.whole_prompts else [[place] for place in range(len(samples))]
        marks = [self._marked([rows[place] for place in places]) for places in units]
        found, fresh = {}, {}
        for mark, places in zip(marks, units, strict=True):
            said = self._remembered(mark, len(places))
            if said is None:
                fresh[mark] = places
            else:
                found[mark] = said
        for some in _batches(fresh, self._batch):
            found |= self._asked(some, rows)
        scores = np.full(len(samples), np.nan)
        for mark, places in zip(marks, units, strict=True):
            scores[places] = found[mark]
        return torch.from_numpy(scores).float()

    def _asked(self, some: Mapping[str, Sequence[int]], rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
        """What the server says of some samples, remembered."""
        places = [place for several in some.values() for place in several]
        reply = self._ask("scores", {"samples": [rows[place] for place in places]})
        told = reply.get("scores") if isinstance(reply, Mapping) else None
        if not isinstance(told, list) or not all(it is None or _is_number(it) for it in told):
            raise UserError(f"{self._who} sent a reply without 'scores', a list of numbers and null.")
        values = iter(numbers([np.nan if it is None else it for it in told], len(places), self._who).tolist())
        found = {mark: [next(values) for _ in several] for mark, several in some.items()}
        for mark, said in found.items():
            self._known.add(mark, json.dumps([None if math.isnan(it) else it for it in said]))
        return found

    def _remembered(self, mark: str, count: int) -> list[float] | None:
        with contextlib.suppress(ValueError, TypeError, RecursionError):  # somebody's edit is asked for again
            told = json.loads(self._known.get(mark) or "")
            said = [math.nan if it is None else float(it) for it in told]
            if len(said) == count:
                return said
        return None

    def _marked(self, rows: Sequence[Mapping[str, Any]]) -> str:
        digest = hashlib.sha256(self._mark)
        for one in rows:
            digest.update(json.dumps(one, sort_keys=True).encode())
        return digest.hexdigest()[:32]


def row(sample: Sample[Any]) -> dict[str, Any]:
    """What goes over the line of a sample."""
    prompt = sample.prompt
    told = {
        "prompt": prompt.id,
        "index": sample.index,
        "seed": sample.seed,
        "source": sample.source,
        "caption": prompt.caption,
        "metadata": json.loads(json.dumps(dict(prompt.meta), default=str)),
    }
    return told | ({"text": sample.media} if isinstance(sample.media, str) else {"picture": png(sample.media)})


def png(picture: Image.Image) -> str:
    """A picture as PNG in base64, to the pixel; of a mode that PNG has not, as it is looked at."""
    buffer = io.BytesIO()
    (picture if picture.mode in MODES else on_paper(picture)).save(buffer, format="PNG", compress_level=1)
    return base64.b64encode(buffer.getvalue()).decode()


def _batches(units: Mapping[str, Sequence[int]], size: int) -> Iterator[dict[str, Sequence[int]]]:
    """Of at most ``size`` samples, where no unit alone has more."""
    batch: dict[str, Sequence[int]] = {}
    for mark, places in units.items():
        if batch and sum(map(len, batch.values())) + len(places) > size:
            yield batch
            batch = {}
        batch[mark] = places
    if batch:
        yield batch


def _is_number(told: Any) -> bool:
    return isinstance(told, int | float) and not isinstance(told, bool)
