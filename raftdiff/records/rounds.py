"""A round's folder: samples as they come, scores, selection, state; written aside and renamed when it is complete."""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from raftdiff.errors import UserError
from raftdiff.records import integrity
from raftdiff.records.disk import (
    append,
    damaged,
    load_tensors,
    read_json,
    save_tensors,
    sync_all,
    write_text,
)
from raftdiff.records.media import (
    TENSOR_FILES,
    described,
    file_name,
    is_whole,
    keep,
    kept,
    line,
    lines,
    opened,
    store,
    tensor_file,
)
from raftdiff.scoring import in_batches
from raftdiff.training.beside import Behind, ahead
from raftdiff.types import Item, Key, Prompt, Sample, Scores, Selection, State

FLUSH_SECONDS = 5.0
FLUSH_SAMPLES = 256
WAITING = 256
"""Samples that wait to be written, while the next are drawn."""


@final
@dataclass(frozen=True)
class RoundFolder:
    """A round's samples, scores and selection as they are on disk, finished or not."""

    path: Path
    index: int
    mark: str | None = None
    """Of a finished round, the checksum of its list of checksums; None where it has none."""

    def rows(self) -> list[dict[str, Any]]:
        """The lines of metadata.jsonl; a torn last line is dropped, and ``meta`` is a mapping again.

        Raises:
            UserError: a line is not one of a sample, two are of one that is scored, or a finished round's are not as
                they were.
        """
        file = self.path / "samples" / "metadata.jsonl"
        rows = lines(file)
        integrity.demand(self.path, self.mark, {"samples/metadata.jsonl"})
        # an interrupted flush may have written a line twice; what is scored was written in one piece
        found = {(row["prompt_id"], row["index"]): row for row in rows}
        if len(found) < len(rows) and any("total" in row for row in rows):
            raise damaged(file, "two lines speak of one candidate")
        return list(found.values())

    def metrics(self) -> dict[str, Any]:
        """The figures of a finished round.

        Raises:
            UserError: they are not as they were.
        """
        found = read_json(self.path / "metrics.json")
        integrity.demand(self.path, self.mark, {"metrics.json"})
        return found

    def held_out(self, name: str = "held_out") -> dict[str, Path | str]:
        """What was made of the held-out prompts after the round (``held_out_base``: before the first), by name.

        Raises:
            UserError: it is not as it was.
        """
        found = kept(self.path / name)
        pictures = {f"{name}/{file}" for file, media in found.items() if isinstance(media, Path)}
        integrity.demand(self.path, self.mark, {name, f"{name}/texts.jsonl", *pictures})
        return found

    def changed(self, file: Path) -> bool:
        """Whether a file is not what it was when the round was finished; False of a round without checksums."""
        return self.mark is not None and bool(
            integrity.damage(self.path, self.mark, {file.relative_to(self.path).as_posix()})
        )

    def samples(self, keys: Sequence[Key] | None = None) -> list[Sample[Any]]:
        """The named samples, or all of them, with media and aux, in the order of the prompts and their candidates.

        Raises:
            UserError: a file of a finished round is not as it was, or cannot be read.
        """
        wanted = None if keys is None else set(keys)
        rows = [row for row in self.rows() if wanted is None or self._key(row) in wanted]
        self._demand(rows)
        aux = self._aux([self._key(row) for row in rows])
        return [self._sample(row, aux.get(self._key(row), {})) for row in rows]

    def batches(self, size: int) -> Iterator[list[Sample[Any]]]:
        """All samples, as ``samples``, about ``size`` at a time, so that a large round never has to fit into memory.
        The candidates of a prompt come together, in whatever order they were drawn. While one batch is looked at, the
        next is read."""
        return ahead(self._batches(size))

    def _batches(self, size: int) -> Iterator[list[Sample[Any]]]:
        rows = self.rows()
        self._demand(rows)
        for places in in_batches(((row["prompt_id"], row["index"]) for row in rows), size):
            part = [rows[place] for place in places]
            aux = self._aux([self._key(row) for row in part])
            yield [self._sample(row, aux[self._key(row)]) for row in part]

    def scores(self) -> Scores:
        """The score table as ``write_scores`` left it, to the bit.

        Raises:
            UserError: a candidate has not been scored, or the rows are not as they were.
        """
        rows = self.rows()
        named = {name for row in rows for name in row if name == "total" or name.startswith("reward_")} | {"total"}
        bare = [f"{row['prompt_id']}-{row['index']:03d}" for row in rows if not named <= row.keys()]
        if not rows or len(bare) == len(rows):
            raise UserError(f"{self.path}: this round has no scores yet; run 'raftdiff score' first.")
        if bare:
            raise UserError(
                f"{self.path}: {len(bare)} of {len(rows)} candidates have no scores yet, such as {bare[0]}, as where "
                "some were drawn again; run 'raftdiff score' first."
            )
        prompts = tuple(dict.fromkeys(row["prompt_id"] for row in rows))
        at = {prompt: place for place, prompt in enumerate(prompts)}
        shape = (len(prompts), 1 + max(row["index"] for row in rows))
        tables = {name: np.full(shape, np.nan) for name in rows[0] if name in named}
        for row in rows:
            for name, table in tables.items():
                table[at[row["prompt_id"]], row["index"]] = self._score(row[name])
        total = tables.pop("total")
        return Scores(self.index, prompts, total, {name.removeprefix("reward_"): t for name, t in tables.items()})

    def _score(self, told: Any) -> float:
        if told is not None and not isinstance(told, int | float):
            raise damaged(self.path / "samples" / "metadata.jsonl", f"a score that is no number: {str(told)[:40]}")
        return np.nan if told is None else told

    def selection(self) -> Selection:
        """What ``write_selection`` left.

        Raises:
            UserError: nothing has been selected in this round.
        """
        if not (self.path / "selection.json").is_file():
            raise UserError(f"{self.path}: nothing is selected in this round yet; run 'raftdiff select' first.")
        integrity.demand(self.path, self.mark, {"selection.json"})
        told = read_json(self.path / "selection.json")
        try:
            return Selection(**_selection_fields(told))
        except (KeyError, TypeError, ValueError) as error:
            raise damaged(self.path / "selection.json", f"{type(error).__name__}: {error}") from None

    def state(self) -> State:
        """The fine-tuner's state at the end of this round.

        Raises:
            UserError: a file of it is not as it was, or is gone.
        """
        if not (self.path / "state").is_dir():
            raise UserError(
                f"{self.path}: the state after this round was removed. Name a round that still has its own with "
                "--round, or take 'state' from a copy of the run."
            )
        integrity.demand(self.path, self.mark, {"state"})
        return {file.stem: load_tensors(file) for file in sorted((self.path / "state").glob("*.safetensors"))}

    def _demand(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """The samples of these rows are as they were."""
        if self.mark is not None:
            files = {f"samples/{row['file_name']}" for row in rows if "file_name" in row}
            tensors = {file.relative_to(self.path).as_posix() for file in self.tensor_files()}
            integrity.demand(self.path, self.mark, {"samples/metadata.jsonl", *tensors, *files})

    def _key(self, row: Mapping[str, Any]) -> Key:
        return Key(self.index, row["prompt_id"], row["index"])

    def _sample(self, row: Mapping[str, Any], aux: Mapping[str, torch.Tensor]) -> Sample[Any]:
        media = opened(self.path / "samples", row)
        texts = {name: row[name] for name in ("caption", "sampling", "learning", "negative")}
        prompt = Prompt(row["prompt_id"], **texts, meta=row.get("meta", {}))
        cut = {"cut": torch.tensor(True)} if row.get("cut") else {}
        return Sample(self.index, prompt, row["index"], row["seed"], row["source"], media, {**aux, **cut})

    def tensor_files(self) -> list[Path]:
        """Where the aux tensors are: the finished file, and the parts of an unfinished round, which are newer."""
        whole = [self.path / f"{name}.safetensors" for name in TENSOR_FILES]
        parts = [path for name in TENSOR_FILES for path in sorted((self.path / name).glob("*.safetensors"))]
        return [path for path in (*whole, *parts) if path.is_file()]

    def _aux(self, keys: Sequence[Key]) -> dict[Key, dict[str, torch.Tensor]]:
        """Aux tensors of the named samples, from the finished file or from the parts of an unfinished round."""
        names = {f"{key.prompt}/{key.index:03d}/": key for key in keys}
        found: dict[Key, dict[str, torch.Tensor]] = {key: {} for key in keys}
        for file in self.tensor_files():
            try:
                with safe_open(file, framework="pt") as tensors:
                    for name in tensors.keys():  # noqa: SIM118  (a safe_open is not iterable)
                        stem, _, aux = name.rpartition("/")
                        if key := names.get(f"{stem}/"):
                            found[key][aux] = tensors.get_tensor(name)
            except SafetensorError as error:
                raise damaged(file, error) from None
        return found


@final
class Draft:
    """The round being made. Each stage leaves its result here, so that a later process need not repeat it."""

    def __init__(
        self, path: Path, index: int, final_path: Path, sealed: Callable[[str], object] = lambda mark: None
    ) -> None:
        """``sealed`` takes the mark of the round's checksums, just before the round counts as complete."""
        self.path, self.index, self.final_path, self._sealed = path, index, final_path, sealed
        self.folder = RoundFolder(path, index)
        self._writing = Behind(WAITING)
        self._pending: list[tuple[Sample[Any], dict[str, Any]]] = []
        self._flushed = time.monotonic()

    def sampled(self) -> set[tuple[str, int]]:
        """(prompt id, index) of the samples on disk. One whose picture or tensors were cut short by a power loss, or
        are not as they were written, does not count."""
        rows, known = self.folder.rows(), integrity.sums(self.path)
        whole = [row for row in rows if is_whole(self.path / "samples", row) and self._as_drawn(row, known)]
        if broken := [file for file in self.folder.tensor_files() if not self._readable(file, known)]:
            for file in broken:
                file.unlink()
            aux = self.folder._aux([self.folder._key(row) for row in whole])
            whole = [row for row in whole if aux[self.folder._key(row)]]
        if rows != whole or self._torn():
            self.write_rows(whole)
        return {(row["prompt_id"], row["index"]) for row in whole}

    def add(self, sample: Sample[Any]) -> None:
        """Take a sample, which is written while the next are drawn; it is on disk for good after the next ``flush``,
        every few seconds by itself.

        Raises:
            UserError: its prompt's id cannot name a file.
            OSError: the disk refuses it, or one that was taken before.
        """
        if not isinstance(sample.media, str):
            file_name(sample)
        self._writing.do(self._write, sample)

    def flush(self) -> None:
        """Commit what was added. What can be written is, where the disk refuses another."""
        try:
            self._writing.wait()
        finally:
            self._settle()

    def _write(self, sample: Sample[Any]) -> None:
        told = store(self.path / "samples", sample)
        self._pending.append((sample, {**told, **described(sample)}))
        if len(self._pending) >= FLUSH_SAMPLES or time.monotonic() - self._flushed > FLUSH_SECONDS:
            self._settle()

    def _settle(self) -> None:
        """Tensors first, the metadata lines that make them count last."""
        pending, self._pending, self._flushed = self._pending, [], time.monotonic()
        if pending:
            tensors = {
                f"{sample.prompt.id}/{sample.index:03d}/{name}": tensor.contiguous()
                for sample, _ in pending
                for name, tensor in sample.aux.items()
                if name != "cut"  # stands in the line of metadata, for others to read
            }
            written = [f"samples/{row['file_name']}" for _, row in pending if "file_name" in row]
            if tensors:
                parts = self.path / tensor_file(pending[0][0])
                parts.mkdir(exist_ok=True)
                number = 1 + max((int(file.stem) for file in parts.glob("*.safetensors")), default=-1)
                part = parts / f"{number:05d}.safetensors"
                save_tensors(part, tensors)
                written.append(f"{parts.name}/{part.name}")
            integrity.note(self.path, written)
            append(self.path / "samples" / "metadata.jsonl", [line(row) for _, row in pending])

    def write_scores(self, scores: Scores) -> None:
        """Every reward and the total into metadata.jsonl; NaN is written as null."""
        at = {prompt: row for row, prompt in enumerate(scores.prompts)}
        rows = sorted(self.folder.rows(), key=lambda row: (at[row["prompt_id"]], row["index"]))
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

    def keep(self, name: str, samples: Sequence[Sample[Any]]) -> None:
        """Samples that are only looked at: those of the held-out prompts."""
        keep(self.path / name, samples)

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
        """Write the state, merge the tensors, add up the checksums, flush all of it to the disk, and rename: the round
        is complete."""
        (self.path / "state").mkdir(exist_ok=True)
        for name, tensors in state.items():
            save_tensors(self.path / "state" / f"{name}.safetensors", dict(tensors))
        for stem in TENSOR_FILES:
            if (self.path / stem).is_dir():
                files = [file for file in self.folder.tensor_files() if stem in (file.stem, file.parent.name)]
                merged = {name: tensor for file in files for name, tensor in load_tensors(file).items()}
                save_tensors(self.path / f"{stem}.safetensors", merged)
                shutil.rmtree(self.path / stem)
        self._sealed(integrity.seal(self.path))
        sync_all(self.path)
        self.path.rename(self.final_path)
        return self.final_path

    def write_rows(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Replace metadata.jsonl."""
        write_text(self.path / "samples" / "metadata.jsonl", "".join(line(row) for row in rows))

    def _torn(self) -> bool:
        file = self.path / "samples" / "metadata.jsonl"
        return file.is_file() and not file.read_bytes().endswith(b"\n")

    def _as_drawn(self, row: Mapping[str, Any], known: Mapping[str, str]) -> bool:
        name = f"samples/{row.get('file_name')}"
        return name not in known or integrity.digest(self.path / name) == known[name]

    def _readable(self, file: Path, known: Mapping[str, str]) -> bool:
        name = file.relative_to(self.path).as_posix()
        if file.parent.name in TENSOR_FILES and name in known:
            return integrity.digest(file) == known[name]
        try:
            load_tensors(file)
        except UserError:
            return False
        return True


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _selection_json(selection: Selection) -> dict[str, Any]:
    items = [
        {"keys": [list(key) for key in item.keys], "weight": item.weight}
        | ({"scores": list(item.scores)} if item.scores else {})
        for item in selection.items
    ]
    return {"kind": selection.kind, "items": items, "left_out": list(selection.left_out)}


def _selection_fields(data: Mapping[str, Any]) -> dict[str, Any]:
    items = tuple(
        Item(tuple(Key(*key) for key in item["keys"]), item["weight"], tuple(item.get("scores", ())))
        for item in data["items"]
    )
    return {"kind": data["kind"], "items": items, "left_out": tuple(data["left_out"])}
