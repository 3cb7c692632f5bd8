"""The reverse-time SDE, by Euler and Maruyama."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from halfstep.diffusion.samplers.solvers import ModelFn, ModelOutput, Step, TimePoint
from halfstep.diffusion.samplers.step_checks import (
    exact_prediction,
    MAX_ERROR,
    relative_error,
    spread,
)
from halfstep.diffusion.schedules import Schedule
from halfstep.errors import ConfigError

Fresh = Callable[[Tensor, int], Tensor]
"""(like, step) -> unit noise, so that noise is a function of the step number."""


def euler_maruyama(schedule: Schedule, fresh: Fresh) -> Step:
    """The reverse-time SDE of Song et al. 2021, eq. 6, in Euler-Maruyama steps.  Weak order 1, one call.

    dx = (f x - g^2 score) dt + g dw with score = -eps / sigma.  A step to t = 0 takes the mean alone, as
    the official code does, and not the predicted x0.  For the grid `uniform_landing(steps)`.

    Raises `ConfigError` for a table of betas, which has corners and no g, for a start at alpha = 0, and for
    a step that is too long for its drift, as every step from the cosine's t = 1 is (drift 34,600).
    """
    if hasattr(schedule, "levels"):
        raise ConfigError(
            "the reverse-time SDE needs a schedule with a slope at every time, and a table of betas has "
            "corners: write sampler='ancestral', which is its form on a table"
        )

    def step(x: Tensor, history: Sequence[ModelOutput], to: TimePoint, model_fn: ModelFn) -> Tensor:
        current, pred = history[-1].point, history[-1].pred
        if current.level.alpha == 0:
            raise ConfigError(
                f"the reverse-time SDE cannot start at t = {current.t:g}, where alpha = 0 and its drift is "
                "infinite: start the grid below, for example at t = 0.999"
            )
        f, g2 = _drift_and_diffusion(schedule, current.t)
        passed = current.t - to.t
        noise = (g2 * passed).sqrt() if to.t > 0 else torch.zeros_like(g2)

        def mean(x: Tensor, eps: Tensor) -> Tensor:
            return x - (f * x + g2 / current.level.sigma * eps) * passed

        _refuse_too_long(current, to, mean, noise)
        if to.t == 0:
            return mean(x, pred.eps)
        return mean(x, pred.eps) + noise * fresh(x, to.step)

    return step


def _refuse_too_long(
    current: TimePoint, to: TimePoint, mean: Callable[[Tensor, Tensor], Tensor], noise: Tensor
) -> None:
    """`ConfigError` for a step after which x is far too spread out even with an exact network."""
    x = spread(current.level)
    after = (mean(x, exact_prediction(x, current.level).eps) ** 2 + noise**2).sqrt()
    if relative_error(after, spread(to.level), drawn=True) > MAX_ERROR - 1:
        raise ConfigError(
            f"euler-maruyama cannot step from t = {current.t:g} to {to.t:g}: its drift is so strong that x "
            f"would be {float(after / spread(to.level)):,.3g} times as spread out as it should be.  Take "
            "more steps, start the grid lower if it is the first, or write sampler='ancestral'"
        )


def _drift_and_diffusion(schedule: Schedule, t: float) -> tuple[Tensor, Tensor]:
    """f = d log alpha / dt and g^2 = d sigma^2 / dt - 2 f sigma^2 (Lu et al. 2022a, section 2.1), float64."""
    with torch.inference_mode(False), torch.enable_grad():  # sampling runs without gradients
        time = torch.tensor(t, dtype=torch.float64, requires_grad=True)
        level = schedule.at(time)
        f, slope = (_slope(values, time) for values in (level.alpha.log(), level.sigma**2))
    return f, slope - 2 * f * level.sigma.detach() ** 2


def _slope(values: Tensor, time: Tensor) -> Tensor:
    if not values.requires_grad:  # Karras' alpha, which is 1 at every time
        return torch.zeros_like(values)
    (slope,) = torch.autograd.grad(values, time, retain_graph=True)
    return slope
