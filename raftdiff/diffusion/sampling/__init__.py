"""Candidates that the policy does not draw, or draws in part: another model's, and pictures that are there already.

``teacher`` draws with a model that stays as it is; ``pictures`` reads folders and tables of pictures, and ``given``
gives them as candidates; ``pruned`` draws the promising ones of the policy's own sampler, which is
``diffusion.sampler``. Mixtures are ``raftdiff.mixing``.
"""
