"""What people write, as typed objects: configs, prompts, recipe files, and parts found by their names.

Every config derives from ``config.Config``; both media's own recipes stand in their own rooms.
"""
