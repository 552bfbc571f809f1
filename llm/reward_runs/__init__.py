"""The training of a reward model as a run: its recipe, its rounds, an ensemble's doubts, and the pages about it.

The command line imports from here; other rooms use the trained model, in ``llm.reward_models``.
"""
