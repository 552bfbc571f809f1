"""Texts, without a model: how diverse answers are, as the RAFT paper reports it (arXiv:2304.06767, Table 3).

Definitions of GEM-metrics (github.com/GEM-benchmark/GEM-metrics). Tokens are the lower-cased text cut at white space,
and each Chinese or Japanese character;
GEM lower-cases too, but cuts with NLTK's tokenizer, which splits punctuation off. So numbers compare among ours, and
with GEM's only where texts come tokenised. n-grams never reach from one answer into the next. Compare sets of one size:
every figure here depends on it.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float

from raftdiff.errors import UserError
from raftdiff.measures.statistics import cosines, unit_length


def distinct(texts: Sequence[str], n: int) -> float:
    """distinct-n: different n-grams / all n-grams, in 0..1; higher is more diverse. NaN where there is no n-gram."""
    counts = _ngrams(texts, n)
    return len(counts) / counts.total() if counts else float("nan")


def unique(texts: Sequence[str], n: int) -> int:
    """unique-n: the *number* of n-grams that occur exactly once; higher is more diverse. Not a ratio."""
    return sum(count == 1 for count in _ngrams(texts, n).values())


def msttr(texts: Sequence[str], window: int = 100, gem_compat: bool = False) -> float:
    """Mean type-token ratio of the consecutive windows of the answers put end to end; the incomplete last one is left
    out. In 0..1, higher is more diverse; NaN where there is no whole window.

    ``gem_compat`` does what GEM's source (NLG-diversity) did: it looks at the window only between answers, so what an
    answer leaves over may be longer than a window, and such a piece is counted whole.

    Raises:
        UserError: ``window`` is below 1.
    """
    if window < 1:
        raise UserError(f"msttr: a window of {window} tokens; use 1 or more (100 is customary).")
    answers = [_tokens(text) for text in texts]
    pieces = list(_loose_windows(answers, window) if gem_compat else _windows(answers, window))
    return float(np.mean([len(set(piece)) / len(piece) for piece in pieces])) if pieces else float("nan")


def alike(texts: Sequence[str]) -> Float[np.ndarray, "texts texts"]:
    """How much any two have in common: the cosine of their counts of tokens and of pairs of tokens, in 0..1; 1 for the
    same tokens in the same order, of one token or none too, 0 where none is shared."""
    counts = [_ngrams([text], 1) + _ngrams([text], 2) for text in texts]
    column = {ngram: place for place, ngram in enumerate({ngram for count in counts for ngram in count})}
    table = np.zeros((len(texts), 1 + len(column)))
    for row, count in zip(table, counts, strict=True):
        row[0] = not count  # texts without a token are alike
        row[1:][[column[ngram] for ngram in count]] = list(count.values())
    return cosines(unit_length(table))


def mean_length(texts: Sequence[str]) -> float:
    """Mean number of tokens an answer; NaN for no answers. Neither high nor low is better: watch it for drift."""
    return float(np.mean([len(_tokens(text)) for text in texts])) if texts else float("nan")


_UNSPACED = re.compile("([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff])")


def spaced(text: str) -> str:
    """The text with white space around every Chinese and Japanese character, which are written without.

    >>> spaced("我很 happy").split()
    ['我', '很', 'happy']
    """
    return _UNSPACED.sub(r" \1 ", text)


def _tokens(text: str) -> list[str]:
    return spaced(text.lower()).split()


def _ngrams(texts: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    if n < 1:
        raise UserError(f"n-grams of {n} tokens; use n of 1 or more.")
    counts: Counter[tuple[str, ...]] = Counter()
    for text in texts:
        tokens = _tokens(text)
        counts.update(zip(*(tokens[start:] for start in range(n)), strict=False))  # the shortest shift ends it
    return counts


def _windows(answers: Sequence[list[str]], window: int) -> Iterable[list[str]]:
    tokens = [token for answer in answers for token in answer]
    return (tokens[start : start + window] for start in range(0, len(tokens) - window + 1, window))


def _loose_windows(answers: Sequence[list[str]], window: int) -> Iterable[list[str]]:
    held: list[str] = []
    for answer in answers:
        missing = window - len(held)
        if len(answer) < missing:
            held = held + answer
            continue
        # Where ``held`` is longer than a window already, ``missing`` is negative and counts from the answer's end.
        yield held + answer[:missing]
        held = answer[missing:]
