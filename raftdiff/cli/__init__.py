"""The command line: a parser that loads nothing, and a module for each family of commands.

``main.main`` is the entry point; nothing else is imported from here.
"""
