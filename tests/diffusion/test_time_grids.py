"""Time grids: where they lie, that they fall, that halving is every other time, and what is refused."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, strategies as st

from halfstep.diffusion.schedules import BetaTable, Cosine, Karras, RectifiedFlow, VPLinear
from halfstep.diffusion.time_grids import (
    checked,
    fast,
    grid,
    GRIDS,
    in_spans,
    karras,
    trailing,
    uniform,
    uniform_landing,
    uniform_logsnr,
)
from halfstep.errors import ConfigError
from tests.support.denoisers import named

SMOOTH = [Cosine(), VPLinear(), Karras()]  # the straight schedule has infinite ends


def test_uniform():
    """distillation-checks.md 50: a student of four steps is asked at 1, 0.75, 0.5 and 0.25."""
    assert uniform(4) == (1.0, 0.75, 0.5, 0.25, 0.0)
    assert uniform(1) == (1.0, 0.0)
    assert uniform(2, start=0.8) == (0.8, 0.4, 0.0)


@given(half=st.integers(1, 600))
def test_a_halved_uniform_grid_is_the_uniform_grid_of_half(half):
    for t, s in zip(uniform(2 * half)[::2], uniform(half), strict=True):
        assert t == pytest.approx(s, abs=1e-15)


@given(power=st.integers(0, 12))
def test_powers_of_two_are_exact(power):
    assert uniform(2 * 2**power)[::2] == uniform(2**power)


@pytest.mark.parametrize("steps", [1, 2, 7, 10, 50, 1000])
def test_trailing_is_that_of_diffusers(steps):
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    scheduler = DDIMScheduler(timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    times = [(n + 1) / 1000 for n in scheduler.timesteps.tolist()]
    assert trailing(steps) == (*times, 0.0)


def test_trailing_lies_on_the_table():
    assert trailing(3, levels=7) == (1.0, 5 / 7, 2 / 7, 0.0)
    assert trailing(4, levels=4) == uniform(4)
    for steps in (1, 5, 13, 77):
        times = trailing(steps, levels=77)
        assert len(times) == steps + 1 and times[-1] == 0.0
        assert all(t * 77 == pytest.approx(round(t * 77), abs=1e-9) for t in times)
        BetaTable(levels=77).at(torch.tensor(times, dtype=torch.float64))


@given(levels=st.integers(2, 3000), data=st.data())
def test_a_halved_trailing_grid_is_the_trailing_grid_of_half_on_levels(levels, data):
    """Students stay on levels, and where the steps divide the table the grid is the uniform one."""
    half = data.draw(st.integers(1, levels // 2))
    times = trailing(2 * half, levels=levels)
    assert times[::2] == trailing(half, levels=levels)
    assert all(t == round(t * levels) / levels for t in times)
    if levels % (2 * half) == 0:
        assert times == uniform(2 * half)


@pytest.mark.parametrize("schedule", SMOOTH, ids=named)
@pytest.mark.parametrize("start, end", [(1.0, 1e-3), (0.9, 0.05)])
def test_uniform_logsnr(schedule, start, end):
    times = uniform_logsnr(9, schedule, start=start, end=end)
    assert len(times) == 10
    assert (times[0], times[-1]) == (start, 0.0)
    assert times[-2] == pytest.approx(end, rel=1e-9)
    logsnr = schedule.at(torch.tensor(times[:-1], dtype=torch.float64)).logsnr
    gaps = logsnr.diff()
    torch.testing.assert_close(gaps, gaps.mean().expand(8), rtol=1e-7, atol=0)


@pytest.mark.parametrize("schedule", SMOOTH, ids=named)
@pytest.mark.parametrize("rho", [7.0, 2.5])
def test_karras(schedule, rho):
    """(sigma / alpha)^(1 / rho) falls in equal steps (Karras et al. 2022, eq. 5)."""
    times = karras(9, schedule, start=0.95, end=0.01, rho=rho)
    assert (times[0], times[-1], len(times)) == (0.95, 0.0, 10)
    assert times[-2] == pytest.approx(0.01, rel=1e-9)
    level = schedule.at(torch.tensor(times[:-1], dtype=torch.float64))
    gaps = ((level.sigma / level.alpha) ** (1 / rho)).diff()
    torch.testing.assert_close(gaps, gaps.mean().expand(8), rtol=1e-7, atol=0)
    default = karras(4, schedule)
    assert default == karras(4, schedule, start=1.0, end=1e-3, rho=7.0)


def test_karras_on_its_own_schedule_is_uniform():
    """Karras' schedule is affine in t to the same power, so its grid is evenly spaced from 1 to the end."""
    times = karras(5, Karras(), end=0.2)
    assert times == pytest.approx((1.0, 0.8, 0.6, 0.4, 0.2, 0.0), abs=1e-12)


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("schedule", [*SMOOTH, BetaTable()], ids=named)
@pytest.mark.parametrize("steps", [1, 2, 8])
def test_every_grid_falls_from_one_to_zero(name, schedule, steps):
    times = grid(name, steps, schedule)
    assert checked(times) == times and len(times) == steps + 1
    assert (times[0], times[-1]) == (1.0, 0.0)
    if steps > 1:
        half = checked(times[::2])
        assert len(half) == steps // 2 + 1 and (half[0], half[-1]) == (1.0, 0.0)


def test_grid_passes_the_schedule_on():
    assert grid("uniform", 5, Cosine()) == uniform(5)
    assert grid("auto", 7, Cosine()) == uniform(7) != trailing(7)
    assert grid("auto", 5, BetaTable(levels=77)) == trailing(5, levels=77) != uniform(5)
    assert grid("trailing", 5, BetaTable(levels=77)) == trailing(5, levels=77)
    assert grid("trailing", 5, Cosine()) == trailing(5, levels=1000)
    assert grid("logsnr", 5, VPLinear()) == uniform_logsnr(5, VPLinear())
    assert grid("karras", 5, VPLinear()) == karras(5, VPLinear())
    with pytest.raises(ConfigError, match="'unifrom': perhaps you meant"):
        grid("unifrom", 4, Cosine())


@pytest.mark.parametrize(
    "times",
    [(), (1.0,), (0.0, 1.0), (1.0, 1.0), (1.0, 0.5, 0.5), (1.1, 0.0), (1.0, -0.1), (0.5, 0.6, 0.0)],
)
def test_checked_refuses(times):
    with pytest.raises(ConfigError, match=r"write for example \(1.0, 0.5, 0.0\)"):
        checked(times)


def test_checked_refuses_nan_and_shows_the_first_times_only():
    with pytest.raises(ConfigError):
        checked((1.0, float("nan"), 0.0))
    with pytest.raises(ConfigError, match=r"got \(0, 1, 2, 3, 4, 5, \.\.\.\)"):
        checked(tuple(float(k) for k in range(9)))
    assert checked((0.7, 0.0)) == (0.7, 0.0) and checked((1.0, 0.2)) == (1.0, 0.2)


@pytest.mark.parametrize("make", [uniform, trailing, lambda n: uniform_logsnr(n, Cosine())])
@pytest.mark.parametrize("steps", [0, -3])
def test_at_least_one_step(make, steps):
    with pytest.raises(ConfigError, match=f"got {steps}: write steps=1"):
        make(steps)


def test_trailing_refuses_more_steps_than_levels():
    with pytest.raises(ConfigError, match="no 11 steps"):
        trailing(11, levels=10)
    assert trailing(10, levels=10) == uniform(10)


@pytest.mark.parametrize("make", [uniform_logsnr, karras])
@pytest.mark.parametrize(
    "schedule", [RectifiedFlow(), BetaTable(zero_snr=True, levels=2000)], ids=named
)
def test_infinite_ends_are_refused_and_the_advice_works(make, schedule):
    with pytest.raises(ConfigError, match=r"is infinite.*start=0\.999"):
        make(4, schedule)
    assert make(4, schedule, start=0.999)[0] == 0.999
    with pytest.raises(ConfigError, match=r"0\.5 or 0 is"):
        make(4, schedule, start=0.5, end=0.0)


@pytest.mark.parametrize("rho", [1e-9, 1e-300, 5e-324, 1e30, 1e308, 0.0, -7.0, 2e6, float("nan")])
@pytest.mark.parametrize("schedule", SMOOTH, ids=named)
def test_a_power_that_makes_no_grid_is_refused_by_its_name(schedule, rho):
    with pytest.raises(ConfigError, match=r"^rho .*7.0$"):
        karras(5, schedule, rho=rho)


@pytest.mark.parametrize("rho", [1e-3, 0.03, 0.3, 1.0, 1e3, 1e6])
@pytest.mark.parametrize("schedule", [*SMOOTH, Cosine(-30.0, 30.0)], ids=repr)
def test_any_other_power_makes_a_grid_or_is_to_blame(schedule, rho):
    try:
        times = karras(5, schedule, rho=rho)
    except ConfigError as error:
        assert f"with rho={rho:g} are too close" in str(error) and rho < 1
    else:
        assert checked(times) == times and times[-2] == pytest.approx(1e-3, rel=0.01)


@pytest.mark.parametrize(
    "make",
    [
        uniform,
        uniform_landing,
        *(
            lambda steps, make=make, **ends: make(steps, VPLinear(), **ends)
            for make in (karras, fast)
        ),
        lambda steps, **ends: uniform_logsnr(steps, VPLinear(), **ends),
    ],
)
@pytest.mark.parametrize("start, end", [(0.2, 0.5), (0.5, 0.5)])
def test_a_grid_that_does_not_fall_is_blamed_on_its_ends(make, start, end):
    with pytest.raises(ConfigError, match=f"start={start:g} and end={end:g}"):
        make(4, start=start, end=end)
    assert len(make(4, start=0.5, end=0.2)) == 5


def test_times_too_close_to_be_told_apart():
    with pytest.raises(ConfigError, match="too close"):
        uniform_logsnr(100, Cosine(), start=0.5, end=0.5 - 1e-15)


@pytest.mark.parametrize(
    "fine, steps, places",
    [
        (8, 1, [0, 8]),
        (8, 2, [0, 4, 8]),
        (8, 3, [0, 4, 6, 8]),
        (8, 5, [0, 2, 4, 6, 7, 8]),
        (8, 6, [0, 2, 4, 5, 6, 7, 8]),
        (8, 7, [0, 2, 3, 4, 5, 6, 7, 8]),
        (8, 8, list(range(9))),
        (12, 3, [0, 4, 8, 12]),
        (12, 5, [0, 4, 6, 8, 10, 12]),
        (12, 6, [0, 2, 4, 6, 8, 10, 12]),
    ],
)
def test_spans_are_powers_of_two_from_their_own_multiples(fine, steps, places):
    times = uniform(fine)
    assert in_spans(times, steps) == tuple(times[k] for k in places)
    for start, end in pairwise(places):
        assert (end - start).bit_count() == 1 and start % (end - start) == 0


@pytest.mark.parametrize("fine, steps", [(8, 9), (12, 2), (12, 13), (8, 0)])
def test_no_spans_of_more_steps_than_fine_ones_or_fewer_than_its_odd_part(fine, steps):
    assert in_spans(uniform(fine), steps) is None
