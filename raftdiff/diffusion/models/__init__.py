"""Diffusion models on disk and in memory: folders, hub ids and single files as the parts that everyone shares.

``loading.load`` opens one, ``text`` encodes captions, ``pictures`` encodes and decodes pictures; ``kept`` and
``measured`` keep what was read and measured for later runs; ``tiny`` makes small ones for tests. What differs from
family to family stands in ``families``.
"""
