"""The identity of all few-step methods: two DDIM steps are one, with a convex combination of their images.

Two DDIM steps t -> t_mid -> t_end with predictions x_1 (at t) and x_2 (at t_mid) land where one step lands
with x~ = [(rho_m - rho_t) x_1 + (rho_e - rho_m) x_2] / (rho_e - rho_t), rho = alpha / sigma.  The methods
differ in who predicts: first and second the teacher in progressive distillation (Salimans & Ho 2022,
Algorithm 2), the teacher and then the student in multistep consistency (Heek et al. 2024), the student twice
in a flow map (Frans et al. 2024).
"""

from collections.abc import Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from halfstep.batch import Cond
from halfstep.diffusion.denoiser import Denoises, level_of
from halfstep.diffusion.prediction import Clip, Prediction
from halfstep.diffusion.schedules import arriving, Schedule

Solver = Literal["ddim", "heun"]
"""Solvers of a teacher's steps in targets, by their names as samplers."""

CALLS: dict[Solver, int] = {"ddim": 1, "heun": 2}
"""Predictions of a teacher in one step; Heun's last takes one, and costs two where rows end elsewhere."""


class Predicts(Protocol):
    """A function of (x_t, t, cond) that returns a `Prediction`: a denoiser, or one that is told more."""

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction: ...


@torch.no_grad()
def one_step_target(
    teacher: Denoises,
    x_t: Tensor,
    t: Tensor,
    t_end: Tensor,
    cond: Cond | None = None,
    *,
    clip: float | Clip | None = None,
    solver: Solver = "ddim",
) -> Prediction:
    """The prediction with which one DDIM step lands where one step of a teacher's sampler lands.

    Args:
        teacher: the denoiser.
        x_t: float [B, ...], noisy data.
        t: float64 [B], the start of the step.
        t_end: float64 [B], its end.
        cond: the conditions, or None.
        clip: as of `two_step_target`.
        solver: as of `two_step_target`.

    Raises:
        ConfigError: as of `two_step_target`.
    """
    pred, clipped, schedule = teacher(x_t, t, cond), Clip.of(clip), teacher.schedule
    if solver == "heun":
        after = pred if clipped is None else clipped(pred, x_t, level_of(schedule, t, x_t))
        return _heun(teacher, x_t, t, t_end, cond, after, clipped)
    return as_clipped(schedule, pred, x_t, t, t_end, clipped)


@torch.no_grad()
def two_step_target(
    teacher: Denoises,
    x_t: Tensor,
    t: Tensor,
    t_mid: Tensor,
    t_end: Tensor,
    cond: Cond | None = None,
    *,
    second: Predicts | None = None,
    clip: float | Clip | None = None,
    solver: Solver = "ddim",
) -> Prediction:
    """The prediction with which ONE DDIM step t -> t_end lands where TWO steps land.

    Algorithm 2's x~ = (z_t'' - (sigma_t'' / sigma_t) z_t) / (alpha_t'' - (sigma_t'' / sigma_t) alpha_t)
    as the convex combination it is, for any schedule and without its cancellation::

        x~ = [(rho_m - rho_t) x_1 + (rho_e - rho_m) x_2] / (rho_e - rho_t)  with  rho = alpha / sigma

    and eps~ the same with rho = sigma / alpha. At t_end = 0 the step ends in clean data: x~ = x_2. Never
    differentiated.

    Args:
        teacher: the denoiser that predicts at t, and at t_mid unless `second` does.
        x_t: float [B, ...], noisy data.
        t: float64 [B], the start of the step.
        t_mid: float64 [B], t > t_mid > t_end, or towards noise t < t_mid < t_end. With t_mid = t the
            second prediction is the target; with t_mid = t_end, also both 0, the first.
        t_end: float64 [B], its end.
        cond: the conditions, or None.
        second: predicts at t_mid, such as a student that jumps from there to t_end.
        clip: clip the teacher's images to [-clip, clip] (which needs sigma > 0), or a `Clip`; None, as in
            the paper, does not clip. What `second` predicts is taken as it is.
        solver: of the teacher's steps: "ddim" as in the paper, or "heun", whose step is a DDIM step with the
            mean of the images at its start and its end; a step that ends in clean data is DDIM.

    Raises:
        ConfigError: a network that predicts eps where alpha = 0, or x0 where sigma = 0.
    """
    schedule, clipped = teacher.schedule, Clip.of(clip)
    shape = -1, *[1] * (x_t.ndim - 1)

    def step(x: Tensor, t: Tensor, to: Tensor) -> Prediction:
        return one_step_target(teacher, x, t, to, cond, clip=clipped, solver=solver)

    first = step(x_t, t, t_mid)
    alone = t_mid == t_end  # no second step: nothing is predicted at t_end, which may be 0
    one = alone.reshape(shape)
    x_mid = level_of(schedule, t_mid, x_t).mix(first.x0, first.eps)
    x_mid, here = torch.where(one, x_t, x_mid), torch.where(alone, t, t_mid)
    last = second(x_mid, here, cond) if second else step(x_mid, here, t_end)

    def merged(one_step: Tensor, two: Tensor, share: Tensor) -> Tensor:
        return torch.where(
            one, one_step, torch.lerp(one_step, two, share.to(x_t.dtype).reshape(shape))
        )

    x_share, eps_share = shares(schedule, t, t_mid, t_end)
    return Prediction(merged(first.x0, last.x0, x_share), merged(first.eps, last.eps, eps_share))


def steps_target(
    teacher: Denoises,
    x_t: Tensor,
    times: Sequence[Tensor],
    cond: Cond | None = None,
    *,
    clip: float | Clip | None = None,
    solver: Solver = "ddim",
) -> Prediction:
    """The prediction with which ONE DDIM step lands where the teacher's steps through these times land.

    Two steps at a time: the first, and all others merged into one.

    Args:
        teacher: the frozen denoiser.
        x_t: float [B, ...], noisy data at times[0].
        times: float64 [B] each, three or more, falling, or rising towards noise.
        cond: the conditions, or None.
        clip: as of `two_step_target`.
        solver: as of `two_step_target`.

    Raises:
        ConfigError: as of `two_step_target`.
    """
    t, t_mid, *later = times

    def others(x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        return steps_target(teacher, x_t, times[1:], cond, clip=clip, solver=solver)

    second = others if len(later) > 1 else None
    return two_step_target(
        teacher, x_t, t, t_mid, later[-1], cond, second=second, clip=clip, solver=solver
    )


def _heun(
    teacher: Denoises,
    x: Tensor,
    t: Tensor,
    to: Tensor,
    cond: Cond | None,
    first: Prediction,
    clip: Clip | None,
) -> Prediction:
    """The prediction with which a DDIM step lands where Heun's step lands: the mean of two images.

    first  the prediction at t, clipped
    """
    last, shape = to == 0, (-1, *[1] * (x.ndim - 1))
    ends = last.reshape(shape)  # in clean data, where nothing is predicted
    there = level_of(teacher.schedule, to, x).mix(first.x0, first.eps)
    there, then = torch.where(ends, x, there), torch.where(last, t, to)
    second = teacher(there, then, cond)
    if clip is not None:
        second = clip(second, there, level_of(teacher.schedule, then, x))
    mean = torch.where(ends, first.x0, (first.x0 + second.x0) / 2)
    # eps = (x - alpha x0) / sigma, without the cancellation where the images are alike
    level = level_of(teacher.schedule, t, x)
    eps = first.eps - level.alpha / level.sigma * (mean - first.x0)
    return Prediction(mean, eps)


def shares(schedule: Schedule, t: Tensor, t_mid: Tensor, t_end: Tensor) -> tuple[Tensor, Tensor]:
    """The second step's shares in the two-step x0 and the two-step eps, in [0, 1] and t's dtype."""
    start, mid, end = schedule.at(t), schedule.at(t_mid), arriving(schedule, t_end)
    second = end.alpha * mid.sigma - mid.alpha * end.sigma
    both = end.alpha * start.sigma - start.alpha * end.sigma
    x_share = start.sigma * second / (mid.sigma * both)
    return x_share, start.alpha * second / (mid.alpha * both)


def as_clipped(
    schedule: Schedule, pred: Prediction, x: Tensor, t: Tensor, to: Tensor, clip: Clip | None
) -> Prediction:
    """The consistent prediction whose DDIM step t -> to lands where the clipped step lands.

    Args:
        schedule: the noise schedule.
        pred: the prediction at t.
        x: float [B, ...], at t.
        t: float64 [B], the start of the step.
        to: float64 [B], its end.
        clip: the clipping; None leaves the prediction as it is.
    """
    if clip is None:
        return pred
    after = clip(pred, x, level_of(schedule, t, x))
    return after if clip.kind == "x0-and-eps" else _merged(schedule, pred, after, t, to)


def _merged(
    schedule: Schedule, pred: Prediction, clipped: Prediction, t: Tensor, to: Tensor
) -> Prediction:
    """The consistent prediction whose DDIM step lands where a step lands that clips x0 and leaves eps.

    Algorithm 2's x~ = (z_s - (sigma_s / sigma_t) z_t) / (alpha_s - (sigma_s / sigma_t) alpha_t) at the
    landing z_s = alpha_s c + sigma_s eps, exact to the bit where nothing is clipped: x~ = x0 + g (c - x0),
    eps~ = eps - (alpha_t / sigma_t) g (c - x0), g = alpha_s sigma_t / (alpha_s sigma_t - alpha_t sigma_s).
    g is 1 at s = 0 and grows as steps shrink: x~ may lie far beyond the bound.  A step of no length is pred.
    """
    start, end = schedule.at(t), arriving(schedule, to)
    length = end.alpha * start.sigma - end.sigma * start.alpha
    scale = (end.alpha / length).where(length != 0, 0)
    change = clipped.x0 - pred.x0

    def times_change(gain: Tensor) -> Tensor:
        return gain.to(change.dtype).reshape(-1, *[1] * (change.ndim - 1)) * change

    return Prediction(
        pred.x0 + times_change(scale * start.sigma), pred.eps - times_change(scale * start.alpha)
    )
