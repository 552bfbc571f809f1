"""What raftdiff knows of each family of diffusion models, one file a family, and nothing about a family elsewhere.

``family.Family`` is the interface, ``known.FAMILIES`` lists them; ``unet``, ``ldm`` and ``vocabulary`` hold what the
families of Stable Diffusion's kind share, and ``texts`` what a network is told of a caption.
"""
