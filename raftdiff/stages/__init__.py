"""The four verbs of the loop, each on a round's folder: ``verbs`` samples, scores, selects, tunes and commits.

Import from the modules: ``parts`` (``LoopConfig``, ``Parts``) is what a recipe is assembled into, ``verbs`` is what
``raft`` and the command line call; ``held_out`` looks at prompts that are not learnt from, ``figures`` says what the
rewards made of a round, ``bookkeeping`` stands around every stage. ``servers`` asks, before the first of them, whether
the servers of a run are there; ``ending`` says what ends one before its last round.
"""
