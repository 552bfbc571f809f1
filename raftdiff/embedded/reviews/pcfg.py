"""A probabilistic context-free grammar, small enough to be exact: draw from it, price a text, list what it can say.

One rule a line, ``Symbol: weight words and Symbols | weight ...``; a line that begins with ``|`` goes on with the one
before. A name that has a rule is a symbol, everything else is a word; a weight left out is 1. No symbol may come back
to itself: every language here is finite.
"""

import math
import re
from bisect import bisect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, product
from typing import final

import numpy as np

Production = tuple[float, tuple[str, ...]]
"""Probability, and what the symbol turns into."""


def read(text: str) -> dict[str, tuple[Production, ...]]:
    """Rules in the notation above, weights made to sum to one.

    >>> read("Greeting: 3 good day | 1 Name\\nName: alice | bob")["Greeting"]
    ((0.75, ('good', 'day')), (0.25, ('Name',)))
    """
    rules: dict[str, tuple[Production, ...]] = {}
    lines = re.sub(r"\n\s*\|", " |", text).splitlines()
    for line in filter(None, (line.strip() for line in lines)):
        symbol, _, body = line.partition(":")
        parts = [_weighted(part.split()) for part in body.split("|")]
        total = sum(weight for weight, _ in parts)
        rules[symbol] = tuple((weight / total, symbols) for weight, symbols in parts)
    return rules


def _weighted(parts: list[str]) -> Production:
    if parts[0].replace(".", "", 1).isdigit():
        return float(parts[0]), tuple(parts[1:])
    return 1.0, tuple(parts)


@final
@dataclass(frozen=True, slots=True)
class Grammar:
    """Rules, and two tables of them that make drawing and parsing fast."""

    rules: Mapping[str, tuple[Production, ...]]
    _cumulative: dict[str, list[float]] = field(init=False, repr=False, compare=False)
    _by_word: dict[str, dict[str, list[Production]]] = field(init=False, repr=False, compare=False)
    """Symbol -> first word -> productions; those that begin with a symbol stand under ""."""

    def __post_init__(self) -> None:
        cumulative = {symbol: list(accumulate(p for p, _ in found)) for symbol, found in self.rules.items()}
        by_word: dict[str, dict[str, list[Production]]] = {symbol: {} for symbol in self.rules}
        for symbol, productions in self.rules.items():
            for probability, symbols in productions:
                first = "" if symbols[0] in self.rules else symbols[0]
                by_word[symbol].setdefault(first, []).append((probability, symbols))
        object.__setattr__(self, "_cumulative", cumulative)
        object.__setattr__(self, "_by_word", by_word)

    def words(self) -> frozenset[str]:
        """Every word that some rule has."""
        symbols = {part for productions in self.rules.values() for _, parts in productions for part in parts}
        return frozenset(symbols - set(self.rules))

    def longest(self, symbol: str) -> int:
        """Words of the longest text that `symbol` can become."""
        return self._longest(symbol, {})

    def _longest(self, symbol: str, known: dict[str, int]) -> int:
        if symbol not in self.rules:
            return 1
        if symbol not in known:
            known[symbol] = max(sum(self._longest(part, known) for part in parts) for _, parts in self.rules[symbol])
        return known[symbol]

    def draw(self, symbol: str, generator: np.random.Generator) -> tuple[tuple[str, ...], float]:
        """Words of one random derivation, and the log of the derivation's probability (natural)."""
        words: list[str] = []
        stack, log_probability = [symbol], 0.0
        while stack:
            top = stack.pop()
            productions = self.rules.get(top)
            if productions is None:
                words.append(top)
                continue
            index = min(bisect(self._cumulative[top], generator.random()), len(productions) - 1)
            log_probability += math.log(productions[index][0])
            stack.extend(reversed(productions[index][1]))
        return tuple(words), log_probability

    def probability(self, symbol: str, words: Sequence[str]) -> float:
        """Probability that `symbol` becomes exactly these words, summed over derivations; 0.0 where it cannot."""
        return _ends(self, symbol, 0, tuple(words), {}).get(len(words), 0.0)

    def expansions(self, symbol: str, kind: Callable[[str], str] = str) -> dict[tuple[str, ...], tuple[str, ...]]:
        """Every sequence of *kinds* of words that `symbol` can become, each with the first words found that show it.

        ``kind`` says which words are alike; words of kind "" leave no trace. With the default every text is listed,
        which only a small grammar allows.
        """
        if symbol not in self.rules:
            return {(kind(symbol),) if kind(symbol) else (): (symbol,)}
        found: dict[tuple[str, ...], tuple[str, ...]] = {}
        for _, symbols in self.rules[symbol]:
            for parts in product(*(self.expansions(part, kind).items() for part in symbols)):
                signature = tuple(item for key, _ in parts for item in key)
                found.setdefault(signature, tuple(word for _, words in parts for word in words))
        return found


Known = dict[tuple[str, int], dict[int, float]]


def _ends(grammar: Grammar, symbol: str, start: int, words: tuple[str, ...], known: Known) -> dict[int, float]:
    """Where a `symbol` that begins at `start` may end, and with what probability; ``known`` remembers."""
    if symbol not in grammar.rules:
        return {start + 1: 1.0} if start < len(words) and words[start] == symbol else {}
    if (symbol, start) in known:
        return known[symbol, start]
    found: dict[int, float] = {}
    by_word = grammar._by_word[symbol]
    beginning = by_word.get(words[start], []) if start < len(words) else []
    for probability, parts in [*beginning, *by_word.get("", [])]:
        reached = {start: probability}
        for part in parts:
            after: dict[int, float] = {}
            for at, chance in reached.items():
                for end, value in _ends(grammar, part, at, words, known).items():
                    after[end] = after.get(end, 0.0) + chance * value
            reached = after
        for end, value in reached.items():
            found[end] = found.get(end, 0.0) + value
    known[symbol, start] = found
    return found
