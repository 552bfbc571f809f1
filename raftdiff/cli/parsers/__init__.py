"""The commands' parsers, by what a command is for; no command is imported before it is called.

``main.parser`` puts them together; ``options`` is what they are made of. Those of ``raftdiff llm`` stand in its room.
"""
