"""A language model and its texts as tokens: loading, rows and batches, log-probabilities.

``loading.LM`` is what everybody is handed; ``tiny`` makes small ones for tests.
"""
