"""Figures as people see them: tables, plots, and pages that open without a network.

``before_after.write_report`` writes the page of an evaluation; ``page`` is what every page is made with.
"""
