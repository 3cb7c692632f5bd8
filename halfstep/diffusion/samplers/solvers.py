"""Solver steps: DDIM, ancestral, Heun and DPM-Solver++(2M), each the formula of its paper.

A step takes x from the newest point of the history to `to`.  All levels are 0-dimensional float64:
coefficients are exact to float64 and never change the dtype of x.  A step to t = 0 ends at alpha = 1,
sigma = 0, where it returns the predicted x0: the last-step rule.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from halfstep.config.validate import Share, validate
from halfstep.diffusion.prediction import Prediction
from halfstep.diffusion.schedules import Level


@dataclass(frozen=True)
class TimePoint:
    """A point of a trajectory: number of the step that ends there (0 is the start), time and level.

    Args:
        step: its number.
        t: in [0, 1].
        level: alpha and sigma there.
    """

    step: int
    t: float
    level: Level


@dataclass(frozen=True)
class ModelOutput:
    """The prediction of the network at a point.

    Args:
        point: the point.
        pred: x0 and eps, float [B, ...].
    """

    point: TimePoint
    pred: Prediction


ModelFn = Callable[[Tensor, TimePoint], ModelOutput]
"""Evaluate the network on x at a point: one counted network call (the cost of two forwards if guided)."""

Step = Callable[[Tensor, Sequence[ModelOutput], TimePoint, ModelFn], Tensor]
"""(x, outputs so far with the present one last, target point, model_fn) -> x at the target."""


def ddim(x: Tensor, history: Sequence[ModelOutput], to: TimePoint, model_fn: ModelFn) -> Tensor:
    """DDIM with eta = 0 (Song et al. 2021, eq. 12).  Order 1, one call."""
    return to.level.mix(history[-1].pred.x0, history[-1].pred.eps)


def heun(x: Tensor, history: Sequence[ModelOutput], to: TimePoint, model_fn: ModelFn) -> Tensor:
    """Heun's rule on the exponential form in log-SNR.  Order 2, two calls; the step to sigma = 0 is DDIM.

    It averages two predicted x0, unlike Algorithm 1 of EDM (Karras et al. 2022), which averages two slopes in
    sigma.

    x_s = (sigma_s / sigma_t) x_t + (alpha_s - alpha_t sigma_s / sigma_t) (x0_t + x0_s) / 2, which is
    -alpha_s expm1(-h) without its infinite h at alpha_t = 0.
    """
    first = ddim(x, history, to, model_fn)
    if to.level.sigma == 0:
        return first
    current, pred = history[-1].point.level, history[-1].pred
    x0 = (pred.x0 + model_fn(first, to).pred.x0) / 2
    return _exponential(x, x0, current, to.level)


def dpmpp_2m(x: Tensor, history: Sequence[ModelOutput], to: TimePoint, model_fn: ModelFn) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, Algorithm 2).  Order 2, one call; first and last are DDIM."""
    if len(history) == 1 or to.level.sigma == 0:
        return ddim(x, history, to, model_fn)
    (before, old), (current, new) = ((v.point.level, v.pred) for v in history[-2:])
    h, h_before = to.level.logsnr - current.logsnr, current.logsnr - before.logsnr
    # h_before is infinite after a start at alpha = 0, where the correction is 0, as it should be.
    x0 = new.x0 + h / h_before / 2 * (new.x0 - old.x0)
    return _exponential(x, x0, current, to.level)


def _exponential(x: Tensor, x0: Tensor, current: Level, to: Level) -> Tensor:
    """The exact solution of the flow while the predicted x0 stays constant."""
    shrink = to.sigma / current.sigma
    return shrink * x + (to.alpha - current.alpha * shrink) * x0


def ancestral(fresh: Callable[[Tensor, int], Tensor], *, variance: float = 0.0) -> Step:
    """The stochastic sampler of DDPM (Ho et al. 2020; Salimans & Ho 2022, section 2).

    Args:
        fresh: (like, step) to unit noise, so that noise is a function of the step number.
        variance: in [0, 1]: 0 is the small (posterior) variance, 1 the large; log-interpolated between
            them.

    Raises:
        ConfigError: a variance beyond its range.
    """
    validate("variance", variance, Share)

    def step(x: Tensor, history: Sequence[ModelOutput], to: TimePoint, model_fn: ModelFn) -> Tensor:
        current, x0 = history[-1].point.level, history[-1].pred.x0
        if to.level.sigma == 0:
            return x0
        # r = SNR_t / SNR_s, as sqrt(r) = alpha_t sigma_s / (sigma_t alpha_s): 0 at alpha_t = 0.
        root = current.alpha * to.level.sigma / (current.sigma * to.level.alpha)
        r = root**2
        mean = root * to.level.sigma / current.sigma * x + (1 - r) * to.level.alpha * x0
        spread = to.level.sigma ** (1 - variance) * current.sigma**variance
        noise: Tensor = fresh(x, to.step)
        return mean + (1 - r).sqrt() * spread * noise

    return step
