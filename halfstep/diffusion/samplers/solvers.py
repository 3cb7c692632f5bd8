"""The steps: DDIM, ancestral, Heun and DPM-Solver++(2M), each the formula of its paper.

A step takes x from the last visited point to `to`.  All levels are 0-dimensional float64: coefficients
are exact to float64 and never change the dtype of x.  Arriving at t = 0 is arriving at alpha = 1,
sigma = 0, where every step returns the predicted x0: this is the last-step rule.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from halfstep.config.validate import Share, validate
from halfstep.diffusion.prediction import Prediction
from halfstep.diffusion.schedules import Level


@dataclass(frozen=True)
class TimePoint:
    """A place on a walk: the step number that leads there (0 is the start), its time and its level."""

    step: int
    t: float
    level: Level


@dataclass(frozen=True)
class ModelOutput:
    """A point at which the network was asked, and what it answered."""

    point: TimePoint
    pred: Prediction


ModelFn = Callable[[Tensor, TimePoint], ModelOutput]
"""Ask the network about x at a point: one counted network call (two forwards' worth if guided)."""

Step = Callable[[Tensor, Sequence[ModelOutput], TimePoint, ModelFn], Tensor]
"""(x, visits so far with the present one last, where to go, model_fn) -> x there."""


def ddim(x: Tensor, history: Sequence[ModelOutput], to: TimePoint, model_fn: ModelFn) -> Tensor:
    """DDIM with eta = 0 (Song et al. 2021, eq. 12).  Order 1, one call."""
    return to.level.mix(history[-1].pred.x0, history[-1].pred.eps)


def heun(x: Tensor, history: Sequence[ModelOutput], to: TimePoint, model_fn: ModelFn) -> Tensor:
    """Heun's rule on the exponential form in log-SNR.  Order 2, two calls; the landing is DDIM.

    It averages two predicted x0.  It is not Algorithm 1 of EDM (Karras et al. 2022), which averages two
    slopes in sigma, and whose numbers are others.

    x_s = (sigma_s / sigma_t) x_t + (alpha_s - alpha_t sigma_s / sigma_t) (x0_t + x0_s) / 2, which is
    -alpha_s expm1(-h) without its infinite h at alpha_t = 0.
    """
    first = ddim(x, history, to, model_fn)
    if to.level.sigma == 0:
        return first
    here, pred = history[-1].point.level, history[-1].pred
    x0 = (pred.x0 + model_fn(first, to).pred.x0) / 2
    return _exponential(x, x0, here, to.level)


def dpmpp_2m(x: Tensor, history: Sequence[ModelOutput], to: TimePoint, model_fn: ModelFn) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, Algorithm 2).  Order 2, one call; first and last are DDIM."""
    if len(history) == 1 or to.level.sigma == 0:
        return ddim(x, history, to, model_fn)
    (before, old), (here, new) = ((v.point.level, v.pred) for v in history[-2:])
    h, h_before = to.level.logsnr - here.logsnr, here.logsnr - before.logsnr
    # h_before is infinite after a start at alpha = 0, and the correction then is 0, as it should.
    x0 = new.x0 + h / h_before / 2 * (new.x0 - old.x0)
    return _exponential(x, x0, here, to.level)


def _exponential(x: Tensor, x0: Tensor, here: Level, to: Level) -> Tensor:
    """The exact solution of the flow while the predicted x0 stays constant."""
    shrink = to.sigma / here.sigma
    return shrink * x + (to.alpha - here.alpha * shrink) * x0


def ancestral(fresh: Callable[[Tensor, int], Tensor], *, variance: float = 0.0) -> Step:
    """The stochastic sampler of DDPM (Ho et al. 2020; Salimans & Ho 2022, section 2).

    fresh     (like, step) -> unit noise, so that noise is a function of the step number
    variance  in [0, 1]: 0 the small (posterior) variance, 1 the large, between them log-interpolated
    """
    validate("variance", variance, Share)

    def step(x: Tensor, history: Sequence[ModelOutput], to: TimePoint, model_fn: ModelFn) -> Tensor:
        here, x0 = history[-1].point.level, history[-1].pred.x0
        if to.level.sigma == 0:
            return x0
        # r = SNR_t / SNR_s, as sqrt(r) = alpha_t sigma_s / (sigma_t alpha_s): 0 at alpha_t = 0.
        root = here.alpha * to.level.sigma / (here.sigma * to.level.alpha)
        r = root**2
        mean = root * to.level.sigma / here.sigma * x + (1 - r) * to.level.alpha * x0
        spread = to.level.sigma ** (1 - variance) * here.sigma**variance
        noise: Tensor = fresh(x, to.step)
        return mean + (1 - r).sqrt() * spread * noise

    return step
