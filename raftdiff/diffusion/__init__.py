"""Pictures: sampling and tuning Stable Diffusion, and a recipe made into both.

``recipe`` and ``assembly`` are what the command line imports; ``comparison`` and ``bench`` draw before and after.
"""
