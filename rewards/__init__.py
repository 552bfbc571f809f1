"""Rewards: one a file. Higher is better, NaN means "discard this one".

They are found by their names, in ``recipes.registry``; what several of them share is ``tower``,
``checkpoints``, ``texts``, ``sandbox``.
"""

if __name__ != "raftdiff.rewards":
    raise ImportError(
        "Import this package as raftdiff.rewards: under the bare name 'rewards' a second copy would be loaded."
    )
