"""For whoever writes a part: does it keep its contract? And small worlds to try it in.

The checks and the samples to try a reward on are imported from here; ``toy`` and ``servers`` are stand-ins.
"""

from raftdiff.testing.conformance import Check, CheckReport, check_finetuner, check_reward, check_sampler
from raftdiff.testing.examples import answer_samples, reward_samples

__all__ = [
    "Check",
    "CheckReport",
    "answer_samples",
    "check_finetuner",
    "check_reward",
    "check_sampler",
    "reward_samples",
]
