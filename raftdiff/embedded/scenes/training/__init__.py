"""How the models of scenes were trained: ``vae``, ``unet``, ``flow``, ``judge`` and ``clip`` are commands.

``python -m raftdiff.embedded.scenes.training.vae`` and so on; nothing here is imported by what runs a model.
"""
