"""The prediction that leads from one point of a trajectory to a later one, for every pair of points."""

from itertools import combinations, pairwise

import pytest
import torch

from halfstep.diffusion.analytic import gaussian_teacher, mixture_teacher
from halfstep.diffusion.denoiser import level_of
from halfstep.diffusion.samplers import walk_points
from halfstep.diffusion.schedules import Cosine, Karras, RectifiedFlow, VPLinear
from halfstep.diffusion.time_grids import uniform
from halfstep.errors import ConfigError
from halfstep.methods import two_step_target
from halfstep.methods.diffusion.landing_target import landing_target, refuse_no_length
from halfstep.methods.diffusion.matching import arriving_at
from tests.support.denoisers import named, SCHEDULES, seeded

pytestmark = pytest.mark.usefixtures("float64")
FINE = uniform(16)


def walk(schedule, solver="ddim", rows=5):
    teacher, noise = mixture_teacher(schedule), torch.randn(rows, 2, generator=seeded(3))
    return teacher, walk_points(teacher, noise, FINE, solver, range(17)).unbind(1)


def at(t, like):
    return torch.full((len(like),), t)


def near(actual, expected, scale=1.0):
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12 * max(1.0, float(scale)))


@pytest.mark.parametrize("solver", ["ddim", "heun", "dpmpp-2m"])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=named)
def test_one_ddim_step_lands_on_the_kept_point_for_every_pair(schedule, solver):
    _, points = walk(schedule, solver)
    for i, j in combinations(range(17), 2):
        t, e = at(FINE[i], points[i]), at(FINE[j], points[j])
        target = landing_target(schedule, points[i], points[j], t, e)
        size = points[i].abs().max()
        near(level_of(schedule, t, points[i]).mix(target.x0, target.eps), points[i], size)
        near(arriving_at(schedule, e, points[i]).mix(target.x0, target.eps), points[j], size)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=named)
def test_along_two_ddim_steps_it_is_the_two_step_target(schedule):
    """The other way to the same number: the convex combination of the teacher's two predictions."""
    teacher, points = walk(schedule)
    for i in range(0, 16, 2):
        t, m, e = (at(FINE[i + k], points[i]) for k in range(3))
        both = two_step_target(teacher, points[i], t, m, e)
        once = landing_target(schedule, points[i], points[i + 2], t, e)
        # Reading the points off cancels what they have in common.
        torch.testing.assert_close(once.x0, both.x0, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(once.eps, both.eps, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=named)
def test_one_ddim_step_is_the_teacher_itself(schedule):
    teacher, points = walk(schedule)
    for (s, x), (t, y) in pairwise(zip(FINE, points, strict=True)):
        target = landing_target(schedule, x, y, at(s, x), at(t, y))
        pred = teacher(x, at(s, x))
        torch.testing.assert_close(target.x0, pred.x0, rtol=1e-9, atol=1e-9)


def test_the_last_segment_ends_in_clean_data_whatever_the_schedule_says():
    for schedule in (Cosine(), Karras(), VPLinear()):  # their sigma(0) is above 0
        x_t, x_e = torch.tensor([[0.4]]), torch.tensor([[-0.7]])
        target = landing_target(schedule, x_t, x_e, torch.tensor([0.3]), torch.tensor([0.0]))
        assert torch.equal(target.x0, x_e)
        level = schedule.at(torch.tensor([[0.3]]))
        near(target.eps, (x_t - level.alpha * x_e) / level.sigma)


def test_pure_noise_says_its_own_noise():
    """At alpha = 0 eps is x_t itself, and nothing is divided by 0."""
    target = landing_target(
        RectifiedFlow(),
        torch.tensor([[-1.2]]),
        torch.tensor([[-0.835]]),
        torch.ones(1),
        at(0.75, [0]),
    )
    near(target.eps, torch.tensor([[-1.2]]))
    near(target.x0, torch.tensor([[0.26]]))  # (-0.835 + 0.75 * 1.2) / 0.25


NUMBERS = {
    Cosine: (1.0, 0.4027988659163502, 0.9919156605688295, 0.753920384958555),
    RectifiedFlow: (1.0, 0.4014202607277111, 0.7007101303638555, 0.7556830933916336),
    VPLinear: (1.0, 0.3301972904774241, 1.0504383319351447, 0.7144706461476534),
    Karras: (80.0, 0.3378810928792056, 2.8424770073202255, 0.7170484576655274),
}
"""x at 1, x0 from 1 to 1/2, x at 1/2, x0 from 1 to 0: 16 uniform DDIM steps from unit noise 1 of the Gaussian
N(0.3, 0.5^2).  Computed twice outside of halfstep."""


@pytest.mark.parametrize("kind", NUMBERS, ids=lambda kind: kind.__name__)
def test_numbers_of_a_gaussian(kind):
    schedule = kind()
    teacher = gaussian_teacher(schedule)
    x, y, z = walk_points(teacher, torch.ones(1, 1), FINE, "ddim", [0, 8, 16]).unbind(1)
    one, middle, zero = (torch.tensor([t]) for t in (1.0, 0.5, 0.0))
    first = landing_target(schedule, x, y, one, middle).x0
    whole = landing_target(schedule, x, z, one, zero).x0
    for actual, expected in zip((x, first, y, whole), NUMBERS[kind], strict=True):
        assert float(actual) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_a_segment_between_equal_levels_is_refused():
    class Flat(RectifiedFlow):
        def at(self, t):
            return super().at(t.clamp(max=0.5))

    refuse_no_length(RectifiedFlow(), (1.0, 0.75, 0.0))
    refuse_no_length(Flat(), (1.0, 0.25, 0.0))
    with pytest.raises(
        ConfigError, match="no prediction leads from t = 1 to the end of its segment"
    ):
        refuse_no_length(Flat(), (1.0, 0.75, 0.0))
