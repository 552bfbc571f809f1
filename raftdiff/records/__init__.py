"""A run on disk: its folder, its rounds, their media, and what people and other commands read of it.

``run.Run`` is the door; nothing outside this room opens a run's files by itself.
"""
