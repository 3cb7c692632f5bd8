"""A walk: the levels and timesteps that a runtime visits with N steps, and what is remarkable about it."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from halfstep.diffusion.samplers.scheduler_levels import Kind, level, SchedulerLevels

SAME = 3e-4
"""Alphas and sigmas nearer than this are one level: diffusers' 2^-24 for an alpha^2 of 0 is."""
SAME_LABEL = 0.01
WASTED = 0.2
"""A last call below this sigma, divided by the number of steps, changes next to nothing."""
STOCHASTIC = (
    "DDPMParallelScheduler",
    "DDPMScheduler",
    "DPMSolverSDEScheduler",
    "EulerAncestralDiscreteScheduler",
    "FlowMatchLCMScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "LCMScheduler",
    "SASolverScheduler",
    "TCDScheduler",
)
"""Schedulers that add fresh noise in their steps."""


@dataclass(frozen=True, kw_only=True)
class Walk:
    """How one runtime samples: one entry of `timesteps` for each network call.

    runtime    library, scheduler and options, in words
    steps      the number of steps that it was told
    kind       vp, flow or ve: how alpha and sigma of a level belong together
    timesteps  what the scheduler hands on, in units of num_train_timesteps; pipelines may divide by 1000
    sigmas     the runtime's own, at each call and after the last: sigma / alpha of a vp level (inf where
               alpha = 0), the flow's sigma from 1 to 0, or the sigma of a ve level
    reached    the sigma at which each call's step ends: sigmas[1:] in all but defective walks
    notes      what is remarkable, one sentence each
    """

    runtime: str
    steps: int
    kind: Kind
    timesteps: tuple[float, ...]
    sigmas: tuple[float, ...]
    reached: tuple[float, ...]
    notes: tuple[str, ...] = ()

    @property
    def levels(self) -> tuple[tuple[float, float], ...]:
        """(alpha, sigma) of x_t = alpha x0 + sigma eps, at each call and after the last."""
        return tuple(level(self.kind, sigma) for sigma in self.sigmas)

    @property
    def alphas(self) -> tuple[float, ...]:
        """The alphas of the levels."""
        return tuple(alpha for alpha, _ in self.levels)


def differs(walk: Walk, other: Walk) -> str:
    """Where two walks part, in words; "" if they are the same at every call."""
    parts, calls, others = [], _calls(walk), _calls(other)
    if len(calls) != len(others):
        parts.append(f"{len(others)} network calls, not {len(calls)}")
    pairs = list(enumerate(zip(calls, others, strict=False), start=1))
    for k, (a, b) in pairs:
        if not _near(walk, a[1], other, b[1]) or abs(a[0] - b[0]) > SAME_LABEL:
            parts.append(f"call {k} is at timestep {_place(*b)}, not {_place(*a)}")
            break
    for k, (a, b) in pairs if not parts else ():
        if not _near(walk, a[2], other, b[2]) and k < len(calls):
            parts.append(f"step {k} ends at sigma {b[2]:.4g}, not {a[2]:.4g}")
            break
    if not _near(walk, walk.sigmas[-1], other, other.sigmas[-1]):
        parts.append(f"it ends at sigma {other.sigmas[-1]:.3g}, not {walk.sigmas[-1]:.3g}")
    return "; ".join(parts)


def _calls(walk: Walk) -> list[tuple[float, float, float]]:
    """(timestep, sigma, the sigma that it leads to) of each call."""
    return list(zip(walk.timesteps, walk.sigmas, walk.reached, strict=False))


def _place(timestep: float, sigma: float, _: float) -> str:
    return f"{timestep:.5g} (sigma {sigma:.3g})"


def _near(walk: Walk, sigma: float, other: Walk, other_sigma: float) -> bool:
    """Whether two levels are the same."""
    pairs = zip(level(walk.kind, sigma), level(other.kind, other_sigma), strict=True)
    return all(abs(a - b) <= SAME for a, b in pairs)


def walk_of(
    runtime: str,
    steps: int,
    levels: SchedulerLevels,
    scheduler: Any = None,
    notes: tuple[str, ...] = (),
) -> Walk:
    """The walk of these levels, with its remarks.

    scheduler  diffusers' object, or None for another runtime
    notes      that precede the remarks
    """
    walk = Walk(runtime=runtime, steps=steps, **vars(levels))
    return replace(walk, notes=(*notes, *_remarks(walk), *_remarks_on(walk, scheduler)))


def _remarks(walk: Walk) -> Iterator[str]:
    """What the numbers show."""
    calls = len(walk.timesteps)
    if calls != walk.steps:
        yield f"calls the network {calls} times in {walk.steps} step{'s' * (walk.steps > 1)}"
    pairs = list(enumerate(zip(walk.reached[:-1], walk.sigmas[1:-1], strict=True), start=1))
    if odd := [(k, end, next_) for k, (end, next_) in pairs if not _near(walk, end, walk, next_)]:
        k, end, next_ = odd[0]
        yield (
            f"wrong levels: {len(odd)} of {calls} steps do not end where the next call is (step {k} ends at "
            f"sigma {end:.4g}, call {k + 1} is at {next_:.4g})"
        )
    if not _near(walk, walk.sigmas[-1], walk, 0.0):
        yield f"ends at sigma {walk.sigmas[-1]:.3g}, so that some noise stays"
    last = level(walk.kind, walk.sigmas[-2])[1]
    if walk.kind != "ve" and calls > 1 and last < WASTED / walk.steps:
        yield f"the last call, at sigma {last:.3g}, changes next to nothing"


def _remarks_on(walk: Walk, scheduler: Any) -> Iterator[str]:
    """What the scheduler's class and config show."""
    if scheduler is None:
        return
    name, config = type(scheduler).__name__, scheduler.config
    if walk.kind == "vp":
        top = float((1 / scheduler.alphas_cumprod[-1].double() - 1).sqrt())
        alpha, last = level("vp", walk.sigmas[0])[0], level("vp", top)[0]
        if not _near(walk, walk.sigmas[0], walk, top):
            yield f"takes pure noise for alpha {alpha:.3g}; the table ends at {last:.3g}"
        if alpha == 0 and config.get("prediction_type") == "epsilon":
            yield "begins at alpha 0, where epsilon does not determine an image"
    if (
        name in STOCHASTIC
        or config.get("stochastic_sampling")
        or str(config.get("algorithm_type")).startswith("sde")
    ):
        yield "adds fresh noise in each step"
    if (order := config.get("solver_order", 1)) > 1:
        yield f"a solver of order {order}, which uses earlier calls"
