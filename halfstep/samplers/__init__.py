"""One loop, many steps.  A step is a pure function of where the walk has been and where it goes.

`scheduled` is the other loop, in which one of diffusers' schedulers makes the steps.
"""

from halfstep.samplers.schedulers import fitting, scheduled
from halfstep.samplers.steps import (
    ancestral,
    ddim,
    dpmpp_2m,
    heun,
    Look,
    Point,
    Step,
    STEPS,
    Visit,
)
from halfstep.samplers.walk import calls, PREFIX, sample, start

__all__ = [
    "PREFIX",
    "STEPS",
    "Look",
    "Point",
    "Step",
    "Visit",
    "ancestral",
    "calls",
    "ddim",
    "dpmpp_2m",
    "fitting",
    "heun",
    "sample",
    "scheduled",
    "start",
]
