"""``raftdiff plan``, ``methods``, ``rank``, ``eval --benchmark`` and ``rewards``: what there is for pictures alone.

What runs recipes of either medium stands one room up.
"""
