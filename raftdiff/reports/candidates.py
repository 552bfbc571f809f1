"""Candidates of each round for the page: what was selected, and beside it what was ranked last."""

from raftdiff.chat.dialogue import dialogue
from raftdiff.records.run import Run
from raftdiff.reports.before_after import Candidate
from raftdiff.types import Key

SHOWN_PER_ROUND = 12


def candidates(run: Run) -> list[Candidate]:
    """For each round, prompts spread over all of them: what was selected, and the candidate that was ranked last."""
    found = []
    for t in range(run.rounds_done()):
        folder = run.round(t)
        scores, chosen = folder.scores(), {key for item in folder.selection().items for key in item.keys}
        rows = [row for row, prompt in enumerate(scores.prompts) if any(key[:2] == (t, prompt) for key in chosen)]
        keys = {}
        for row in rows[:: max(1, -(-len(rows) // (SHOWN_PER_ROUND // 2)))]:
            prompt, totals = scores.prompts[row], scores.total[row]
            best = max((key for key in chosen if key[:2] == (t, prompt)), key=lambda key: float(totals[key.index]))
            rejected = [k for k in range(len(totals)) if Key(t, prompt, k) not in chosen and totals[k] == totals[k]]
            keys[best] = True
            if rejected:
                keys[Key(t, prompt, min(rejected, key=lambda k: float(totals[k])))] = False
        at = {prompt: row for row, prompt in enumerate(scores.prompts)}
        for sample in folder.samples(list(keys)):
            cell = (at[sample.prompt.id], sample.index)
            marks = {"total": float(scores.total[cell])} if len(scores.raw) > 1 else {}
            marks |= {name: float(table[cell]) for name, table in scores.raw.items()}
            found.append(Candidate(t, dialogue(sample.prompt), sample.media, marks, keys[sample.key]))
    return found
