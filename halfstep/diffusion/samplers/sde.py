"""The reverse-time SDE, by Euler and Maruyama."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from halfstep.diffusion.samplers.solvers import ModelFn, ModelOutput, Step, TimePoint
from halfstep.diffusion.samplers.step_checks import answer, ASTRAY, astray, spread
from halfstep.diffusion.schedules import Schedule
from halfstep.errors import ConfigError

Fresh = Callable[[Tensor, int], Tensor]
"""(like, step) -> unit noise, so that noise is a function of the step number."""


def euler_maruyama(schedule: Schedule, fresh: Fresh) -> Step:
    """The reverse-time SDE of Song et al. 2021, eq. 6, in Euler-Maruyama steps.  Weak order 1, one call.

    dx = (f x - g^2 score) dt + g dw with score = -eps / sigma.  A step to t = 0 takes the mean alone, as
    the official code does, and not the predicted x0.  For the grid `uniform_landing(steps)`.

    Raises `ConfigError` for a table of betas, which has corners and no g, for a start at alpha = 0, and for
    a step that is too long for its drift: from the cosine's t = 1, where it is 34,600 in unit time, every.
    """
    if hasattr(schedule, "levels"):
        raise ConfigError(
            "the reverse-time SDE needs a schedule with a slope at every time, and a table of betas has "
            "corners: write sampler='ancestral', which is its form on a table"
        )

    def step(x: Tensor, history: Sequence[ModelOutput], to: TimePoint, model_fn: ModelFn) -> Tensor:
        here, pred = history[-1].point, history[-1].pred
        if here.level.alpha == 0:
            raise ConfigError(
                f"the reverse-time SDE cannot start at t = {here.t:g}, where alpha = 0 and its drift is "
                "infinite: start the grid below, for example at t = 0.999"
            )
        f, g2 = _drift_and_diffusion(schedule, here.t)
        passed = here.t - to.t
        noise = (g2 * passed).sqrt() if to.t > 0 else torch.zeros_like(g2)

        def mean(x: Tensor, eps: Tensor) -> Tensor:
            return x - (f * x + g2 / here.level.sigma * eps) * passed

        _refuse_too_long(here, to, mean, noise)
        if to.t == 0:
            return mean(x, pred.eps)
        return mean(x, pred.eps) + noise * fresh(x, to.step)

    return step


def _refuse_too_long(
    here: TimePoint, to: TimePoint, mean: Callable[[Tensor, Tensor], Tensor], noise: Tensor
) -> None:
    """`ConfigError` for a step after which even an exact network would be shown x far too spread out."""
    x = spread(here.level)
    after = (mean(x, answer(x, here.level).eps) ** 2 + noise**2).sqrt()
    if astray(after, spread(to.level), drawn=True) > ASTRAY - 1:
        raise ConfigError(
            f"euler-maruyama cannot step from t = {here.t:g} to {to.t:g}: its drift there is so strong that "
            f"x would be {float(after / spread(to.level)):,.3g} times as spread out as it should be.  Take "
            "more steps, start the grid lower if it is the first, or write sampler='ancestral'"
        )


def _drift_and_diffusion(schedule: Schedule, t: float) -> tuple[Tensor, Tensor]:
    """f = d log alpha / dt and g^2 = d sigma^2 / dt - 2 f sigma^2 (Lu et al. 2022a, section 2.1), float64."""
    with torch.inference_mode(False), torch.enable_grad():  # a walk has no gradients
        time = torch.tensor(t, dtype=torch.float64, requires_grad=True)
        level = schedule.at(time)
        f, rise = (_slope(of, time) for of in (level.alpha.log(), level.sigma**2))
    return f, rise - 2 * f * level.sigma.detach() ** 2


def _slope(of: Tensor, time: Tensor) -> Tensor:
    if not of.requires_grad:  # Karras' alpha, which is 1 at every time
        return torch.zeros_like(of)
    (slope,) = torch.autograd.grad(of, time, retain_graph=True)
    return slope
