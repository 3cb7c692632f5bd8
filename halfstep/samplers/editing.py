"""Walks that begin with an image, or keep a part of one: image-to-image and inpainting."""

from collections.abc import Sequence

import torch
from torch import Tensor

from halfstep.config.validate import Share, validate
from halfstep.pixels import as_floats
from halfstep.samplers.steps import ModelFn, ModelOutput, Step, TimePoint
from halfstep.samplers.walk import noise_of
from halfstep.schedules import Schedule


def noised(schedule: Schedule, x0: Tensor, noise: Tensor, t: float) -> Tensor:
    """What `sample` takes so that its walk from time t begins with alpha x0 + sigma noise.

    SDEdit (Meng et al. 2022, Algorithm 1) from t onwards.
    """
    t = validate("t", t, Share)
    level = schedule.at(torch.tensor(t, dtype=torch.float64))
    return noise_of(schedule, level.mix(as_floats(x0), noise), t)


def keeping(step: Step, known: Tensor, x0: Tensor, noise: Tensor) -> Step:
    """`step`, after which what is known of x0 is put back, noised to where the step went.

    Always with the noise that the walk began with: a known number goes straight from it to x0.  Arriving
    at t = 0 puts x0 itself back, to the bit.

    known  bool, as x0 or broadcastable to it
    """

    x0 = as_floats(x0)

    def kept(x: Tensor, history: Sequence[ModelOutput], to: TimePoint, model_fn: ModelFn) -> Tensor:
        return torch.where(known, to.level.mix(x0, noise), step(x, history, to, model_fn))

    return kept
