"""Single-step solvers: DPM-Solver++ of order 3, and DPM-Solver-fast.

One step of the papers, from s by way of s_1 and s_2 to t, is a group of up to three steps: the grid holds
the inner points too, so that every step calls the network once.  The step number gives the place in the
group.  A step starts from the group's anchor s, with x = `level.mix(x0, eps)` of the prediction there.
"""

from collections.abc import Callable, Sequence

from torch import Tensor

from halfstep.diffusion.samplers.solvers import ModelFn, ModelOutput, Step, TimePoint
from halfstep.diffusion.samplers.step_checks import (
    exact_prediction,
    MAX_ERROR,
    relative_error,
    spread,
)
from halfstep.diffusion.schedules import Level
from halfstep.diffusion.time_grids import orders
from halfstep.errors import ConfigError

Bend = Callable[[ModelOutput, ModelOutput, Level, int], Tensor]
"""(anchor, newest inner point, target level, order of the group) -> correction to the step of order 1."""


def dpmpp_3s(steps: int) -> Step:
    """DPM-Solver++ of order 3, single-step: integrates x0 (Lu et al. 2022b, Proposition 4.1).

    The inner points are those of DPM-Solver-3 (Lu et al. 2022a, Algorithm 2); the tail has order 2 or 1.
    For a grid of exactly `steps` steps that ends above t = 0: `uniform(steps, end=1 / 1000)`.
    """

    def bend(anchor: ModelOutput, inner: ModelOutput, to: Level, order: int) -> Tensor:
        slope = (inner.pred.x0 - anchor.pred.x0) / _h(anchor, inner.point.level)
        return to.alpha * _weight(-_h(anchor, to), order) * slope

    return _grouped(steps, bend, "dpmpp_3s")


def dpm_fast(steps: int) -> Step:
    """DPM-Solver-fast: integrates eps, order 3 with a tail of 2 or 1 (Lu et al. 2022a, Algorithms 1, 2).

    For a grid of exactly `steps` steps that ends above t = 0: `fast(steps, schedule)`.
    """

    def bend(anchor: ModelOutput, inner: ModelOutput, to: Level, order: int) -> Tensor:
        slope = (inner.pred.eps - anchor.pred.eps) / _h(anchor, inner.point.level)
        return -to.sigma * _weight(_h(anchor, to), order) * slope

    return _grouped(steps, bend, "dpm_fast")


def _h(anchor: ModelOutput, to: Level) -> Tensor:
    """The rise of log(alpha / sigma) from the anchor."""
    return (to.logsnr - anchor.point.level.logsnr) / 2


def _weight(z: Tensor, order: int) -> Tensor:
    """The weight of a slope: z^2 phi_2(z) in a group of three, its midpoint form in a group of two.

    With r = h_inner / h it is the papers' (expm1(z) / z - 1) / r, or expm1(z) / 2r, times h_inner.
    """
    return z * z.expm1() / 2 if order == 2 else z.expm1() - z


def _grouped(steps: int, bend: Bend, name: str) -> Step:
    places = [(order, inner) for order in orders(steps) for inner in range(order)]

    def step(x: Tensor, history: Sequence[ModelOutput], to: TimePoint, model_fn: ModelFn) -> Tensor:
        if to.step > steps:
            raise ConfigError(
                f"{name} was made for {steps} steps and the grid has more: write {name}(len(times) - 1)"
            )
        order, inner = places[to.step - 1]
        anchor = history[-1 - inner]
        _check(anchor, to, name)
        if inner == order - 1 > 0:
            _refuse_divergence([*(visit.point for visit in history[-order:]), to], bend, name)
        return _step(x, anchor, history[-1], to, bend, order)

    return step


def _step(
    x: Tensor, anchor: ModelOutput, newest: ModelOutput, to: TimePoint, bend: Bend, order: int
) -> Tensor:
    """One step from a group's anchor, corrected by the newest inner point unless that is the anchor."""
    first = to.level.mix(anchor.pred.x0, anchor.pred.eps)
    return first if newest is anchor else first + bend(anchor, newest, to.level, order)


def _refuse_divergence(group: Sequence[TimePoint], bend: Bend, name: str) -> None:
    """`ConfigError` for a group so long that even an exact network's predictions lead it far away."""
    order, x = len(group) - 1, spread(group[0].level)
    anchor = newest = ModelOutput(group[0], exact_prediction(x, group[0].level))
    for point in group[1:]:
        x = _step(x, anchor, newest, point, bend, order)
        newest = ModelOutput(point, exact_prediction(x, point.level))
    if (off := relative_error(x, spread(group[-1].level))) > MAX_ERROR:
        raise ConfigError(
            f"{name} cannot go from t = {group[0].t:g} to {group[-1].t:g} in {order} steps: that is too far "
            f"in log-SNR, and even an exact network would lead it {off:,.3g} times the data's spread away.  "
            "Take more steps, or write sampler='dpmpp-2m'"
        )


def _check(anchor: ModelOutput, to: TimePoint, name: str) -> None:
    if anchor.point.level.alpha == 0:
        raise ConfigError(
            f"{name} cannot start at t = {anchor.point.t:g}, where alpha = 0 and the log-SNR is infinite: "
            "start the grid below, for example at t = 0.999"
        )
    if to.level.sigma == 0:
        raise ConfigError(
            f"{name} cannot land on t = {to.t:g}, where sigma = 0 and the log-SNR is infinite: end the "
            "grid above, for example at t = 0.001"
        )
