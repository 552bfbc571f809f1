"""Stable Diffusion on disk and in memory: folders, hub ids and single files as the parts that everyone shares.

``loading.load`` opens one, ``text`` encodes captions, ``ldm`` writes single files; ``tiny`` makes small ones for tests.
"""
