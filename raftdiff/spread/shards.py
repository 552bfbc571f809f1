"""A round's candidates drawn on many machines: each draws a shard into a folder of its own, and they are joined.

    RUN/shards/000/03-of-64.partial/     a shard that is being drawn: samples as in a round, and shard.json
    RUN/shards/000/03-of-64/             the same, complete

A sample depends on its seed and its batch alone, and a shard is made of whole batches: joined, they are what one
process would have drawn, to the bit where the machines compute alike.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from raftdiff.errors import UserError, command
from raftdiff.progress import Progress
from raftdiff.recipes.config import differing, flat
from raftdiff.records import integrity
from raftdiff.records.changes import HARMLESS
from raftdiff.records.disk import alone, damaged, read_json, write_text
from raftdiff.records.provenance import lying, revisions
from raftdiff.records.rounds import Draft, RoundFolder
from raftdiff.records.run import NOT_IDENTITY, Run
from raftdiff.stages import verbs
from raftdiff.stages.parts import Parts, asked
from raftdiff.stages.verbs import SCORING_BATCH
from raftdiff.types import CutsBatches, Media, Prompt, Prunes, Sampler

FACTS = "shard.json"
"""What a shard is a part of, and which."""
PARTIAL = ".partial"
AGAIN = "Bring this shard here again, or remove it and draw it again."
SPENT = ("seconds", "network_evaluations")
"""What a shard's figures say of its drawing."""
SHOWN = 8


class Part(NamedTuple):
    """Which of how many shards, from 1."""

    number: int
    of: int

    def among(self, batches: int) -> range:
        """Which of a round's batches are its own; for some none, where there are more shards than batches.

        >>> [list(Part(number, 3).among(7)) for number in (1, 2, 3)]
        [[0, 1], [2, 3], [4, 5, 6]]
        """
        return range(batches * (self.number - 1) // self.of, batches * self.number // self.of)

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    @property
    def folder(self) -> str:
        return f"{self.number:0{len(str(self.of))}d}-of-{self.of}"


def batches_of(
    sampler: Sampler[Media], prompts: Sequence[Prompt], per_prompt: int, round: int
) -> list[list[tuple[str, int]]]:
    """What a sampler draws at once; each candidate for itself where it does not say: who tears a batch draws all of it,
    and so does the next."""
    if isinstance(sampler, CutsBatches):
        return sampler.batches(prompts, per_prompt=per_prompt, round=round)
    return [[(prompt.id, index)] for prompt in prompts for index in range(per_prompt)]


def prunes(sampler: Sampler[Any], per_prompt: int) -> bool:
    """Whether a sampler compares the candidates of a prompt and drops some, which wants all of them in one place."""
    return isinstance(sampler, Prunes) and sampler.kept(per_prompt) < per_prompt


def sample(run: Run, part: Part, parts: Parts[Media], progress: Progress) -> Path | None:
    """Draw a shard of the next round; what an earlier process left of it is kept. Returns its folder, None where
    nothing is left for it to draw.

    Raises:
        UserError: the round draws no candidates, or prunes them, the shard was begun by another run, or another process
            draws it.
    """
    loop, t = parts.loop, run.rounds_done()
    if ago := t % loop.sample_every:
        raise UserError(
            f"{run.path}: round {t} draws no candidates, it takes over those of round {t - ago} (loop.sample_every); "
            f"run: {command('sample', run.path)}"
        )
    if prunes(parts.sampler, loop.candidates):
        raise UserError(
            "sampler.prune: a round that is pruned is drawn on one machine, where all candidates of some prompts are "
            "compared; leave --shard out, or sampler.prune."
        )
    batches = batches_of(parts.sampler, asked(parts.prompts, loop, t), loop.candidates, t)
    own = {key for place in part.among(len(batches)) for key in batches[place]}
    if not own:
        return None
    numbers = {"shard": part.number, "of": part.of, "batches": len(batches)}
    facts = {**_facts(run), **numbers, "revisions": revisions(run.recipe())}
    folder = _place(run, t) / part.folder
    aside = folder.with_name(f"{folder.name}{PARTIAL}")
    for begun in (folder, aside):
        if (begun / FACTS).is_file():
            _demand_same(begun, _read(begun), facts)
    if folder.is_dir():
        return folder
    if (aside / FACTS).is_file():
        _demand_one_revision({run.path: facts, aside: _read(aside)})
    (aside / "samples").mkdir(parents=True, exist_ok=True)
    with alone(aside):
        write_text(aside / FACTS, json.dumps(facts, indent=2))
        draft = Draft(aside, t, folder)
        verbs.sample(draft, run, parts, progress, own)
        draft.commit({})
    return folder


def join(run: Run, draft: Draft, progress: Progress) -> int:
    """Put the shards of a round into it, when all of them are there and whole; returns how many there are. What is in
    the round already is left as it is, so that a second time, or after a kill, only the rest is done.

    Raises:
        UserError: a shard is missing, there twice, damaged, not what it says, or of another run, recipe, model or
            round.
    """
    shards = _whole(run, draft.index)
    done, joined = draft.sampled(), 0
    report, total = progress.stage(draft.index, "merge"), sum(len(it.rows()) for it in shards)
    try:
        for shard in shards:
            for batch in shard.batches(SCORING_BATCH):
                for one in batch:
                    if (one.prompt.id, one.index) not in done:
                        draft.add(one)
                joined += len(batch)
                report(joined, total)
    finally:
        draft.flush()
    spent = draft.metrics()
    for name in SPENT:  # of all machines together; set, or a second time would add them
        spent[name]["sample"] = sum(shard.metrics()[name]["sample"] for shard in shards)
    draft.note(**{**spent, "candidates": joined, "shards": len(shards)})
    return len(shards)


def _place(run: Run, round: int) -> Path:
    return run.path / "shards" / f"{round:03d}"


def _facts(run: Run) -> dict[str, Any]:
    """What a shard has to share with the round that it is joined into. Models are called as the run was begun with
    them, wherever they lie on this machine."""
    t, info = run.rounds_done(), run.info()
    origin = run.origin(t)
    called = {now: was for was, now in info.get("moved", {}).items()}
    return {
        "round": t,
        "recipe": lying(flat(run.recipe()), called),
        "weights": {name: mark for name, mark in info.get("weights", {}).items() if name not in called},
        "begins_from": None if origin is None else [origin, run.round(origin).mark],
    }


def _whole(run: Run, round: int) -> list[RoundFolder]:
    """The shards of a round in order, none missing, each as it was drawn."""
    place = _place(run, round)
    lying_there = sorted(one for one in place.iterdir() if one.is_dir()) if place.is_dir() else []
    wanted, found = _facts(run), {one: _read(one) for one in lying_there if not one.name.endswith(PARTIAL)}
    if not found:
        raise UserError(
            f"{place}: no complete shard of round {round} is here. Draw them with "
            f"{command('sample', run.path, '--shard')} 1/N, 2/N and so on, and put what other machines drew here."
        )
    for folder, facts in found.items():
        _demand_same(folder, facts, wanted)
    _demand_one_revision(found)
    ways = Counter((facts["of"], facts["batches"]) for facts in found.values())
    if len(ways) > 1:
        counts = " and ".join(str(of) for of, _ in sorted(ways))
        raise UserError(f"{place}: shards of {counts} are here, which are cut differently. Remove those of one kind.")
    of, batches = next(iter(ways))
    numbered: dict[int, Path] = {}
    for folder, facts in found.items():
        if (other := numbered.setdefault(facts["shard"], folder)) != folder:
            part = Part(facts["shard"], of)
            raise UserError(f"{place}: shard {part} is here twice, {other.name} and {folder.name}. Remove one.")
    parts = [part for part in (Part(number, of) for number in range(1, of + 1)) if part.among(batches)]
    if missing := [part for part in parts if part.number not in numbered]:
        begun = [part for part in missing if (place / f"{part.folder}{PARTIAL}").is_dir()]
        half = f" (of them half drawn here: {_some(begun)})" if begun else ""
        again = command("sample", run.path, "--shard", missing[0])
        raise UserError(f"{place}: of {len(parts)} shards are missing: {_some(missing)}{half}. Draw them: {again}")
    whole = [_as_drawn(numbered[part.number], round) for part in parts]
    _demand_once(whole)
    return whole


def _demand_once(shards: Sequence[RoundFolder]) -> None:
    """A shard may hold fewer candidates than places: a folder has not always so many pictures of a prompt.

    Raises:
        UserError: a shard has other candidates than were drawn, or some that another one has: it is not what it says,
            and the round would lack what it stands for.
    """
    found: dict[tuple[str, int], Path] = {}
    for shard in shards:
        keys, drawn = {(row["prompt_id"], row["index"]) for row in shard.rows()}, shard.metrics().get("candidates")
        if len(keys) != drawn:
            raise UserError(f"{shard.path}: it holds {len(keys)} candidates, and {drawn} were drawn. {AGAIN}")
        for prompt, index in sorted(keys):
            if (other := found.setdefault((prompt, index), shard.path)) != shard.path:
                raise UserError(f"{shard.path}: candidate {index} of '{prompt}' is in {other.name} too. {AGAIN}")


def _as_drawn(folder: Path, round: int) -> RoundFolder:
    """
    Raises:
        UserError: a file of the shard is not what it was when the shard was complete.
    """
    listed = folder / integrity.SUMS
    if found := integrity.damage(folder, integrity.digest(listed) if listed.is_file() else ""):
        more = f", and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise UserError(f"{folder}: {'; '.join(found[:SHOWN])}{more}. {AGAIN}")
    shard = RoundFolder(folder, round)
    if not all(isinstance(shard.metrics().get(name), dict) and "sample" in shard.metrics()[name] for name in SPENT):
        raise damaged(folder / "metrics.json", "it does not say what drawing the shard took")
    return shard


def _some(parts: Sequence[Part]) -> str:
    return ", ".join(map(str, parts[:SHOWN])) + (f" and {len(parts) - SHOWN} more" if len(parts) > SHOWN else "")


def _demand_same(folder: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """
    Raises:
        UserError: a shard is of another round, recipe or model than it should be.
    """
    again = "Remove it, and draw it again."
    if found["round"] != wanted["round"]:
        raise UserError(
            f"{folder}: this shard is of round {found['round']}, and round {wanted['round']} is being made. Remove it."
        )
    if keys := differing(found["recipe"], wanted["recipe"], (*NOT_IDENTITY, *HARMLESS)):
        raise UserError(
            f"{folder}: this shard was drawn with another recipe than the run's; these keys differ: "
            f"{', '.join(keys[:SHOWN])}. {again}"
        )
    marks, ours = found["weights"], wanted["weights"]
    if others := sorted(name for name in marks.keys() & ours.keys() if marks[name] != ours[name]):
        names = ", ".join(others)
        raise UserError(f"{folder}: this shard was drawn with other weights of {names} than the run's. {again}")
    if found["begins_from"] != wanted["begins_from"]:
        raise UserError(
            f"{folder}: this shard was drawn by another model than this run has come to: the run that it was drawn in "
            f"is another, or another copy of it went on by itself. {again}"
        )


def _demand_one_revision(shards: Mapping[Path, Mapping[str, Any]]) -> None:
    """
    Raises:
        UserError: two were drawn with different commits of a model on a hub.
    """
    seen: dict[str, tuple[str, Path]] = {}
    for folder, facts in shards.items():
        for name, commit in facts.get("revisions", {}).items():
            other, first = seen.setdefault(name, (commit, folder))
            if commit != other:
                raise UserError(
                    f"{folder}: this shard was drawn with {name} as of {commit[:8]} on the hub, and {first.name} as of "
                    f"{other[:8]}: these may be other weights. Fetch the same on both machines, remove one of the two, "
                    "and draw it again."
                )


def _read(folder: Path) -> dict[str, Any]:
    """
    Raises:
        UserError: there is no shard.json, or it is none.
    """
    file = folder / FACTS
    if not file.is_file():
        raise UserError(f"{folder}: this is no shard: it has no {FACTS}. Remove it.")
    found = read_json(file)
    numbers, tables = ("round", "shard", "of", "batches"), ("recipe", "weights")
    lacking = [name for name in numbers if not isinstance(found.get(name), int)]
    lacking += [name for name in tables if not isinstance(found.get(name), dict)]
    if lacking or "begins_from" not in found or not 1 <= found["shard"] <= found["of"]:
        raise damaged(file, f"it does not say {', '.join(lacking) or 'which shard it is'}")
    return found
