"""The inverse of a DDIM step: the prediction that leads from one point of a trajectory to a later one.

What `two_step_target` makes of two predictions, this reads off the points where two steps begin and end: any
solver's, and of any number of steps.  Nothing divides by alpha_t, which may be 0, or by sigma_e.
"""

import torch
from torch import Tensor

from halfstep.diffusion.prediction import Prediction
from halfstep.diffusion.schedules import arriving, Schedule
from halfstep.diffusion.time_grids import Times
from halfstep.errors import ConfigError


def landing_target(
    schedule: Schedule, x_t: Tensor, x_e: Tensor, t: Tensor, e: Tensor
) -> Prediction:
    """The prediction with which one DDIM step from x_t at t lands on x_e at e.

    At e = 0 the step arrives at clean data (alpha 1, sigma 0): x0 is x_e itself, whatever the schedule says.

    Args:
        schedule: the noise schedule.
        x_t: float [B, ...], the start.
        x_e: float [B, ...], the end.
        t: float64 [B], above e.
        e: float64 [B], in [0, 1).
    """
    start, end = schedule.at(t), arriving(schedule, e)
    length = start.sigma * end.alpha - end.sigma * start.alpha

    def times(x: Tensor, factor: Tensor) -> Tensor:
        return (factor / length).to(x.dtype).reshape(-1, *[1] * (x.ndim - 1)) * x

    x0 = times(x_e, start.sigma) - times(x_t, end.sigma)
    return Prediction(x0, times(x_t, end.alpha) - times(x_e, start.alpha))


def refuse_no_length(schedule: Schedule, times: Times) -> None:
    """`ConfigError` if a segment has no target, its ends having the same levels."""
    t = torch.tensor(times, dtype=torch.float64)
    start, end = schedule.at(t[:-1]), arriving(schedule, t[1:])
    length = start.sigma * end.alpha - end.sigma * start.alpha
    if not bool((good := length.isfinite() & (length != 0)).all()):
        first = float(t[:-1][~good][0])
        raise ConfigError(
            f"no prediction leads from t = {first:g} to the end of its segment, as the schedule's levels "
            "there are equal or not finite: give times where they differ"
        )
