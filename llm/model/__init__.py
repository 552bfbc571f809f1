"""A language model and its texts as tokens: loading, rows and batches, log-probabilities.

``loading.LM`` is what everybody is handed; ``head`` says what a network's head makes of some positions; ``tiny`` makes
small ones for tests.
"""
