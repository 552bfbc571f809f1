"""Learning rules side by side: ``changes`` says what each changes in a recipe and what it may cost, ``trials`` trains
and measures them, ``standings`` tells what they came to.

``changes.planned``, ``trials.run_trial`` and ``standings.written`` are what a command needs.
"""
