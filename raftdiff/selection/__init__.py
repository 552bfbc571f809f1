"""What to learn from: pure functions of a score table, each beside its config.

``mixes`` makes one table of several, ``best`` imitates, ``lessons`` compares, ``advantages`` holds the formulas;
``pruning`` says whom to draw to the end.
"""
