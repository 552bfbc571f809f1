"""Sampling and fine-tuning of Stable Diffusion models."""
