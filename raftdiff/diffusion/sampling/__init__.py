"""Candidates that the policy does not draw: another model's, and pictures that are there already.

``teacher`` draws with a model that stays as it is; ``pictures`` reads folders and tables of pictures, and ``given``
gives them as candidates. The policy's own sampler is ``diffusion.sampler``; mixtures are ``raftdiff.mixing``.
"""
