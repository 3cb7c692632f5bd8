"""Checks of options and teachers, for methods that halve the number of sampling steps."""

from collections.abc import Sequence

from halfstep.diffusion.loss_weighting import vanishes, WEIGHTINGS
from halfstep.diffusion.time_grids import Times
from halfstep.errors import ConfigError, unknown
from halfstep.methods.pipeline_like import PipelineLike

SAME = 1e-6
"""Times closer than this are equal."""


def check_updates(
    updates: Sequence[int], start: int, counts: Sequence[int], *, name: str = "updates"
) -> None:
    """`ConfigError` unless the option has one number, or one for each halving from `start` to `counts`."""
    if len(updates) not in (1, len(counts)):
        raise ConfigError(
            f"{name} has {len(updates)} numbers for {len(counts)} students "
            f"({start} to {min(counts)}): give one for all, or one each"
        )


def check_weighting(weighting: str) -> None:
    """`ConfigError` for an unknown weighting, and for one that vanishes where sampling starts."""
    if weighting not in WEIGHTINGS:
        raise unknown("weighting", weighting, WEIGHTINGS)
    if vanishes(WEIGHTINGS[weighting]):
        raise ConfigError(
            f"the weight '{weighting}' vanishes at SNR 0, where sampling starts: "
            "write weighting='truncated-snr' or 'snr+1'"
        )


def refuse_other_clip(teacher: PipelineLike, clip: float) -> None:
    """`ConfigError` unless targets are clipped as the teacher's pipeline clips."""
    if clip and clip != teacher.clip:
        bounds = "clips nothing" if teacher.clip is None else f"clips to {teacher.clip:g}"
        raise ConfigError(
            f"target_clip {clip:g} is for a sampler that clips images to [-{clip:g}, {clip:g}], and this "
            f"teacher's {bounds}: write target_clip={teacher.clip or 0:g}"
        )


def refuse_solver(teacher: PipelineLike, solver: str, *, leaves_eps: bool) -> None:
    """`ConfigError` for another solver of a teacher whose sampler is DDIM.

    leaves_eps  whether its sampler clips images and leaves eps
    """
    if solver != "ddim" and teacher.times:
        raise ConfigError("this teacher is a student, whose own sampler is DDIM: leave solver out")
    if solver != "ddim" and leaves_eps:
        raise ConfigError(
            "this teacher's sampler clips images and leaves eps, which only DDIM does: leave solver or "
            "target_clip out"
        )


def refuse_other_grid(teacher: PipelineLike, times: Times) -> None:
    """`ConfigError` for a student as the teacher on a grid that is not its own."""
    if teacher.times and not any(_same(times, grid) for grid in teacher.times):
        counts = " or ".join(str(len(grid) - 1) for grid in teacher.times)
        raise ConfigError(
            f"this teacher is a student of {counts} steps, trained on its own grid alone, and would be "
            f"sampled on another, of {len(times) - 1} steps: write start={counts} and the grid it was made "
            "with, or its times (they are in pipeline.json)"
        )


def _same(a: Times, b: Times) -> bool:
    return len(a) == len(b) and all(abs(s - t) < SAME for s, t in zip(a, b, strict=True))
