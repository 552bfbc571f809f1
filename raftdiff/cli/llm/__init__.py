"""``raftdiff llm``: the commands that there are for language models alone.

What runs recipes of either medium stands one room up.
"""
