"""The stochastic N-step sampler: two steps towards data, one step of noise back (Meng et al. 2023).

A network call spans two steps of the grid, so the student is trained for it: `methods.diffusion.stochastic`.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from halfstep.diffusion.prediction import Prediction
from halfstep.diffusion.samplers.sde import Fresh
from halfstep.diffusion.samplers.solvers import ddim, ModelFn, ModelOutput, Step, TimePoint
from halfstep.diffusion.schedules import arriving, Level, Schedule
from halfstep.diffusion.time_grids import Times
from halfstep.errors import ConfigError


def stochastic(times: Times, schedule: Schedule, fresh: Fresh) -> Step:
    """The step from t to s, the next time of the grid, by way of k, the time after it (Meng et al. 2023).

    One call a step. The last step has no time beyond it and is DDIM's::

        z_k = alpha_k x0 + sigma_k eps
        z_s = (alpha_s / alpha_k) z_k + sigma_{s|k} noise  with  sigma_{s|k}^2 = (1 - SNR_s / SNR_k) sigma_s^2

    Args:
        times: the grid that is sampled on.
        schedule: the noise schedule.
        fresh: (like, step) to unit noise.

    Raises:
        ConfigError: it is used on another grid.
    """

    def step(x: Tensor, history: Sequence[ModelOutput], to: TimePoint, model_fn: ModelFn) -> Tensor:
        if times[to.step : to.step + 1] != (to.t,):
            raise ConfigError(
                f"this stochastic step was built for another grid, which is not at t = {to.t:g} after "
                f"{to.step} steps: give both the same times"
            )
        if to.step == len(times) - 1:
            return ddim(x, history, to, model_fn)
        pred, s = history[-1].pred, to.level
        k = arriving(schedule, torch.tensor(times[to.step + 1], dtype=torch.float64))
        return jump(pred, k, s, lambda: fresh(x, to.step))

    return step


def jump(pred: Prediction, k: Level, s: Level, fresh: Callable[[], Tensor]) -> Tensor:
    """z_s of a prediction: the step to k, and noise back to s."""
    shrink = s.alpha / k.alpha
    spread = (s.sigma**2 - (shrink * k.sigma) ** 2).sqrt()
    return shrink * k.mix(pred.x0, pred.eps) + spread * fresh()
