"""The world of scenes: one to four emoji in a picture, with counts, relations, sizes, styles, colours and grounds.

``world`` says what a caption means; ``measure`` and the modules of ``training`` are commands.
"""
