"""The world of programs: small tasks in plain words, their programs and tests, and the language model made with them.

``world`` says what a task is and what solves it; ``train``, ``measure`` and ``data`` are commands.
"""
