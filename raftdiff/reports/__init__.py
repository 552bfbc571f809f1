"""Figures as people see them: tables, plots, and pages that open without a network.

``comparison.write_comparison`` writes an evaluation, ``before_after.write_report`` the page of it; ``page`` is what
every page is made with.
"""
