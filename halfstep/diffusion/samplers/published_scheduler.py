"""Sampling with the diffusers scheduler that a model was published with, as its own pipeline samples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from inspect import signature
from math import exp
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from halfstep.batch import Cond
from halfstep.diffusion.denoiser import Denoises, level_of
from halfstep.diffusion.prediction import Eps, Parameterisation, V, Velocity, X0
from halfstep.diffusion.samplers.sample import wide
from halfstep.diffusion.samplers.scheduler_setup import quiet_numpy, scheduler_class
from halfstep.diffusion.schedules import BetaTable, Level, Schedule
from halfstep.diffusion.time_grids import Times
from halfstep.errors import ConfigError, unknown
from halfstep.progress import Progress, SILENT

PREDICTION_TYPES: Mapping[str, Parameterisation] = {
    "epsilon": Eps(),
    "v_prediction": V(),
    "sample": X0(),
    "flow_prediction": Velocity(),
}
"""Parameterisations by diffusers' `prediction_type`; a scheduler of flow matching has none."""


@dataclass(frozen=True)
class PublishedScheduler:
    """A scheduler of diffusers with its config, and what its pipeline passes to it.

    config        scheduler_config.json, with `_class_name`
    uniform_sigmas  the pipeline passes sigmas from 1 to 1 / steps, as Flux and Qwen-Image do
    mu            of a dynamic shift, which the pipeline passes too
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    uniform_sigmas: bool = False
    mu: float | None = None

    def build(self, steps: int) -> Any:
        """The scheduler with its timesteps set; `ConfigError` for a class or a number it does not have."""
        name = str(self.config.get("_class_name"))
        cls = scheduler_class(name)
        if cls is None:
            raise ConfigError(
                f"'{name}' is no scheduler of diffusers: name one of its classes in scheduler_config.json, "
                "such as DDIMScheduler"
            )
        with quiet_numpy():
            try:
                scheduler = cls.from_config(dict(self.config))
                passed: dict[str, Any] = {} if self.mu is None else {"mu": self.mu}
                if self.uniform_sigmas:
                    scheduler.set_timesteps(sigmas=uniform_sigmas(steps), **passed)
                else:
                    scheduler.set_timesteps(steps, **passed)
            except (ValueError, TypeError, AttributeError, IndexError) as error:
                raise ConfigError(
                    f"diffusers' {name} takes no {steps} steps with this config ({error}): write another "
                    "number of steps, or sampler='ddim'"
                ) from None
        return scheduler

    @property
    def reads(self) -> Parameterisation:
        """What the scheduler steps with, whatever the network predicts."""
        return PREDICTION_TYPES[str(self.config.get("prediction_type", "flow_prediction"))]

    def grid(self, steps: int, schedule: Schedule) -> Times:
        """`steps` times of its timesteps, and 0; some schedulers have more timesteps than steps."""
        ends = {time_of(float(n), schedule, self.levels) for n in self.build(steps).timesteps}
        times = sorted((min(t, 1.0) for t in ends if t > 0), reverse=True)
        return (*(times[k * len(times) // steps] for k in range(min(steps, len(times)))), 0.0)

    @property
    def levels(self) -> int:
        """The number of levels that it was trained with."""
        return int(self.config.get("num_train_timesteps", 1000))


def uniform_sigmas(steps: int) -> list[float]:
    """linspace(1, 1/N, N), the sigmas of N equal steps of a straight flow before the shift."""
    sigmas: list[float] = np.linspace(1.0, 1 / steps, steps).tolist()
    return sigmas


def dynamic_mu(config: Mapping[str, Any], tokens: int) -> float | None:
    """The mu of a dynamic shift for images of this many tokens (Flux and SD3); None for a static one."""
    if not config.get("use_dynamic_shifting"):
        return None
    base, most = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    if base == most:
        raise ConfigError(
            f"base_image_seq_len and max_image_seq_len are both {base}, which gives no mu: mend the config"
        )
    return float(low + (high - low) * (tokens - base) / (most - base))


def shift_of(config: Mapping[str, Any], mu: float | None) -> float:
    """The shift of a flow: of its config, or the one that mu stands for."""
    if mu is None:
        return float(config.get("flow_shift", config.get("shift", 1.0)))
    kind = config.get("time_shift_type", "exponential")
    if kind not in ("exponential", "linear"):
        raise unknown("time_shift_type", kind, ("exponential", "linear"))
    return exp(mu) if kind == "exponential" else mu


def time_of(n: float, schedule: Schedule, levels: int) -> float:
    """The time at which a scheduler's timestep n lies on this schedule.

    On a table entry n lies at (n + 1) / levels; in flow matching n is sigma * levels.
    """
    if isinstance(schedule, BetaTable):
        return (n + 1) / levels
    sigma = torch.tensor(n / levels, dtype=torch.float64)
    return float(schedule.time(Level(1 - sigma, sigma).logsnr))


@torch.no_grad()
def sample_published(
    denoiser: Denoises,
    noise: Tensor,
    times: Times,
    *,
    published: PublishedScheduler,
    generators: Sequence[Generator],
    cond: Cond | None = None,
    clip: object = None,
    progress: Progress = SILENT,
) -> Tensor:
    """Sample with the published scheduler; its grid, clipping and first noise are its own.

    noise       float [B, ...] unit noise, multiplied by the scheduler's `init_noise_sigma`
    times       as many steps as the scheduler takes, which makes its grid itself
    generators  one a sample, for schedulers that draw noise
    clip        the pipeline's bound, which the scheduler has in its config
    """
    scheduler, schedule = published.build(len(times) - 1), denoiser.schedule
    draws = "generator" in signature(scheduler.step).parameters
    x = noise * float(getattr(scheduler, "init_noise_sigma", 1.0))
    timesteps = scheduler.timesteps if len(noise) else ()
    progress.expect(len(timesteps))
    for n in timesteps:
        scaled = scheduler.scale_model_input(x, n) if hasattr(scheduler, "scale_model_input") else x
        scaled = scaled.to(noise.dtype)
        time = time_of(float(n), schedule, published.levels)
        t = torch.full(x.shape[:1], time, device=x.device, dtype=wide(x))
        out = published.reads.encode(denoiser(scaled, t, cond), level_of(schedule, t, x))
        options = {"generator": list(generators)} if draws else {}
        with quiet_numpy():
            x = scheduler.step(out, n, x, return_dict=False, **options)[0].to(noise.dtype)
        progress.advance()
    return x
