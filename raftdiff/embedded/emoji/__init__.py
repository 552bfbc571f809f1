"""The picture world: its art, its captions, the models that were trained on it, and how.

``world`` says what a caption means; ``train_*`` and ``measure`` are commands.
"""
