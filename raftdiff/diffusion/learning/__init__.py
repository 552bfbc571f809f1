"""How a diffusion model learns: losses and the noise process as pure functions, and the fine-tuner that steps.

``finetuner`` is what a recipe builds; ``losses`` says what is minimised.
"""
