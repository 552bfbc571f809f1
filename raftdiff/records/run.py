"""The run directory: commit, resume, read. What passes between the stages is a folder that a person can open.

A round is written aside as ``rounds/000.partial`` and renamed when it is complete: present means complete. Within it,
samples are committed as they come, so a killed run resumes in the middle of sampling. No pickle is ever written.
"""

import contextlib
import itertools
import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import yaml

from raftdiff.errors import BusyError, UserError, command
from raftdiff.recipes.config import Config, completed, differing, digest, dump, flat, plain, put
from raftdiff.recipes.needs import runs_near
from raftdiff.recipes.source import values
from raftdiff.records import integrity
from raftdiff.records.disk import append, demand_place, read_yaml, write_text
from raftdiff.records.provenance import NOTHING, lying, marks_at, moves, provenance, put_back, told
from raftdiff.records.rounds import Draft, RoundFolder
from raftdiff.types import FineTuner, Selection, State

FORMAT = 1
NOT_IDENTITY = (
    *(f"model.{name}" for name in ("device", "text_device", "keep_texts", "sharded")),
    "logging",
    "prompts.file",
    "evaluation.prompts.file",
    "pairs.data.file",
    "held_out.data.file",
    "policy_pool.prompts.file",
    "finetuner.ptx.data.file",
)
"""Dotted recipe keys that do not change what a run computes; the digest leaves them out. Files are known by the prompts
or the checksum that the recipe holds beside their names."""
EMPTY_RUN = {"recipes", "rounds", "logs", "log.jsonl", ".lock"}
EMPTY_RUN |= {name + end for name in ("recipe.yaml", "run.json") for end in ("", ".tmp")}
"""What a run that made nothing yet may hold."""
ALONE = "it drew and scored answers, all that was asked of it (until: scores); no model was tuned that could answer."


@final
@dataclass(frozen=True)
class Run:
    """A run on disk; see the design's run directory."""

    path: Path

    @staticmethod
    def open(path: Path) -> "Run":
        """An existing run.

        Raises:
            UserError: no run is there, one of a newer format, or one with a link that leads out of it.
        """
        if not (path / "run.json").is_file():
            raise UserError(f"{path}: this is not a run directory (it has no run.json). {runs_near(path)}".rstrip())
        integrity.refuse_links(path)  # before anything is read
        run = Run(path)
        if (found := run.info().get("format")) != FORMAT:
            raise UserError(f"{path}: this run has format {found}; this raftdiff reads format {FORMAT}.")
        return run

    @staticmethod
    def at(path: Path, recipe: Config) -> "Run":
        """The run at ``path`` that the same recipe began, or one that may begin there; nothing is written yet.

        Raises:
            UserError: the folder holds a run of another recipe (the keys that differ are named), one whose recipe.yaml
                was changed by hand, or other files.
            OSError: nothing can be written there.
        """
        run = Run(path)
        if run.begun():
            Run.open(path)
            run.demand_recipe()
            run._check_recipe(recipe)
        elif path.is_dir() and {one.name for one in path.iterdir()} - EMPTY_RUN:
            raise UserError(f"{path}: this is no run directory and not empty; name another folder with --out.")
        demand_place(path)
        return run

    @staticmethod
    def create(path: Path, recipe: Config, *, seed: int, parent: str | None = None) -> "Run":
        """The run at ``path``, as ``at``, begun where nothing was made yet."""
        run = Run.at(path, recipe)
        if not run.begun():
            path.mkdir(parents=True, exist_ok=True)
            with run.locked():  # or two that begin at once would write over each other
                if not run.begun():
                    run._begin(recipe, seed, parent)
        return run

    def _begin(self, recipe: Config, seed: int, parent: str | None) -> None:
        facts = {"format": FORMAT, "digest": digest(plain(recipe), NOT_IDENTITY), "seed": seed, "parent": parent}
        facts |= provenance()
        (self.path / "rounds").mkdir(exist_ok=True)
        (self.path / "run.json").unlink(missing_ok=True)  # of a start that failed; it knows another recipe
        write_text(self.path / "recipe.yaml", dump(recipe))
        facts["recipe"] = [digest(self.recipe(), NOT_IDENTITY)]
        write_text(self.path / "run.json", json.dumps(facts, indent=2))

    def put_recipe(self, text: str, **facts: Any) -> None:
        """Another recipe.yaml, and ``facts`` of run.json that go with it. While it changes run.json knows both recipes,
        so that a kill in between leaves one that is known; then the new one alone.

        Raises:
            UserError: run.json or recipe.yaml is damaged.
            OSError: one cannot be written.
        """
        was, now = (digest(recipe, NOT_IDENTITY) for recipe in (self.recipe(), values(text)))
        self.know(recipe=[was, now])
        write_text(self.path / "recipe.yaml", text)
        self.know(recipe=[now], **facts)

    def edited(self, recipe: Mapping[str, Any] | None = None) -> str | None:
        """What is to be said where recipe.yaml says something else than what raftdiff wrote there last; None where it
        says the same, in whatever words, and of a run that an earlier version began.

        ``recipe`` is what the file says, where it was read already.

        Raises:
            UserError: run.json or recipe.yaml is damaged.
        """
        known = self.info().get("recipe", ()) if (self.path / "run.json").is_file() else ()
        if not known or digest(recipe or self.recipe(), NOT_IDENTITY) in known:
            return None
        file = self.path / "recipe.yaml"
        return (
            f"{file}: this is not the recipe that raftdiff wrote here last, and may not be what made the rounds. Put "
            f"that one back, and say changes on the command line: {command('train', self.path, 'KEY=VALUE')}. For a "
            f"new run of the recipe as it stands: {command('train', file)}"
        )

    def demand_recipe(self) -> None:
        """Before rounds are made, or taken over.

        Raises:
            UserError: recipe.yaml was changed by hand, as ``edited`` tells, or is damaged.
        """
        if edited := self.edited():
            raise UserError(edited)

    def know(self, **facts: Any) -> None:
        """Set facts of run.json.

        Raises:
            UserError: it is damaged.
            OSError: it cannot be written.
        """
        write_text(self.path / "run.json", json.dumps({**self.info(), **facts}, indent=2))

    def _check_recipe(self, recipe: Config) -> None:
        if keys := self.differing(recipe):
            raise UserError(
                f"{self.path}: this run was begun with another recipe; these keys differ: {self.told(keys, recipe)}. "
                f"Change them back, or name another folder with --out."
            )

    def differing(self, recipe: Config, free: Sequence[str] = ()) -> list[str]:
        """The keys at which ``recipe`` is another than the run's own, but for the ``free`` ones, those that are no part
        of its identity, and names of models, runs and files that are the same and lie elsewhere."""
        now = plain(recipe)
        keys = differing(completed(self.recipe(), type(recipe)), now, (*NOT_IDENTITY, *free))
        found = self.moves(now) if keys else {}
        return [key for key in keys if key not in found]

    def moves(self, recipe: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
        """Where ``recipe`` names another place of what the run was begun with: key -> the old one and the new."""
        return moves(flat(self.recipe()), flat(recipe), self.info().get("weights", {}))

    def settle(self, recipe: Config) -> None:
        """Put on record where the models of the run lie now, and say so."""
        if not (found := self.moves(plain(recipe))):
            return
        facts, own = self.info(), self.recipe()
        for key, (was, now) in found.items():
            put(own, key, now)
            known = {one: other for one, other in facts.get("moved", {}).items() if one != now}
            facts["moved"] = {**known, was: now}
            if weights := facts.get("weights"):
                weights |= marks_at(now, key, now, flat(plain(recipe)))
            sys.stderr.write(f"raftdiff: {self.path}: {key}: '{was}' lies in '{now}' now; it is the same.\n")
        # the recipe first: a run that is killed here goes on as it stands, and ``bind`` takes up the mark
        placed = {name: facts[name] for name in ("moved", "weights") if name in facts}
        self.put_recipe(yaml.safe_dump(own, sort_keys=False, allow_unicode=True, width=100), **placed)

    def told(self, keys: Sequence[str], recipe: Config) -> str:
        """Keys at which ``recipe`` differs, with the fingerprints of models that are others."""
        return told(keys, flat(self.recipe()), flat(plain(recipe)), self.info().get("weights", {}))

    def bind(self, weights: Mapping[str, str]) -> None:
        """Hold on to the fingerprints of the models that the recipe names, and the commits of those on a hub; a run
        goes on with the same weights only.

        Raises:
            UserError: it was begun with others, under the same names.
        """
        facts = self.info()
        if "weights" not in facts:
            self.know(weights=dict(weights))
        elif changed := sorted(
            name for name, mark in weights.items() if facts["weights"].get(name, mark) not in (mark, NOTHING)
        ):
            raise UserError(
                f"{self.path}: this run was begun with other weights of {', '.join(changed)} than lie there now; "
                f"{put_back(changed, facts['weights'])}, or begin a new run with --out."
            )
        elif new := {name: mark for name, mark in weights.items() if facts["weights"].get(name, NOTHING) == NOTHING}:
            self.know(weights={**facts["weights"], **new})

    def begun(self) -> bool:
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
        """
        Raises:
            UserError: recipe.yaml is missing, or damaged.
        """
        return read_yaml(self.path / "recipe.yaml")

    def info(self) -> dict[str, Any]:
        """What run.json holds.

        Raises:
            UserError: it is damaged.
        """
        return integrity.facts(self.path / "run.json")

    def rounds_done(self) -> int:
        """How many rounds are complete; they are 0, 1, ... without a gap."""
        return next(done for done in itertools.count() if not self.round_path(done).is_dir())

    def round_path(self, round: int) -> Path:
        return self.path / "rounds" / f"{round:03d}"

    def metrics(self) -> list[dict[str, Any]]:
        """``metrics.json`` of each finished round; ``changed`` names the recipe keys that are others from it on.

        Raises:
            UserError: one is not as it was, or a recipe or run.json is damaged.
        """
        changed = {t: {"changed": keys} for t, keys in self.changes().items()}
        found = (self.round(t).metrics() for t in range(self.rounds_done()))
        return [{**metrics, **changed.get(t, {})} for t, metrics in enumerate(found)]

    def kept_recipes(self) -> list[Path]:
        """The recipes that made earlier rounds, where those to come are made by another: ``before-<round>.yaml``, where
        the round is the first that it did not make."""
        return sorted((self.path / "recipes").glob("before-*.yaml"))

    def keep_recipe(self, round: int, text: str) -> None:
        """Put on record what made the rounds before ``round``; what stands there already is right."""
        kept = self.path / "recipes" / f"before-{round:03d}.yaml"
        if not kept.is_file():
            kept.parent.mkdir(exist_ok=True)
            write_text(kept, text)

    def changes(self) -> dict[int, list[str]]:
        """Round -> the recipe keys that are others from it on."""
        kept = self.kept_recipes()
        recipes = [*map(read_yaml, kept), self.recipe() if kept else {}]
        moved = self.info().get("moved", {})
        placed = [lying(flat(recipe), moved) for recipe in recipes]
        keys = [differing(old, new, NOT_IDENTITY) for old, new in itertools.pairwise(placed)]
        return {int(path.stem.removeprefix("before-")): found for path, found in zip(kept, keys, strict=True) if found}

    def round(self, round: int) -> "RoundFolder":
        """A finished round, to read.

        Raises:
            UserError: it is not there.
        """
        if not (path := self.round_path(round)).is_dir():
            done = self.rounds_done()
            have = f"rounds 0 to {done - 1}" if done else "no finished round"
            raise UserError(f"{self.path}: there is no finished round {round}; this run has {have}.")
        # with a list of checksums, and none of the list on record, the record was changed
        return RoundFolder(path, round, self._marks().get(path.name, "" if (path / integrity.SUMS).is_file() else None))

    def _marks(self) -> dict[str, str]:
        """Round -> the checksum of its list of checksums; rounds that an earlier version made have none."""
        marks: dict[str, str] = self.info().get("rounds", {})
        return marks

    def _hold(self, round: int, mark: str) -> None:
        self.know(rounds={**self._marks(), f"{round:03d}": mark})

    def unfinished(self, round: int) -> "RoundFolder":
        """The round that is being made, to read; it may not be there yet."""
        return RoundFolder(self.path / "rounds" / f"{round:03d}.partial", round)

    def draft(self, round: int) -> "Draft":
        """The round that is being made; what an earlier process left of it is kept."""
        folder = self.unfinished(round).path
        (folder / "samples").mkdir(parents=True, exist_ok=True)
        return Draft(folder, round, self.round_path(round), lambda mark: self._hold(round, mark))

    def rollbacks(self) -> dict[int, int | None]:
        """Round -> the one that was gone back to when it was finished; None for the base, before any tuning."""
        return {int(after): to for after, to in self.info().get("rollbacks", {}).items()}

    def go_back(self, after: int, to: int | None) -> None:
        """Put on record that what follows round ``after`` goes on from ``to``, an earlier one or the base."""
        self.know(rollbacks={**self.info().get("rollbacks", {}), f"{after:03d}": to})
        self.log("rollback", round=after, to=to)

    def origin(self, round: int) -> int | None:
        """The round whose weights ``round`` begins with: the one before it, or what was gone back to; None for the
        base."""
        return self.rollbacks().get(round - 1, round - 1) if round else None

    def state(self, round: int | None = None) -> State | None:
        """The fine-tuner's state with which a round begins, the next by default; None of the base."""
        origin = self.origin(self.rounds_done() if round is None else round)
        return None if origin is None else self.round(origin).state()

    def selections(self, rounds: Iterable[int]) -> list[Selection]:
        return [self.round(t).selection() for t in rounds]

    def log(self, event: str, **fields: Any) -> None:
        """Append a line to log.jsonl."""
        line = json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "event": event, **fields})
        append(self.path / "log.jsonl", [line + "\n"])

    @contextlib.contextmanager
    def locked(self, recipe: Config | None = None) -> Iterator[None]:
        """Hold the run for writing; a second process gets a sentence instead of a mixed-up folder.

        ``recipe`` is what this process takes the run's to be: another that began it in between is an error.

        Raises:
            UserError: another process holds it, or its recipe is another than that, or was changed by hand.
        """
        try:
            import fcntl  # noqa: PLC0415  (not on Windows, where runs are not locked)
        except ImportError:
            yield
            return
        integrity.refuse_links(self.path)
        with (self.path / ".lock").open("a", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                raise BusyError(f"{self.path}: another raftdiff process is working on this run.") from None
            except OSError as error:  # NFS and others: no locks available, not implemented, not supported
                sys.stderr.write(
                    f"raftdiff: {self.path}: this file system locks no files ({error.strerror}); see to it that no "
                    "second process works on this run.\n"
                )
            self.demand_recipe()
            if recipe is not None:
                self._check_recipe(recipe)
                self.settle(recipe)
            yield


def load_round(run: Run, finetuner: FineTuner[Any], round: int | None) -> None:
    """Put the fine-tuner into its state after a finished round, by default as ``finished``.

    Raises:
        UserError: there is no such round.
    """
    finetuner.load_state_dict(finished(run, round).state())


def finished(run: Run, round: int | None) -> RoundFolder:
    """A finished round; by default the last, or the one that was gone back to after it.

    Raises:
        UserError: there is no such round, or it was the base that was gone back to.
    """
    done = run.rounds_done()
    if not done:
        yet = f"no round is finished yet; run: {command('train', run.path)}"
        raise UserError(f"{run.path}: {ALONE if run.info().get('until') else yet}")
    chosen = run.origin(done) if round is None else round
    if chosen is None:
        raise UserError(
            f"{run.path}: after round {done - 1} the guard went back to the base model, before any tuning: none of the "
            "rounds was better. To use one all the same, name it with --round."
        )
    return run.round(chosen)
