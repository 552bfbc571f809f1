"""How fast this machine draws and tunes: ``ways`` says what is timed, ``repeats`` times it in turn, ``tables`` tells it
and ``known`` keeps it for plans.

``ways.everything``, ``repeats.in_turn``, ``tables.written`` and ``known.keep`` are what ``raftdiff bench`` needs.
"""
