"""Fidelity: the error of a student's images against its teacher's of the same noise, and its two parts.

Progressive distillation is deterministic, so student and teacher are compared in pairs.  The error has two
sources: the coarser grid (`grid_cost`), and imperfect training (`learning_error`).
"""

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from halfstep.batch import batches, Cond
from halfstep.diffusion.denoiser import Denoiser, Denoises, level_of
from halfstep.diffusion.schedules import arriving
from halfstep.diffusion.time_grids import checked, Times
from halfstep.division import ALONE, Division
from halfstep.errors import ConfigError, DataError
from halfstep.evaluation.metrics.bootstrap import basic_bootstrap, Interval
from halfstep.methods.diffusion.matching import on_grid
from halfstep.methods.diffusion.two_step_target import two_step_target
from halfstep.pipeline import Pipeline
from halfstep.pixels import as_floats
from halfstep.progress import expected, Progress, SILENT
from halfstep.rng import sample_noise

PEAK = 2.0
"""Range of pixels in [-1, 1]."""
TINY = 2.0**-24
"""Rounding error of float32: PSNR is at most 150.5 dB."""


@dataclass(frozen=True)
class Fidelity:
    """Errors of a student against its teacher, from the same noise."""

    rmse: Interval
    """Root mean square over all pairs and pixels; pixels in [-1, 1]."""
    psnr: Interval
    """20 log10(2 / rmse) in dB, at most 150.5, of the pooled error: the mean over pairs is infinite if one
    pair agrees."""
    feature_rmse: Interval
    """Root mean square error of the features, over the root mean square of the teacher's features."""


def fidelity(
    teacher_images: Tensor,
    student_images: Tensor,
    teacher_features: Tensor,
    student_features: Tensor,
    *,
    resamples: int = 200,
    level: float = 0.95,
    seed: int = 0,
) -> Fidelity:
    """Compare the student's images with the teacher's, row k of both from the same noise.

    images    float [N, ...] in [-1, 1]
    features  float [N, D] of the same images

    Pairs are resampled whole, on a log scale, so that both ends of an interval are positive.
    """
    if len(teacher_features) != len(teacher_images):
        raise ConfigError(
            f"got {len(teacher_features)} rows of features for {len(teacher_images)} images: give the "
            "features of these images"
        )
    rmse = paired_rmse(teacher_images, student_images, resamples=resamples, level=level, seed=seed)
    errors = square_errors(teacher_features, student_features)
    size = teacher_features.double().square().flatten(1).mean(1)
    feature_rmse = _root(torch.stack([errors, size], 1), resamples, level, seed)
    return Fidelity(rmse, Interval(*map(_psnr, (rmse.value, rmse.high, rmse.low))), feature_rmse)


def paired_rmse(
    a: Tensor, b: Tensor, *, resamples: int = 200, level: float = 0.95, seed: int = 0
) -> Interval:
    """Root mean square of a - b over all pairs and pixels, both float [N, ...]."""
    return root_mean(square_errors(a, b), resamples=resamples, level=level, seed=seed)


def root_mean(
    squares: Tensor, *, resamples: int = 200, level: float = 0.95, seed: int = 0
) -> Interval:
    """Root of the mean of the results of `square_errors`."""
    return _root(squares[:, None], resamples, level, seed)


def worst_pairs(teacher_images: Tensor, student_images: Tensor, count: int = 8) -> list[int]:
    """The row numbers of the largest errors, worst first."""
    if count < 1:
        raise ConfigError(f"worst pairs need a count of at least 1, got {count}: write count=8")
    off = square_errors(teacher_images, student_images)
    return [int(k) for k in off.argsort(descending=True, stable=True)[:count]]


def grid_cost(
    teacher: Pipeline,
    times: Times,
    *,
    n: int = 2000,
    seed: int = 0,
    labels: list[int] | None = None,
    guidance_scale: float = 1.0,
    batch: int = 256,
    division: Division = ALONE,
    progress: Progress = SILENT,
) -> Interval:
    """The error of a grid half as fine: the teacher's N DDIM steps against its 2N.

    teacher  the undistilled teacher, so that the error is the grid's alone
    times    the finer grid, 2N + 1 times; the coarser has every other time, as a student's does
    division divides the samples among processes
    """
    steps = _even(times) // 2
    both, counts = teacher.on_grids(times, times[::2]), (steps, 2 * steps)
    both.check_counts(n, seed=seed, batch=batch)
    progress = expected(progress, sum(counts) * len(batches(range(n), batch)))
    draw = partial(_latents, both, seed=seed, labels=labels, guidance_scale=guidance_scale)
    coarse, fine = (
        torch.cat(list(division.map(partial(draw, steps=k), batches(range(n), batch), progress)))
        for k in counts
    )
    return paired_rmse(coarse, fine)


def _latents(
    pipeline: Pipeline,
    rows: range,
    progress: Progress,
    *,
    steps: int,
    seed: int,
    labels: list[int] | None,
    guidance_scale: float,
) -> Tensor:
    """One batch of samples, latents not decoded, as `learning_error` measures."""
    return pipeline.sample(
        len(rows), first=rows.start, seed=seed, steps=steps, guidance_scale=guidance_scale,
        labels=None if labels is None else labels[rows.start : rows.stop], batch=len(rows),
        latents=True, progress=progress,
    )  # fmt: skip


def learning_error(
    student: Denoiser,
    teacher: Denoises,
    times: Times,
    x0: Tensor,
    *,
    cond: Cond | None = None,
    seed: int = 0,
    batch: int = 256,
) -> Interval:
    """The error of one student step against two steps of its teacher.

    student  takes `times[::2]`
    teacher  the network that the student was distilled from, on `times`: the student of the halving BEFORE,
             or for the first halving the undistilled teacher (`Guided`, if that was distilled).  Against
             the first teacher, errors of all halvings so far would mix with the grid's
    x0       clean data, float [n, ...] in [-1, 1]; `cond` its labels

    Root mean square in the space of x, over states alpha x0 + sigma eps at the student's times (Salimans &
    Ho 2022, Algorithm 2).  Every time gets an equal share of the images, so n images cost 3n forwards for
    any N: give many more images than steps.  Nothing is clipped, as in training.
    """
    steps, x0 = _even(times) // 2, as_floats(x0)
    if len(x0) < steps:
        raise ConfigError(
            f"the student has {steps} times and each needs an image, got {len(x0)}: give at least {steps}"
        )
    order = torch.randperm(len(x0), generator=torch.Generator().manual_seed(seed))
    place = 2 * (order * steps // len(x0))
    student.eval()
    errors = []
    for low in range(0, len(x0), batch):
        rows = slice(low, min(low + batch, len(x0)))
        noise = sample_noise(seed, range(len(x0))[rows], x0.shape[1:])
        condition = None if cond is None else cond[rows]
        errors.append(
            _step_errors(student, teacher, times, place[rows], x0[rows], noise, condition)
        )
    return _root(torch.cat(errors)[:, None], 200, 0.95, seed)


@torch.no_grad()
def _step_errors(
    student: Denoiser,
    teacher: Denoises,
    times: Times,
    i: Tensor,
    x0: Tensor,
    eps: Tensor,
    cond: Cond | None,
) -> Tensor:
    """Mean squared distance of the two results, [B], float64 on the CPU; i indexes `times`."""
    device = next(student.parameters()).device
    x0, i = x0.to(device), i.to(device)
    cond = None if cond is None else cond.to(device)
    t, t_mid, t_end = on_grid(times, i, i + 1, i + 2)
    x_t = level_of(teacher.schedule, t, x0).mix(x0, eps.to(x0))
    target = two_step_target(teacher, x_t, t, t_mid, t_end, cond)
    guess = student(x_t, t, cond)
    level = arriving(teacher.schedule, t_end.reshape(-1, *[1] * (x0.ndim - 1)))
    missed = level.alpha.to(x0) * (guess.x0 - target.x0) + level.sigma.to(x0) * (
        guess.eps - target.eps
    )
    return _finite_squares(missed.cpu()).flatten(1).mean(1)  # Apple's GPUs have no float64


def _even(times: Times) -> int:
    steps = len(checked(times)) - 1
    if steps % 2:
        raise ConfigError(
            f"a grid of {steps} steps cannot be halved: give the finer one, with an even number of steps"
        )
    return steps


def square_errors(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared error of each pair, float64 [N]."""
    a, b = as_floats(a), as_floats(b)
    if a.shape != b.shape or a.ndim < 2 or len(a) < 2:
        raise ConfigError(
            f"pairs need two sets of one shape [N, ...] with N at least 2, got {list(a.shape)} and "
            f"{list(b.shape)}: sample both with the same n and seed"
        )
    return _finite_squares(a.double() - b.double()).flatten(1).mean(1)


def _finite_squares(x: Tensor) -> Tensor:
    """x squared, in float64."""
    if not bool(x.isfinite().all()):
        raise DataError("some values are nan or infinite: the sampler of these images has diverged")
    return x.double().square()


def _root(squares: Tensor, resamples: int, level: float, seed: int) -> Interval:
    """sqrt of the mean of the first column (over that of the second), rows resampled together.

    On a log scale, so that the interval of PSNR follows from this one, and neither leaves its range.
    """
    if not bool(squares[:, 0].any()):
        return Interval(0.0, 0.0, 0.0)

    def log_root(rows: Tensor) -> float:
        mean = rows.mean(0).clamp(min=TINY**2)
        return float((mean[0] / (mean[1] if len(mean) == 2 else 1)).log() / 2)

    logs = basic_bootstrap(log_root, squares, resamples=resamples, level=level, seed=seed)
    return Interval(*map(math.exp, (logs.value, logs.low, logs.high)))


def _psnr(rmse: float) -> float:
    return 20 * math.log10(PEAK / max(rmse, TINY))
