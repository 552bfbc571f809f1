"""The run directory: commit, resume, read. What passes between the stages is a folder that a person can open.

A round is written aside as ``rounds/000.partial`` and renamed when it is complete: present means complete. Within it,
samples are committed as they come, so a killed run resumes in the middle of sampling. No pickle is ever written.
"""

import contextlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from raftdiff.config import Config, differing, digest, dump, plain
from raftdiff.disk import read_json, save_tensors, sync_all, write_text
from raftdiff.errors import UserError
from raftdiff.provenance import provenance
from raftdiff.types import Item, Key, Prompt, Sample, Scores, Selection, State

FORMAT = 1
NOT_IDENTITY = ("model.device", "logging")
"""Dotted recipe keys that do not change what a run computes; the digest leaves them out."""
EMPTY_RUN = {"recipe.yaml", "recipe.yaml.tmp", "run.json", "run.json.tmp", "rounds", "logs", "log.jsonl", ".lock"}
"""What a run that made nothing yet may hold."""
FORKED = ("ranker", "finetuner", "evaluation", "loop.rounds", "loop.replay_rounds", "loop.patience", "name")
"""What may differ in a fork; the rest made the samples that it takes over."""
FLUSH_SECONDS = 5.0
FLUSH_SAMPLES = 256


@final
@dataclass(frozen=True)
class Run:
    """A run on disk; see the design's run directory."""

    path: Path

    @staticmethod
    def open(path: Path) -> "Run":
        """An existing run.

        Raises:
            UserError: no run is there, or one of a newer format.
        """
        if not (path / "run.json").is_file():
            raise UserError(f"{path}: this is not a run directory (it has no run.json). See 'raftdiff train --help'.")
        run = Run(path)
        if (found := run.info().get("format")) != FORMAT:
            raise UserError(f"{path}: this run has format {found}; this raftdiff reads format {FORMAT}.")
        return run

    @staticmethod
    def create(path: Path, recipe: Config, *, seed: int, parent: str | None = None) -> "Run":
        """The run at ``path``: begun, or continued when the same recipe began it.

        Raises:
            UserError: the folder holds a run of another recipe (the keys that differ are named), or other files.
        """
        run = Run(path)
        if run._begun():
            Run.open(path)
            keys = differing(run.recipe(), plain(recipe), NOT_IDENTITY)
            if keys:
                raise UserError(
                    f"{path}: this run was begun with another recipe; these keys differ: {', '.join(keys)}. "
                    f"Change them back, or name another folder with --out."
                )
            return run
        if path.exists() and (not path.is_dir() or {one.name for one in path.iterdir()} - EMPTY_RUN):
            raise UserError(f"{path}: this is no run directory and not empty; name another folder with --out.")
        facts = {"format": FORMAT, "digest": digest(plain(recipe), NOT_IDENTITY), "seed": seed, "parent": parent}
        facts |= provenance()
        (path / "rounds").mkdir(parents=True, exist_ok=True)
        write_text(path / "recipe.yaml", dump(recipe))
        write_text(path / "run.json", json.dumps(facts, indent=2))
        return run

    def _begun(self) -> bool:
        """Whether anything was made here: a start that failed, say on a missing model, leaves nothing to protect."""
        rounds = self.path / "rounds"
        return (self.path / "run.json").is_file() and rounds.is_dir() and any(rounds.iterdir())

    @staticmethod
    def default_path(root: Path, name: str, recipe: Config) -> Path:
        """``runs/<date>-<recipe>-<digest>``, or the folder in which the same recipe was begun on another day."""
        tail = f"{name}-{digest(plain(recipe), NOT_IDENTITY)}"
        begun = sorted(root.glob(f"????-??-??-{tail}"))
        return begun[-1] if begun else root / f"{time.strftime('%Y-%m-%d')}-{tail}"

    def recipe(self) -> dict[str, Any]:
        data: dict[str, Any] = yaml.safe_load((self.path / "recipe.yaml").read_text(encoding="utf-8"))
        return data

    def info(self) -> dict[str, Any]:
        return read_json(self.path / "run.json")

    def rounds_done(self) -> int:
        """How many rounds are complete; they are 0, 1, ... without a gap."""
        done = 0
        while self.round_path(done).is_dir():
            done += 1
        return done

    def round_path(self, round: int) -> Path:
        return self.path / "rounds" / f"{round:03d}"

    def metrics(self) -> list[dict[str, Any]]:
        return [read_json(self.round_path(t) / "metrics.json") for t in range(self.rounds_done())]

    def round(self, round: int) -> "RoundFolder":
        """A finished round, to read.

        Raises:
            UserError: it is not there.
        """
        if not self.round_path(round).is_dir():
            done = self.rounds_done()
            have = f"rounds 0 to {done - 1}" if done else "no finished round"
            raise UserError(f"{self.path}: there is no finished round {round}; this run has {have}.")
        return RoundFolder(self.round_path(round), round)

    def draft(self, round: int) -> "Draft":
        """The round that is being made; what an earlier process left of it is kept."""
        folder = self.path / "rounds" / f"{round:03d}.partial"
        (folder / "samples").mkdir(parents=True, exist_ok=True)
        (folder / "latents").mkdir(exist_ok=True)
        return Draft(folder, round, self.round_path(round))

    def state(self) -> State | None:
        """The fine-tuner's state after the last finished round."""
        done = self.rounds_done()
        if not done:
            return None
        return self.round(done - 1).state()

    def selections(self, rounds: Iterable[int]) -> list[Selection]:
        return [RoundFolder(self.round_path(t), t).selection() for t in rounds]

    def log(self, event: str, **fields: Any) -> None:
        """Append a line to log.jsonl."""
        line = json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "event": event, **fields})
        with (self.path / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for writing; a second process gets a sentence instead of a mixed-up folder."""
        try:
            import fcntl  # noqa: PLC0415  (not on Windows, where runs are not locked)
        except ImportError:
            yield
            return
        with (self.path / ".lock").open("w", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(f"{self.path}: another raftdiff process is working on this run.") from None
            yield


@final
@dataclass(frozen=True)
class RoundFolder:
    """A round's samples, scores and selection as they are on disk, finished or not."""

    path: Path
    index: int

    def rows(self) -> list[dict[str, Any]]:
        """The lines of metadata.jsonl whose picture is whole on disk; a torn last line is dropped."""
        file = self.path / "samples" / "metadata.jsonl"
        if not file.is_file():
            return []
        rows = {}
        for line in file.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                row = json.loads(line)
                rows[row["prompt_id"], row["index"]] = row  # an interrupted flush may have written a line twice
        return list(rows.values())

    def samples(self, keys: Sequence[Key] | None = None) -> list[Sample[Image.Image]]:
        """The named samples, or all of them, with media and aux, in the order of the prompts and their candidates."""
        wanted = None if keys is None else set(keys)
        rows = [row for row in self.rows() if wanted is None or self._key(row) in wanted]
        aux = self._aux([self._key(row) for row in rows])
        return [self._sample(row, aux.get(self._key(row), {})) for row in rows]

    def batches(self, size: int) -> Iterator[list[Sample[Image.Image]]]:
        """All samples, ``size`` at a time, so that a large round never has to fit into memory; without aux."""
        rows = self.rows()
        for start in range(0, len(rows), size):
            yield [self._sample(row, {}) for row in rows[start : start + size]]

    def scores(self) -> Scores:
        """The score table as ``write_scores`` left it, to the bit.

        Raises:
            UserError: the round has not been scored.
        """
        rows = self.rows()
        if not rows or "total" not in rows[0]:
            raise UserError(f"{self.path}: this round has no scores yet; run 'raftdiff score' first.")
        prompts = tuple(dict.fromkeys(row["prompt_id"] for row in rows))
        at = {prompt: place for place, prompt in enumerate(prompts)}
        shape = (len(prompts), 1 + max(row["index"] for row in rows))
        tables = {name: np.full(shape, np.nan) for name in rows[0] if name == "total" or name.startswith("reward_")}
        for row in rows:
            for name, table in tables.items():
                table[at[row["prompt_id"]], row["index"]] = np.nan if row[name] is None else row[name]
        total = tables.pop("total")
        return Scores(self.index, prompts, total, {name.removeprefix("reward_"): t for name, t in tables.items()})

    def selection(self) -> Selection:
        """What ``write_selection`` left.

        Raises:
            UserError: nothing has been selected in this round.
        """
        if not (self.path / "selection.json").is_file():
            raise UserError(f"{self.path}: nothing is selected in this round yet; run 'raftdiff select' first.")
        return Selection(**_selection_fields(read_json(self.path / "selection.json")))

    def state(self) -> State:
        """The fine-tuner's state at the end of this round."""
        return {file.stem: load_file(file) for file in sorted((self.path / "state").glob("*.safetensors"))}

    def _key(self, row: Mapping[str, Any]) -> Key:
        return Key(self.index, row["prompt_id"], row["index"])

    def _sample(self, row: Mapping[str, Any], aux: Mapping[str, torch.Tensor]) -> Sample[Image.Image]:
        with Image.open(self.path / "samples" / row["file_name"]) as picture:
            picture.load()
        texts = {name: row[name] for name in ("caption", "sampling", "learning", "negative")}
        prompt = Prompt(row["prompt_id"], **texts, meta=row["meta"])
        return Sample(self.index, prompt, row["index"], row["seed"], row["source"], picture, aux)

    def tensor_files(self) -> list[Path]:
        """Where the aux tensors are: the finished file, and the parts of an unfinished round, which are newer."""
        whole = self.path / "latents.safetensors"
        return [path for path in (whole, *sorted((self.path / "latents").glob("*.safetensors"))) if path.is_file()]

    def _aux(self, keys: Sequence[Key]) -> dict[Key, dict[str, torch.Tensor]]:
        """Aux tensors of the named samples, from the finished file or from the parts of an unfinished round."""
        names = {f"{key.prompt}/{key.index:03d}/": key for key in keys}
        found: dict[Key, dict[str, torch.Tensor]] = {key: {} for key in keys}
        for file in self.tensor_files():
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118  (a safe_open is not iterable)
                    stem, _, aux = name.rpartition("/")
                    if key := names.get(f"{stem}/"):
                        found[key][aux] = tensors.get_tensor(name)
        return found


@final
class Draft:
    """The round being made. Each stage leaves its result here, so that a later process need not repeat it."""

    def __init__(self, path: Path, index: int, final_path: Path) -> None:
        self.path, self.index, self.final_path = path, index, final_path
        self.folder = RoundFolder(path, index)
        self._pending: list[Sample[Image.Image]] = []
        self._flushed = time.monotonic()

    def sampled(self) -> set[tuple[str, int]]:
        """(prompt id, index) of the samples on disk. A picture cut short by a power loss does not count."""
        rows = self.folder.rows()
        whole = [row for row in rows if _is_picture(self.path / "samples" / row["file_name"])]
        if rows != whole or self._torn():
            self.write_rows(whole)
        return {(row["prompt_id"], row["index"]) for row in whole}

    def add(self, sample: Sample[Image.Image]) -> None:
        """Take a sample; it is on disk for good after the next ``flush``, every few seconds by itself."""
        sample.media.save(self.path / "samples" / _file_name(sample), compress_level=1)
        self._pending.append(sample)
        if len(self._pending) >= FLUSH_SAMPLES or time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Commit what was added: tensors first, the metadata lines that make them count last."""
        pending, self._pending, self._flushed = self._pending, [], time.monotonic()
        if pending:
            tensors = {
                f"{sample.prompt.id}/{sample.index:03d}/{name}": tensor.contiguous()
                for sample in pending
                for name, tensor in sample.aux.items()
            }
            if tensors:
                part = len(list((self.path / "latents").glob("*.safetensors")))
                save_tensors(self.path / "latents" / f"{part:05d}.safetensors", tensors)
            with (self.path / "samples" / "metadata.jsonl").open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(_row(sample)) + "\n" for sample in pending)
                file.flush()
                os.fsync(file.fileno())

    def write_scores(self, scores: Scores) -> None:
        """Every reward and the total into metadata.jsonl; NaN is written as null."""
        at = {prompt: row for row, prompt in enumerate(scores.prompts)}
        order = {prompt: place for place, prompt in enumerate(scores.prompts)}
        rows = sorted(self.folder.rows(), key=lambda row: (order[row["prompt_id"]], row["index"]))
        for row in rows:
            cell = (at[row["prompt_id"]], row["index"])
            row.update({f"reward_{name}": _number(table[cell]) for name, table in scores.raw.items()})
            row["total"] = _number(scores.total[cell])
        self.write_rows(rows)

    def write_selection(self, selection: Selection) -> None:
        keys = {key for item in selection.items for key in item.keys if key.round == self.index}
        rows = self.folder.rows()
        for row in rows:
            row["selected"] = Key(self.index, row["prompt_id"], row["index"]) in keys
        self.write_rows(rows)
        write_text(self.path / "selection.json", json.dumps(_selection_json(selection)))

    def metrics(self) -> dict[str, Any]:
        file = self.path / "metrics.json"
        return read_json(file) if file.is_file() else {"round": self.index, "seconds": {}, "network_evaluations": {}}

    def note(self, **figures: Any) -> None:
        """Set figures of the round."""
        write_text(self.path / "metrics.json", json.dumps({**self.metrics(), **figures}, indent=2))

    def spend(self, stage: str, *, seconds: float, evaluations: int) -> None:
        """Add a stage's time and network evaluations to what earlier processes spent on it."""
        metrics = self.metrics()
        for name, amount in (("seconds", seconds), ("network_evaluations", evaluations)):
            metrics[name][stage] = metrics[name].get(stage, 0) + amount
        self.note(**metrics)

    def commit(self, state: State) -> Path:
        """Write the state, merge the tensors, flush all of it to the disk, and rename: the round is complete."""
        (self.path / "state").mkdir(exist_ok=True)
        for name, tensors in state.items():
            save_tensors(self.path / "state" / f"{name}.safetensors", dict(tensors))
        if (self.path / "latents").is_dir():
            files = self.folder.tensor_files()
            merged = {name: tensor for file in files for name, tensor in load_file(file).items()}
            if merged:
                save_tensors(self.path / "latents.safetensors", merged)
            shutil.rmtree(self.path / "latents")
        sync_all(self.path)
        self.path.rename(self.final_path)
        return self.final_path

    def write_rows(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Replace metadata.jsonl."""
        text = "".join(json.dumps(row) + "\n" for row in rows)
        write_text(self.path / "samples" / "metadata.jsonl", text)

    def _torn(self) -> bool:
        file = self.path / "samples" / "metadata.jsonl"
        return file.is_file() and not file.read_text(encoding="utf-8").endswith("\n")


def fork(parent: Run, recipe: Config, path: Path, *, round: int, seed: int) -> Run:
    """A new run that keeps the parent's rounds before ``round``, and of ``round`` the samples but not their scores.

    So a finished round can be scored, selected and learnt from again without sampling again.

    Raises:
        UserError: the folder exists, the parent has no such round, or the recipe would have made other samples.
    """
    source = parent.round(round)
    if path.exists():
        raise UserError(f"{path}: this folder exists; a forked run needs a new one.")
    if keys := differing(parent.recipe(), plain(recipe), (*FORKED, *NOT_IDENTITY)):
        raise UserError(f"{parent.path}: with another {', '.join(keys)} the samples would be others; begin a new run.")
    aside = path.with_name(path.name + ".tmp")
    shutil.rmtree(aside, ignore_errors=True)
    _fork_into(Run.create(aside, recipe, seed=seed, parent=parent.path.resolve().name), parent, source)
    aside.rename(path)
    return Run(path)


def _fork_into(run: Run, parent: Run, source: RoundFolder) -> None:
    for t in range(source.index):
        shutil.copytree(parent.round_path(t), run.round_path(t))
    draft = run.draft(source.index)
    rows = source.rows()
    for row in rows:
        shutil.copy2(source.path / "samples" / row["file_name"], draft.path / "samples" / row["file_name"])
    if (source.path / "latents.safetensors").is_file():
        shutil.copy2(source.path / "latents.safetensors", draft.path / "latents" / "00000.safetensors")
    scored = ("total", "selected")
    kept = [{k: v for k, v in row.items() if k not in scored and not k.startswith("reward_")} for row in rows]
    draft.write_rows(kept)


def _row(sample: Sample[Image.Image]) -> dict[str, Any]:
    prompt = sample.prompt
    return {
        "file_name": _file_name(sample),
        "prompt_id": prompt.id,
        "index": sample.index,
        "caption": prompt.caption,
        "sampling": prompt.sampling,
        "learning": prompt.learning,
        "negative": prompt.negative,
        "seed": sample.seed,
        "source": sample.source,
        "meta": dict(prompt.meta),
    }


def _file_name(sample: Sample[Any]) -> str:
    """``airplane-003.png``; prompt ids are checked when they are read, so that this stays inside the folder."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", sample.prompt.id):
        raise UserError(f"The prompt id '{sample.prompt.id}' cannot name a file; use letters, digits, '.', '_', '-'.")
    return f"{sample.prompt.id}-{sample.index:03d}.png"


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _selection_json(selection: Selection) -> dict[str, Any]:
    items = [{"keys": [list(key) for key in item.keys], "weight": item.weight} for item in selection.items]
    return {"kind": selection.kind, "items": items, "left_out": list(selection.left_out)}


def _selection_fields(data: Mapping[str, Any]) -> dict[str, Any]:
    items = tuple(Item(tuple(Key(*key) for key in item["keys"]), item["weight"]) for item in data["items"])
    return {"kind": data["kind"], "items": items, "left_out": tuple(data["left_out"])}


def _is_picture(path: Path) -> bool:
    try:
        with Image.open(path) as picture:
            picture.load()
    except OSError:
        return False
    return True
