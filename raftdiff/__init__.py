"""raftdiff: align text-to-image diffusion models with what people want, by reward-ranked fine-tuning (RAFT)."""

__version__ = "0.1.0"
