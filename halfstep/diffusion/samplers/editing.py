"""Image-to-image and inpainting: sampling that starts from an image, or repaints a part of one."""

from collections.abc import Sequence

import torch
from torch import Tensor

from halfstep.config.validate import Share, validate
from halfstep.diffusion.samplers.sample import noise_of
from halfstep.diffusion.samplers.solvers import ModelFn, ModelOutput, Step, TimePoint
from halfstep.diffusion.schedules import Schedule
from halfstep.pixels import as_floats


def noised(schedule: Schedule, x0: Tensor, noise: Tensor, t: float) -> Tensor:
    """The noise from which `sample` starts at alpha x0 + sigma noise (SDEdit: Meng et al. 2022, Alg. 1)."""
    t = validate("t", t, Share)
    level = schedule.at(torch.tensor(t, dtype=torch.float64))
    return noise_of(schedule, level.mix(as_floats(x0), noise), t)


def inpainting(step: Step, mask: Tensor, x0: Tensor, noise: Tensor) -> Step:
    """`step`, followed by a reset of the values outside the mask to x0, noised to the step's end.

    The noise is the one that sampling began with: a value outside the mask moves straight from it to x0.
    At t = 0 it is x0 itself, to the bit.

    Args:
        step: the solver, such as `ddim`.
        mask: bool [B, ...] as x0, or broadcastable to it: True where x0 is repainted, as in diffusers.
        x0: float [B, ...], the data.
        noise: float [B, ...], the noise that sampling begins with.
    """

    x0 = as_floats(x0)

    def inpaint(
        x: Tensor, history: Sequence[ModelOutput], to: TimePoint, model_fn: ModelFn
    ) -> Tensor:
        return torch.where(mask, step(x, history, to, model_fn), to.level.mix(x0, noise))

    return inpaint
