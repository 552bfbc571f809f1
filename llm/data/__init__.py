"""Data files: from rows in a dozen formats to prompts with answers, and to preference pairs.

``prompts`` and ``preferences`` are what recipes ask for; ``files``, ``formats`` and ``cells`` read.
"""
