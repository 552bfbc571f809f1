"""The text world: a grammar whose probabilities are exact, and the language model and data made with it.

``world`` says what a review is worth; ``train``, ``measure``, ``pairs``, ``ptx`` and ``preferences`` are commands.
"""
