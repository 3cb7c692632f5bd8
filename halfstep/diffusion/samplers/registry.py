"""Samplers by name: the deterministic steps, and the cost of every sampler."""

from halfstep.diffusion.samplers.diffusers_schedulers import network_calls
from halfstep.diffusion.samplers.solvers import ddim, dpmpp_2m, heun, Step

PREFIX = "diffusers:"
"""The prefix of a sampler that is one of diffusers' schedulers; the class name follows it."""

SCHEDULER = "scheduler"
"""The sampler that is the diffusers scheduler which a model was published with."""

STEPS: dict[str, Step] = {"ddim": ddim, "heun": heun, "dpmpp-2m": dpmpp_2m}
"""The deterministic steps; `ancestral` needs noise and is built by its function."""


def calls(sampler: str, steps: int) -> int:
    """The number of network calls that the named sampler makes in `steps` steps.

    Args:
        sampler: ddim, heun, dpmpp-2m, ..., or diffusers:NAME.
        steps: 1 or more.
    """
    if sampler.startswith(PREFIX):
        return network_calls(sampler.removeprefix(PREFIX), steps)
    return 2 * steps - 1 if sampler == "heun" else steps


def draws_noise(sampler: str) -> bool:
    """Whether a sampler draws noise at its steps, so that samples do not follow from the first noise.

    Args:
        sampler: the name of a sampler.
    """
    stochastic_schedulers = ("Ancestral", "SDE", "SASolver", "DDPM", "LCM", "TCD")  # of diffusers
    return sampler in ("ancestral", "stochastic", "euler-maruyama") or (
        sampler.startswith(PREFIX) and any(word in sampler for word in stochastic_schedulers)
    )
