"""What to learn from: pure functions of a score table, each beside its config.

``best`` imitates, ``lessons`` compares, ``advantages`` holds the formulas.
"""
