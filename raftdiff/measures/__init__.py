"""Figures: what is said of samples, of pairs, and of before against after. numpy and pictures, no model.

``evaluation`` is what an evaluation is made of; the others are pure functions that it and the reports draw on.
"""
