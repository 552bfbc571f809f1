"""PPO and PPO-max: actor, critic, rollouts, and the fine-tuner that joins them.

``finetuner`` is what a recipe builds; ``losses`` is pure.
"""
