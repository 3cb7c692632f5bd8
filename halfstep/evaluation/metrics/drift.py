"""Drift: colour, contrast, saturation and detail of a student's images against its teacher's.

Colours that are off by a few percent are visible, but hidden in a distance.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from halfstep.errors import ConfigError, DataError
from halfstep.evaluation.metrics.bootstrap import Interval
from halfstep.evaluation.metrics.crossed_mean import student_quantile
from halfstep.pixels import as_floats

GREY = 1 / 255
"""One grey level, the smallest base of a relative change, so that black channels have one too."""
FALSE_ALARMS = 1e-3
"""Probability of any false alarm, over all measures of AMONG comparisons."""
AMONG = 20
"""Comparisons that share `FALSE_ALARMS`, such as the rows of a report."""


@dataclass(frozen=True)
class Drift:
    """One measure of the student's images against the teacher's."""

    measure: str
    change: Interval
    """Relative change with a 95 % interval: 0.09 is 9 % more."""
    limit: float
    alarm: str | None
    """Such as "saturation +9 %, outside ±3 %", or None."""


def drift(
    teacher_images: Tensor, student_images: Tensor, *, limit: float = 0.03, level: float = 0.95
) -> tuple[Drift, ...]:
    """Measure the drift of the student's images, row k of both from the same noise.

    images  float [N, C, H, W], not clipped to [-1, 1], H and W at least 3, N at least 8
    limit   largest accepted relative change
    level   confidence level of the intervals

    Every measure is one number per image, so a change is a ratio of two means, and its standard error is
    exact to first order: that of the mean of s - r t, over the teacher's mean.  Quantiles are Student's t.
    Shared noise makes the error small, but is not assumed.

    An alarm needs the *whole* interval outside ±limit, at a level where any of the measures of 20
    comparisons raises a false alarm with probability 0.1 %, even for a student on the limit (Bonferroni:
    each end of each measure has 0.001 / (20 · measures) / 2).  A bootstrap cannot reach that far into the
    tails.  More samples decide a value outside the limit without an alarm.
    """
    _check(teacher_images, student_images, limit, level)
    teacher, student = measures(teacher_images), measures(student_images)
    tail = FALSE_ALARMS / (AMONG * len(teacher)) / 2
    drifts = []
    for name, values in teacher.items():
        value, error = _change(values, student[name])
        shown = error * student_quantile((1 - level) / 2, len(values))
        sure = abs(value) - error * student_quantile(tail, len(values))
        alarm = f"{name} {_signed(value)}, outside ±{100 * limit:g} %" if sure > limit else None
        drifts.append(Drift(name, Interval(value, value - shown, value + shown), limit, alarm))
    return tuple(drifts)


def measures(images: Tensor) -> dict[str, Tensor]:
    """The measures of images, one number per image, float64 [N] each; pixels scaled to [0, 1].

    brightness      mean of a channel: "brightness of red", and so on
    contrast        standard deviation over the pixels, mean over channels
    saturation      of RGB: the largest less the smallest of the three, mean over pixels
    fine detail     energy of the discrete Laplacian over 20 times the variance: 1 for white noise, 0 for a
                    constant image.  Invariant to scaling
    """
    x = (as_floats(images).double() + 1) / 2
    channels = x.shape[1]
    names = {1: ("",), 3: (" of red", " of green", " of blue")}.get(
        channels, tuple(f" of channel {k}" for k in range(channels))
    )
    values = {f"brightness{name}": x[:, k].mean((1, 2)) for k, name in enumerate(names)}
    variance = x.var((2, 3), correction=0)
    values["contrast"] = variance.sqrt().mean(1)
    if channels == 3:
        values["saturation"] = (x.amax(1) - x.amin(1)).mean((1, 2))
    inner = x[..., 1:-1, 1:-1]
    around = x[..., :-2, 1:-1] + x[..., 2:, 1:-1] + x[..., 1:-1, :-2] + x[..., 1:-1, 2:]
    energy = (4 * inner - around).square().mean((1, 2, 3))
    values["fine detail"] = energy / (20 * variance.mean(1) + GREY**2)
    return values


def alarms(drifts: tuple[Drift, ...]) -> tuple[str, ...]:
    """The alarms of these drifts."""
    return tuple(drift.alarm for drift in drifts if drift.alarm is not None)


def _change(teacher: Tensor, student: Tensor) -> tuple[float, float]:
    """The relative change of the mean and its standard error."""
    base = teacher.mean().clamp(min=GREY)
    change = (student.mean() - teacher.mean()) / base
    # A constant base has no error.
    slope = 1 + change if teacher.mean() > GREY else torch.ones_like(change)
    parts = (student - slope * teacher) / base
    return float(change), float(parts.std() / len(parts) ** 0.5)


def _signed(value: float) -> str:
    return f"{100 * value:+.0f} %" if abs(value) >= 0.095 else f"{100 * value:+.2g} %"


def _check(teacher: Tensor, student: Tensor, limit: float, level: float) -> None:
    if teacher.shape != student.shape or teacher.ndim != 4:
        raise ConfigError(
            f"drift is measured between images [N, C, H, W] of the same noise, got "
            f"{list(teacher.shape)} and {list(student.shape)}: sample both with the same n and seed"
        )
    if len(teacher) < 8 or min(teacher.shape[2:]) < 3:
        raise ConfigError(
            f"drift needs 8 images of 3x3 or more, got {list(teacher.shape)}: sample more, or leave "
            "drift out"
        )
    if not 0 <= limit < 1 or not 0 < level < 1:
        raise ConfigError(
            f"limit lies in [0, 1) and level in (0, 1), got {limit:g} and {level:g}: write for "
            "example limit=0.03, level=0.95"
        )
    if not bool(teacher.isfinite().all() and student.isfinite().all()):
        raise DataError("some pixels are nan or infinite: the sampler of these images has diverged")
