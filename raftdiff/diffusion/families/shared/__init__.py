"""What several families have in common.

``unet``, ``ldm`` and ``vocabulary`` are for Stable Diffusion's kind: its network, the names of the original code, and
CLIP's tokenizer; ``flow`` for models of rectified flow; ``autoencoders`` and ``reading`` for what all of them do.
"""
