"""``raftdiff plan`` and ``raftdiff methods``: the commands that there are for pictures alone.

What runs recipes of either medium stands one room up.
"""
