"""Pictures that one already has: what they are of, how rewards rank them, and a head learnt from their ratings.

``titles.titled`` gives each its prompt, ``ranked.rank`` sorts them, ``written.write`` copies the best; ``rated`` is for
``raftdiff rewards train-aesthetic``.
"""
