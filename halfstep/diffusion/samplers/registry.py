"""Samplers by name: the deterministic steps, and what each sampler costs."""

from halfstep.diffusion.samplers.diffusers_schedulers import network_calls
from halfstep.diffusion.samplers.solvers import ddim, dpmpp_2m, heun, Step

PREFIX = "diffusers:"
"""Of the samplers that are diffusers' schedulers; the name of the class follows."""

STEPS: dict[str, Step] = {"ddim": ddim, "heun": heun, "dpmpp-2m": dpmpp_2m}
"""The deterministic steps; `ancestral` needs noise and is made by its function."""


def calls(sampler: str, steps: int) -> int:
    """How many network calls the named sampler makes in so many steps."""
    if sampler.startswith(PREFIX):
        return network_calls(sampler.removeprefix(PREFIX), steps)
    return 2 * steps - 1 if sampler == "heun" else steps
