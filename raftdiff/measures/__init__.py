"""Figures: what is said of samples, of pairs, and of before against after. No model is asked here.

``evaluation`` is what an evaluation is made of; the others are pure functions that it and the reports draw on.
"""
