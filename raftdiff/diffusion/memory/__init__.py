"""What a recipe needs of a card's memory, counted from sizes alone: no weights, no GPU.

``outline`` is a model without its numbers, ``counting`` follows what a computation holds at its fullest, ``footprint``
adds up a recipe's stages, and ``card`` finds the first settings that fit.
"""
