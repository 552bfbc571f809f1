"""How a language model learns from a selection: pure losses, the objectives made of them, the fine-tuner that steps.

``finetuner`` is what a recipe builds; ``steps`` is shared with PPO and with reward models.
"""
