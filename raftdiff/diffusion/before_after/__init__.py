"""A run's model before and after: drawn with the same seeds, scored, and shown.

``comparison`` measures held-out prompts for ``raftdiff eval``; ``sidebyside`` draws any checkpoints of one or two runs,
for the pages and ``raftdiff draw``.
"""
