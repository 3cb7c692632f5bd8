"""One loop, many steps.  A step is a pure function of where the walk has been and where it goes."""

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
from halfstep.samplers.walk import calls, sample, start

__all__ = [
    "STEPS",
    "Look",
    "Point",
    "Step",
    "Visit",
    "ancestral",
    "calls",
    "ddim",
    "dpmpp_2m",
    "heun",
    "sample",
    "start",
]
