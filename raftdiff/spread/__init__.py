"""One run's work spread: a round's sampling over several machines in shards, each a folder, and their joining; drawing
and tuning over the processes of one machine.

Import from the modules: ``spread.shards`` (``Part``, ``sample``, ``join``) and ``spread.processes`` (``shared``,
``follow``).
"""
