"""A run on disk: its folder, its rounds, their media, and what people and other commands read of it.

``run.Run`` is the door; what an evaluation or an export leaves beside the rounds is written by who makes it.
"""
