"""A teacher without a model: rates answers by rules, behind the address that a large model would have.

    python -m raftdiff.embedded.teacher --port 8177

It reads the question that the reward ``server`` asks, as a language model would, and says its ratings with their
reasons. It knows the instructions of ``instructions`` and the film reviews of ``reviews``, and nothing else. The
request's ``model`` says who rates: ``rules``, or ``coin``, which knows nothing and says the same of the same answer:
the control of whatever is learnt from ratings. It listens on this machine alone.
"""

import argparse
import re
import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from raftdiff.embedded.instructions.grammar import parsed
from raftdiff.embedded.instructions.rating import Rating, rate
from raftdiff.embedded.reviews import world
from raftdiff.errors import UserError, nearest
from raftdiff.seeds import fold
from raftdiff.testing.servers import chat_server

CRITERIA = ("relevance", "correctness", "coherence", "safety")
_REVIEW = re.compile(r"(\w+) about (\w+) :")
_QUESTION = re.compile(
    r"from 1 \(worst\) to 5 \(best\) for each of these: (.*?)\. .*?"
    r"\[Prompt\]\n(.*?)\n\[End of the prompt\]\s*\[Answer\]\n(.*)\n\[End of the answer\]",
    re.DOTALL,
)


def by_rules(prompt: str, answer: str) -> Mapping[str, Rating]:
    """
    Raises:
        UserError: the prompt is neither an instruction nor one of the text world.
    """
    if asked := parsed(prompt):
        return rate(asked, answer)
    if _REVIEW.fullmatch(prompt):
        return _review(prompt, answer)
    raise UserError(
        f"The teacher's rules know no answer to '{prompt}'; they rate the instructions of "
        "configs/prompts/instructions_train.txt and reviews such as 'western about pirates :'."
    )


def _review(prompt: str, answer: str) -> Mapping[str, Rating]:
    """Of a film review, for somebody who wants to hear good of films: all by the grammar.

    Raises:
        UserError: the text world has no such genre or topic.
    """
    world.check([prompt])
    words, likes = answer.split(), world.sentiment(answer)
    named = [word for word in _REVIEW.fullmatch(prompt).groups() if word in words]  # type: ignore[union-attr]
    parses, ends = world.fluent(prompt, answer), answer.endswith((".", "!"))
    return {
        "relevance": Rating(1 + 2 * len(named), f"it names {' and '.join(named) or 'neither genre nor topic'}"),
        "correctness": Rating(int(np.clip(round(3 + 2.5 * likes), 1, 5)), "as it likes the film"),
        "coherence": Rating(5 if parses else 2 if ends else 1, "it parses" if parses else "it is broken"),
        "safety": Rating(5, "the world has no harmful words"),
    }


def by_coin(prompt: str, answer: str) -> Mapping[str, Rating]:
    """1 to 5 by chance, which the texts decide."""
    stars = np.random.default_rng(fold(0, "coin", prompt, answer)).integers(1, 6, len(CRITERIA))
    return {name: Rating(int(one), "by chance") for name, one in zip(CRITERIA, stars, strict=True)}


TEACHERS: Mapping[str, Callable[[str, str], Mapping[str, Rating]]] = {"rules": by_rules, "coin": by_coin}


def replied(request: Mapping[str, Any]) -> str:
    """What is said to a request of the reward ``server``: a line a criterion, "Relevance: 4 (it answers, at length)".

    Raises:
        UserError: no such request; nobody of that name rates here; the question is not in the reward's words, on
            another scale or by another criterion; or it asks of something else.
    """
    match request:
        case {"model": str(model), "messages": [*_, {"content": str(asked)}]}:
            pass
        case _:
            raise UserError(
                "The teacher is asked by a 'model' and 'messages', the last of which has a text as 'content'."
            )
    if model not in TEACHERS:
        raise UserError(f"There is no teacher '{model}'. {nearest(model, TEACHERS)}")
    found = _QUESTION.search(asked)
    if found is None:
        raise UserError(
            "The teacher reads the question as the reward 'server' asks it; leave its template, 'lowest' and 'highest' "
            "as they are."
        )
    criteria, prompt, answer = found.groups()
    for name in criteria.lower().split(", "):
        if name not in CRITERIA:
            raise UserError(f"The teacher rates by no criterion '{name}'. {nearest(name, CRITERIA)}")
    ratings = TEACHERS[model](prompt, answer)
    return "\n".join(f"{name.capitalize()}: {one.stars} ({one.reason})" for name, one in ratings.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8177, help="default: %(default)s")
    port = parser.parse_args().port
    try:
        with chat_server(replied, port=port) as address:
            print(f"{address}, models {' and '.join(TEACHERS)}; Ctrl-C ends it", flush=True)
            threading.Event().wait()
    except (OSError, OverflowError) as error:
        parser.error(f"cannot listen on port {port} ({error}); name another with --port, and in the recipe's base_url")
    except KeyboardInterrupt:
        print()


if __name__ == "__main__":
    main()
