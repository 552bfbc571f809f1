"""Benchmarks that papers report: prompts of a kind, pictures of each, scores, and a figure for each category.

``known`` says what each benchmark is, and reads its prompt file; ``drawing`` draws onto the disk as GenEval keeps
pictures, and goes on where it was stopped; ``lying`` finds pictures that are there; ``scoring`` scores them and keeps
what was said; ``outcome`` reduces it by category, and ``results`` says what is wrong with each picture.
The prompt files are the user's: nothing ships, nothing is fetched.
"""
