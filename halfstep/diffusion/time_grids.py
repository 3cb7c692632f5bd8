"""Time grids: the times of a sampler's steps, as a tuple with noise first.

Teacher, student, sampler and export share ONE grid; halving it is `times[::2]`.
"""

from itertools import pairwise
from typing import Annotated, get_args, Literal

import torch
from annotated_types import Ge, Le

from halfstep.config.validate import Count, is_valid, Share, shown, validate
from halfstep.diffusion.schedules import Schedule
from halfstep.errors import ConfigError, unknown

Times = tuple[float, ...]
Direction = Literal["denoise", "invert"]
"""The direction of sampling on a grid: from noise to data, or from data to noise."""
MOST = 1_000_000
"""The largest number of sampling steps: a quarter of an hour per sample at a millisecond per call."""
Steps = Annotated[int, Le(MOST)]


def checked(times: Times) -> Times:
    """The grid itself; `ConfigError` unless 1 >= t[0] > t[1] > ... > t[N] >= 0 with N >= 1."""
    finite = all(is_valid(t, float) for t in times)
    falling = finite and _falls(times)
    if len(times) < 2 or not falling or times[0] > 1 or times[-1] < 0:
        first = ", ".join(f"{t:g}" if is_valid(t, float) else shown(t) for t in times[:6])
        raise ConfigError(
            f"a time grid falls from at most 1 to at least 0 in one step or more, got ({first}"
            f"{', ...' if len(times) > 6 else ''}); write for example (1.0, 0.5, 0.0)"
        )
    return times


def _falls(times: Times) -> bool:
    return all(a > b for a, b in pairwise(times))


def on_schedule(times: Times, schedule: Schedule) -> Times:
    """The grid itself; `ConfigError` unless the schedule has a level at every one of its times.

    Called before sampling or training, so that an error at the last time is found at once.
    """
    level = schedule.at(torch.tensor(times, dtype=torch.float64))
    if not bool((level.alpha.isfinite() & level.sigma.isfinite()).all()):
        raise ConfigError(
            f"this schedule has no finite level at some of {len(times)} times from {times[0]:g} to "
            f"{times[-1]:g}: start the grid lower, or end it higher"
        )
    return times


def in_spans(fine: Times, steps: int) -> Times | None:
    """The grid of so many steps, each of 2^k steps of the fine grid from a multiple of 2^k; None without one.

    Equal spans where there are some; else those nearest the data are halved: three steps of eight are spans
    of 4, 2 and 2.

    Args:
        fine: the fine grid, noise first.
        steps: 1 or more.
    """
    count = len(fine) - 1
    equal = count & -count
    equal = count // equal  # the fewest equal spans
    if not equal <= steps <= count:
        return None
    while 2 * equal <= steps:
        equal *= 2
    length, halved = count // equal, steps - equal
    ends = [length * k for k in range(equal + 1)]
    middles = [end - length // 2 for end in ends[1:]][equal - halved :]
    return tuple(fine[k] for k in sorted([*ends, *middles]))


def _counted(steps: int) -> int:
    steps = validate("steps", steps, int)
    if steps < 1:
        raise ConfigError(f"sampling needs at least one step, got {steps}: write steps=1")
    if steps > MOST:
        raise ConfigError(
            f"sampling takes at most {MOST:,} steps, got {shown(steps)}: write for example steps=64"
        )
    return steps


def _falling(start: float, end: float) -> tuple[float, float]:
    """The start and the end of a grid; `ConfigError` unless 1 >= start > end >= 0."""
    start, end = validate("start", start, Share), validate("end", end, Share)
    if start <= end:
        raise ConfigError(
            f"a time grid falls from start to end, got start={start:g} and end={end:g}: write for example "
            "start=1.0 and end=0.001"
        )
    return start, end


def uniform(steps: int, *, start: float = 1.0, end: float = 0.0) -> Times:
    """Equally spaced from `start` to `end`.

    Args:
        steps: from 1 to 1,000,000.
        start: first time, in (0, 1].
        end: last time, in [0, start).

    Raises:
        ConfigError: steps or times beyond their range.
    """
    n, (start, end) = _counted(steps), _falling(start, end)
    return checked(tuple(start * (n - k) / n + end * (k / n) for k in range(n + 1)))


def uniform_landing(steps: int, *, start: float = 1.0, end: float = 1e-3) -> Times:
    """Equally spaced from `start` to `end` in steps - 1 steps, then to 0 (Song et al. 2021's code)."""
    if _counted(steps) == 1:
        return uniform(1, start=start)
    return checked((*uniform(steps - 1, start=start, end=end), 0.0))


def trailing(steps: int, *, levels: int = 1000) -> Times:
    """diffusers' 'trailing' spacing: times on a table of `levels`, then 0.

    Args:
        steps: at most `levels`.
        levels: entries of the table.

    Raises:
        ConfigError: more steps than levels.
    """
    levels = validate("levels", levels, Count)
    if _counted(steps) > levels:
        raise ConfigError(
            f"a table of {levels} levels has no {steps} steps: write at most {levels}"
        )
    return checked((*(round(levels - k * levels / steps) / levels for k in range(steps)), 0.0))


def uniform_logsnr(
    steps: int, schedule: Schedule, *, start: float = 1.0, end: float = 1e-3
) -> Times:
    """Equally spaced in log-SNR from time `start` to time `end` in steps - 1 steps, then to 0.

    Args:
        steps: from 1 to 1,000,000.
        schedule: the noise schedule.
        start: first time, in (0, 1].
        end: last time but one, in (0, start).

    Raises:
        ConfigError: the log-SNR is infinite at an end, or steps are too close to be told apart.
    """
    return _spaced(steps, schedule, start, end, power=0.0)


def karras(
    steps: int, schedule: Schedule, *, start: float = 1.0, end: float = 1e-3, rho: float = 7.0
) -> Times:
    """Equally spaced in (sigma / alpha)^(1 / rho) (Karras et al. 2022, eq. 5), then to 0.

    Args:
        steps: from 1 to 1,000,000.
        schedule: the noise schedule.
        start: first time, in (0, 1].
        end: last time but one, in (0, start).
        rho: larger values spend more of the grid near the data.

    Raises:
        ConfigError: the log-SNR is infinite at an end, or steps are too close to be told apart.
    """
    rho = validate("rho", rho, Annotated[float, Ge(1e-3), Le(10**6)], 7.0)
    return _spaced(steps, schedule, start, end, power=1 / rho)


def _spaced(steps: int, schedule: Schedule, start: float, end: float, power: float) -> Times:
    """Equal steps of (sigma / alpha)^power, then 0; power 0 is the limit, log(sigma / alpha)."""
    ends = _ends(schedule, start, end)
    share = torch.arange(_counted(steps), dtype=torch.float64) / max(steps - 1, 1)
    if power:
        low, high = (-ends / 2 * power).exp()
        logsnr = -2 / power * (low + share * (high - low)).log()
    else:
        logsnr = ends[0] + share * (ends[1] - ends[0])
    times = (start, *schedule.time(logsnr).tolist()[1:], 0.0)
    if not _falls(times):
        of = f" with rho={1 / power:g}" if power else ""
        raise ConfigError(
            f"{steps} steps from start={start:g} to end={end:g}{of} are too close to be told apart on this "
            f"schedule: write for example {'rho=7 and ' * bool(power)}end=0.001"
        )
    return times


def _ends(schedule: Schedule, start: float, end: float) -> torch.Tensor:
    start, end = _falling(start, end)
    ends = schedule.at(torch.tensor([start, end], dtype=torch.float64)).logsnr
    if not bool(ends.isfinite().all()):
        raise ConfigError(
            f"the log-SNR at t = {start:g} or {end:g} is infinite, so this grid cannot start or end "
            "there: write for example start=0.999, or grid='uniform'"
        )
    return ends


def orders(steps: int) -> list[int]:
    """The orders of a single-step solver of `steps` calls: threes, then 2, 1 or both (Lu et al. 2022a)."""
    threes, remainder = divmod(_counted(steps), 3)
    return [3] * threes + [remainder] if remainder else [3] * (threes - 1) + [2, 1]


def fast(steps: int, schedule: Schedule, *, start: float = 1.0, end: float = 1e-4) -> Times:
    """DPM-Solver-fast's grid (Lu et al. 2022a): one group for each of `orders`, equally long in log-SNR.

    Each group is divided equally by its order.  The grid ends at `end`, not at 0.
    """
    groups, ends = orders(steps), _ends(schedule, start, end)
    places = [k + j / order for k, order in enumerate(groups) for j in range(order)]
    share = torch.tensor(places, dtype=torch.float64) / len(groups)
    inner = schedule.time(torch.lerp(ends[0], ends[1], share)).tolist()
    return checked((start, *inner[1:], end))


GridName = Literal["auto", "uniform", "trailing", "logsnr", "karras"]
GRIDS: tuple[str, ...] = get_args(GridName)


def grid(name: str, steps: int, schedule: Schedule) -> Times:
    """The grid of this name, one of `GRIDS`, on this schedule.

    auto is `trailing` on a schedule with a table of levels, since a network that was trained on the
    entries of a table alone has seen no time between them, and `uniform` on any other. Where the steps
    divide the levels both are the same grid.

    Args:
        name: auto, uniform, trailing, logsnr or karras.
        steps: from 1 to 1,000,000.
        schedule: the noise schedule.

    Raises:
        ConfigError: an unknown name, or a grid that the schedule does not have.
    """
    levels = getattr(schedule, "levels", None)
    if name == "auto":
        name = "uniform" if levels is None else "trailing"
    if name == "uniform":
        return uniform(steps)
    if name == "trailing":
        return trailing(steps, levels=levels or 1000)
    if name == "logsnr":
        return uniform_logsnr(steps, schedule)
    if name == "karras":
        return karras(steps, schedule)
    raise unknown("time grid", name, GRIDS)
