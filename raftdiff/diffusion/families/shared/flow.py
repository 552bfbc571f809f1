"""What models of rectified flow share: their process, their solvers, and where their steps lie."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from raftdiff.diffusion import process as processes
from raftdiff.diffusion.families.family import Solver
from raftdiff.errors import UserError

EULER = "FlowMatchEulerDiscreteScheduler"
PATHS = ("euler", "euler_a")
"""Solvers whose states are pictures under noise of a known level."""


def solvers(scheduler: Any) -> Mapping[str, Solver]:
    """``euler_a`` is Euler's step to the picture foretold, and back to the next level with new noise: the flow's own
    kind of ancestral step, as distilled models draw. The others work on the same levels by diffusers' flow sigmas.
    Schedulers call the shift by two names, and each is told it by its own."""
    config = scheduler.config
    multistep = {
        "prediction_type": "flow_prediction",
        "use_flow_sigmas": True,
        "flow_shift": _shift(config),
        "use_dynamic_shifting": config.get("use_dynamic_shifting", False),
        "time_shift_type": config.get("time_shift_type", "exponential"),
    }
    return {
        "euler": Solver(EULER, {"shift": _shift(config), "stochastic_sampling": False}),
        "euler_a": Solver(EULER, {"shift": _shift(config), "stochastic_sampling": True}),
        "dpm++": Solver("DPMSolverMultistepScheduler", multistep),
        "unipc": Solver("UniPCMultistepScheduler", multistep),
    }


def process(scheduler: Any, name: str) -> processes.Process:
    """The levels of a ``FlowMatchEulerDiscreteScheduler``, or of a multistep solver that works on flow sigmas. Where
    its shift follows the picture's size, training takes none, as in diffusers' scripts.

    Raises:
        UserError: it is of another kind.
    """
    config, kind = scheduler.config, type(scheduler).__name__
    if kind != EULER and not (config.get("use_flow_sigmas") and config.get("prediction_type") == "flow_prediction"):
        raise UserError(
            f"{name}: a {kind} is not for a model of rectified flow; use the one that the model was trained with, "
            f"such as a {EULER}, or a DPMSolverMultistepScheduler with use_flow_sigmas and flow_prediction."
        )
    shift = 1.0 if config.get("use_dynamic_shifting") else _shift(config)
    return processes.flow(shift, config.num_train_timesteps)


def even(steps: int) -> list[float]:
    """Levels from 1 to 1/steps, as far from each other as the last is from 0."""
    return [1.0 - step / steps for step in range(steps)]


def set_steps(
    solver: Any, steps: int, tokens: int, device: torch.device, sigmas: Sequence[float] | None = None
) -> None:
    """``set_shifted`` by the size of the picture, of so many tokens, as the scheduler's config has it."""
    config = solver.config
    low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    least, most = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    set_shifted(solver, steps, least + (most - least) * (tokens - low) / (high - low), device, sigmas)


def set_shifted(
    solver: Any, steps: int, mu: float, device: torch.device, sigmas: Sequence[float] | None = None
) -> None:
    """Place a solver's steps, shifted by ``mu`` where the model is dynamic.

    Args:
        sigmas: where Euler's lie before they are shifted, the scheduler's own by default; other solvers place theirs
            themselves, as in diffusers' pipelines.
    """
    config = solver.config
    given = {} if sigmas is None or config.get("use_flow_sigmas") else {"sigmas": list(sigmas)}
    shifted = {"mu": mu} if config.get("use_dynamic_shifting") else {}
    solver.set_timesteps(steps, device=device, **shifted, **given)


def _shift(config: Any) -> float:
    return float(config.get("flow_shift", config.get("shift", 1.0)))
