"""Sampling in blocks of heads: any blocks of exact heads are the teacher's fine walk."""

import pytest
import torch
from torch import nn

from halfstep.batch import Cond
from halfstep.diffusion.analytic import gaussian_teacher, mixture_teacher
from halfstep.diffusion.guidance import Guided
from halfstep.diffusion.samplers import InBlocks, sample
from halfstep.diffusion.schedules import Cosine, Karras, RectifiedFlow, VPLinear
from halfstep.diffusion.time_grids import uniform
from halfstep.errors import ConfigError
from tests.support.denoisers import named, SCHEDULES, seeded
from tests.support.heads import ExactHeads

pytestmark = pytest.mark.usefixtures("float64")
FINE = uniform(16)
SIZES = ([16], [8, 8], [4] * 4, [1] * 16, [8, 4, 4], [2, 8, 2, 4], [1, 2, 3, 10], [15, 1], [1, 15])


def grid_of(sizes, fine=FINE):
    places = [0]
    for size in sizes:
        places.append(places[-1] + size)
    return tuple(fine[k] for k in places)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=named)
def test_any_blocks_are_the_fine_walk(schedule):
    teacher, noise = mixture_teacher(schedule), torch.randn(3, 2, generator=seeded())
    walk, exact = sample(teacher, noise, FINE), ExactHeads(teacher, FINE)
    for sizes in SIZES:
        times = grid_of(sizes)
        exact.calls = 0
        got = sample(InBlocks(exact, times, FINE), noise, times)
        torch.testing.assert_close(got, walk, rtol=1e-12, atol=1e-12)
        assert exact.calls == 3 * len(sizes)


# Made by numpy from the formulas, from unit noise 1, times sigma(1) where x is no unit noise.
WALKS = {
    Cosine(): (0.753920384958555, 0.7999619709573993),
    RectifiedFlow(): (0.7556830933916336, 0.7999716453610258),
    VPLinear(): (0.7144706461476534, 0.7988379694309091),
    Karras(): (0.7170484576655274, 0.7978174180745065),
}


@pytest.mark.parametrize("schedule", WALKS, ids=named)
def test_walks_of_euler_and_midpoint_land_at_known_numbers(schedule):
    teacher, one = gaussian_teacher(schedule), torch.ones(1, 1)
    for midpoint, expected in zip((False, True), WALKS[schedule], strict=True):
        for sizes in ([16], [8, 4, 4], [1] * 16):
            times = grid_of(sizes)
            exact = ExactHeads(teacher, FINE, midpoint=midpoint)
            x = sample(InBlocks(exact, times, FINE), one, times)
            assert x.item() == pytest.approx(expected, abs=1e-9)


def test_a_start_below_the_first_time_keeps_the_blocks():
    """Editing starts inside the grid: the blocks after it are the same."""
    teacher, x = mixture_teacher(Cosine()), torch.randn(3, 2, generator=seeded())
    times = grid_of([8, 4, 4])
    got = sample(InBlocks(ExactHeads(teacher, FINE), times[1:], FINE), x, times[1:])
    torch.testing.assert_close(got, sample(teacher, x, FINE[8:]), rtol=1e-12, atol=1e-12)


def test_guidance_doubles_the_weights_with_the_conditions():
    heard = []

    class Listening(nn.Module):
        schedule, exact = Cosine(), ExactHeads(mixture_teacher(Cosine()), FINE)

        def forward(self, x, t, cond=None):
            heard.append(cond)
            return self.exact(x, t, cond)

    guided = Guided(Listening(), 2.0, 3)
    times = FINE[::8]
    cond = Cond(label=torch.tensor([0, 1]))
    sample(InBlocks(guided, times, FINE), torch.randn(2, 2), times, cond=cond)
    assert [c.label.tolist() for c in heard] == [[0, 1, 3, 3]] * 2
    assert all(c.heads.shape == (4, 16) for c in heard)
    assert heard[1].heads[0].nonzero().flatten().tolist() == [15]


def test_grids_of_other_times_are_refused():
    exact = ExactHeads(mixture_teacher(Cosine()), FINE)
    with pytest.raises(ConfigError, match="other times"):
        InBlocks(exact, (1.0, 0.3, 0.0), FINE)
    with pytest.raises(ConfigError, match="begins at"):
        InBlocks(exact, FINE[::8], FINE)(torch.zeros(1, 2), torch.tensor([0.25]), None)
