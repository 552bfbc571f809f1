"""One run's work spread over several machines: a round's sampling in shards, each a folder, and their joining.

Import from the modules: ``spread.shards`` (``Part``, ``sample``, ``join``).
"""
