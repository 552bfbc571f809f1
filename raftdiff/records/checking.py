"""Does a run hold what was written? Every finished round against its checksums, and what has none, by reading it."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from raftdiff.errors import UserError
from raftdiff.records import integrity
from raftdiff.records.disk import load_tensors, read_json
from raftdiff.records.media import is_whole
from raftdiff.records.rounds import RoundFolder
from raftdiff.records.run import Run


class Finding(NamedTuple):
    """What was found of one round, or of what stands beside them."""

    place: Path
    damage: list[str]
    """In words; empty where all is well."""
    note: str
    """What it was compared with."""


def look(path: Path) -> Iterator[Finding]:
    """As ``check``, of a run that may be damaged in every way, so that others are looked at after it."""
    try:
        yield from check(Run.open(path))
    except UserError as error:
        yield _damaged(path, error)
    except OSError as error:
        yield Finding(path, [f"{error.filename or path}: {error.strerror or error}"], "")


def check(run: Run) -> Iterator[Finding]:
    """What stands in recipe.yaml and those of earlier rounds, where that is not what was written; then round by round,
    the unfinished one last.

    Raises:
        UserError: run.json cannot be read, or a link leads out of the run.
    """
    try:
        run.demand_recipe()
        run.recipe()
        run.changes()
    except UserError as error:
        yield _damaged(run.path, error)
    done = run.rounds_done()
    for index in range(done):
        folder = run.round(index)
        if folder.mark is None:
            yield Finding(folder.path, _unreadable(folder), "no checksums, as an earlier version made it; it was read")
        else:
            gone = "" if (folder.path / "state").is_dir() else "; its state was removed"
            told = f"{len(integrity.sums(folder.path))} files as they were written{gone}"
            lost = ["the state that the run goes on from is missing"] if gone and index == run.origin(done) else []
            yield Finding(folder.path, integrity.damage(folder.path, folder.mark) + lost, told)
    if stray := [path.name for path in sorted((run.path / "rounds").glob("*")) if path.name.isdigit()][done:]:
        lost = [f"rounds {', '.join(stray)} are there without round {done:03d}, and are not used"]
        yield Finding(run.path / "rounds", lost, "")
    if (making := run.unfinished(done)).path.is_dir():
        yield Finding(making.path, _unreadable(making), "unfinished; what is damaged in it is made again")


def _damaged(path: Path, error: UserError) -> Finding:
    return Finding(path, [str(error).removeprefix(f"{path}: ")], "")


def _unreadable(folder: RoundFolder) -> list[str]:
    """What of a round cannot be read, or is not as it was drawn."""
    found: list[str] = []

    def read(reader: Callable[[Path], object], files: Iterable[Path]) -> None:
        for file in files:
            try:
                reader(file)
            except UserError as error:
                found.append(str(error).removeprefix(f"{folder.path}/"))

    known = integrity.sums(folder.path)
    read(lambda _: folder.rows(), [folder.path])
    if not found:
        samples = folder.path / "samples"
        broken = [row["file_name"] for row in folder.rows() if not is_whole(samples, row)]
        found += [f"samples/{name} is missing or damaged" for name in broken]
    read(load_tensors, sorted(folder.path.rglob("*.safetensors")))
    read(read_json, sorted(folder.path.glob("*.json")))
    drawn = (name for name in known if (folder.path / name).is_file() and not name.endswith((".json", ".jsonl")))
    return found + [f"{name} was changed" for name in drawn if integrity.digest(folder.path / name) != known[name]]
