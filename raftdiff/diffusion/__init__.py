"""Pictures: sampling and tuning Stable Diffusion, and a recipe made into both.

``recipe_files`` and ``assembly`` are what the command line imports; ``before_after`` draws before and after.
"""
