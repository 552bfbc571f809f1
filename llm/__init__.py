"""Texts: language models on the same loop, and a recipe made into its parts.

``recipe`` and ``assembly`` are what the command line imports; ``methods`` and ``pipeline`` run several recipes.
"""

if __name__ != "raftdiff.llm":
    raise ImportError("Import this package as raftdiff.llm: under the bare name 'llm' a second copy would be loaded.")
