"""Sampling from noise to data: one loop for every solver step."""

from itertools import pairwise

import torch
from torch import Tensor

from halfstep.batch import Cond
from halfstep.config.validate import Share, validate
from halfstep.diffusion.denoiser import Denoises
from halfstep.diffusion.prediction import Clip
from halfstep.diffusion.samplers.solvers import ddim, ModelOutput, Step, TimePoint
from halfstep.diffusion.schedules import arriving, Schedule
from halfstep.diffusion.time_grids import checked, on_schedule, Times
from halfstep.errors import ConfigError
from halfstep.progress import Progress, SILENT


def _time(t: float) -> Tensor:
    return torch.tensor(validate("t", t, Share), dtype=torch.float64)


def start(schedule: Schedule, noise: Tensor, t: float = 1.0) -> Tensor:
    """The x_t at which sampling starts: unit noise if variance preserving, else sigma(t) * noise."""
    if not noise.is_floating_point():
        raise ConfigError(f"sampling starts from floats, got {noise.dtype}: give noise.float()")
    if schedule.variance_preserving:
        return noise
    return schedule.at(_time(t)).sigma * noise


def noise_of(schedule: Schedule, x: Tensor, t: float) -> Tensor:
    """The unit noise that `start` turns into x at time t."""
    if schedule.variance_preserving:
        return x
    return x / schedule.at(_time(t)).sigma


@torch.no_grad()
def sample(
    denoiser: Denoises,
    noise: Tensor,
    times: Times,
    step: Step = ddim,
    *,
    cond: Cond | None = None,
    clip: float | Clip | None = None,
    progress: Progress = SILENT,
) -> Tensor:
    """Sample: integrate from times[0] to times[-1].

    Args:
        denoiser: a denoiser, guided or not.
        noise: float [B, ...] unit noise; becomes `start(schedule, noise, times[0])`.
        times: 1 >= falling >= 0. Arriving at 0 returns the last predicted x0.
        step: the solver, such as `ddim`.
        cond: the conditions, one row a sample, or None.
        clip: clip every predicted x0 to [-clip, clip] and recompute its eps; None does not clip; or a
            `Clip`.
        progress: advances with every step.

    Returns:
        float [B, ...] at times[-1].

    Raises:
        ConfigError: a grid that does not fall, noise that is no float, or a start at t = 0 or where a
            network's output does not determine x0.
    """
    schedule, clipped = denoiser.schedule, Clip.of(clip)
    history: list[ModelOutput] = []

    def model_fn(x: Tensor, point: TimePoint) -> ModelOutput:
        t = torch.full(x.shape[:1], point.t, device=x.device, dtype=wide(x))
        pred = denoiser(x, t, cond)
        return ModelOutput(point, pred if clipped is None else clipped(pred, x, point.level))

    on_schedule(checked(times), schedule)
    if times[0] == 0:
        raise ConfigError(
            "sampling cannot start at t = 0, which is data already: start the grid higher"
        )
    progress.expect(len(times) - 1)
    x, current = (
        start(schedule, noise, times[0]),
        TimePoint(0, times[0], schedule.at(_time(times[0]))),
    )
    for k, (_, next_t) in enumerate(pairwise(times), start=1):
        history = [*history[-2:], model_fn(x, current)]  # DPM-Solver-3 reads three
        to = TimePoint(k, next_t, arriving(schedule, _time(next_t)))
        x = step(x, history, to, model_fn).to(noise.dtype)
        current = to
        progress.advance()
    return x


def wide(x: Tensor) -> torch.dtype:
    """The dtype of times and coefficients: float64, or float32 on a device without it."""
    return torch.float32 if x.device.type == "mps" else torch.float64
