"""The world of translation: two small languages with an exact truth, and the language model and data made with it.

``world`` says what a translation is worth; ``train``, ``measure`` and ``data`` are commands.
"""
