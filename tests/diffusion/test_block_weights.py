"""The weights of fine steps in the one step of their block: numbers, identities and ends."""

import pytest
import torch

from halfstep.diffusion.block_weights import block_weights
from halfstep.diffusion.denoiser import level_of
from halfstep.diffusion.schedules import BetaTable, Cosine, Karras, RectifiedFlow, VPLinear
from halfstep.diffusion.time_grids import trailing, uniform
from tests.support.denoisers import named, SCHEDULES, seeded

pytestmark = pytest.mark.usefixtures("float64")
FINE = uniform(16)
# Made by numpy from the schedules' own formulas, with rho = alpha / sigma, in float64.
NUMBERS = {
    Cosine(): (
        [0.23777730675648215, 0.24243728149913787, 0.25212753958148965, 0.2676578721628902],
        [0.15451228826643454, 0.19665350026303882, 0.2646444900344305, 0.38418972143609637],
    ),
    RectifiedFlow(): (
        [0.2, 0.22857142857142856, 0.26373626373626374, 0.3076923076923077],
        [0.14285714285714285, 0.19047619047619047, 0.26666666666666666, 0.4],
    ),
    VPLinear(): (
        [0.10480710705799735, 0.1759716771555348, 0.2830443283898249, 0.4361768873966431],
        [0.1517991228130168, 0.19949467248633349, 0.26827697339611434, 0.3804292313045354],
    ),
    Karras(): (
        [0.11750460544043284, 0.17720775056102167, 0.2732708130902314, 0.4320168309083141],
        [0.05727219432109404, 0.1152328300775144, 0.24802821820169452, 0.579466757399697],
    ),
}


def rows(*numbers):
    return torch.tensor(numbers)


@pytest.mark.parametrize("schedule", NUMBERS, ids=named)
def test_numbers(schedule):
    weights = block_weights(schedule, FINE, rows(0, 8, 12), rows(4, 12, 16))
    first, second = NUMBERS[schedule]
    expected = torch.zeros(3, 16)
    expected[0, :4], expected[1, 8:12], expected[2, 15] = rows(*first), rows(*second), 1.0
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("schedule", [*SCHEDULES, BetaTable(zero_snr=True)], ids=named)
def test_one_step_with_them_lands_where_the_fine_steps_land(schedule):
    """For any predictions x0 of the fine steps, in every block, also one that ends at t = 0."""
    levels = getattr(schedule, "levels", None)
    times = uniform(12) if levels is None else trailing(12, levels=levels)
    x0, x = torch.randn(12, 5, 3, generator=seeded()), torch.randn(5, 3, generator=seeded(1))
    for n in range(12):
        fine = x
        for end in range(n + 1, 13):
            fine = step(schedule, fine, x0[end - 1], times[end - 1], times[end])
            [weights] = block_weights(schedule, times, rows(n), rows(end))
            one = step(schedule, x, torch.tensordot(weights, x0, 1), times[n], times[end])
            torch.testing.assert_close(one, fine, rtol=1e-12, atol=1e-12)
            assert bool((weights >= 0).all()) and abs(float(weights.sum()) - 1) < 1e-14
            assert not weights[:n].any() and not weights[end:].any()


def step(schedule, x, x0, t, e):
    """One DDIM step, written by hand; to t = 0 it returns x0."""
    start = level_of(schedule, torch.full((len(x),), t), x)
    if e == 0:
        return x0
    end = level_of(schedule, torch.full((len(x),), e), x)
    return end.alpha * x0 + end.sigma * (x - start.alpha * x0) / start.sigma


def test_a_grid_that_ends_above_0_has_no_last_head():
    times = (1.0, 0.5, 0.25, 0.1)
    [weights] = block_weights(RectifiedFlow(), times, rows(0), rows(3))
    # rho = 0, 1, 3, 9
    torch.testing.assert_close(weights, rows(1.0, 2.0, 6.0) / 9)


def test_an_empty_block_and_a_block_of_one_step():
    weights = block_weights(Cosine(), FINE, rows(3, 3, 15), rows(3, 4, 16))
    assert weights.nonzero().tolist() == [[1, 3], [2, 15]]
    assert weights[1, 3] == weights[2, 15] == 1
