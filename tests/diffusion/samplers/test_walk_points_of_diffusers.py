"""The points of walks by diffusers' schedulers, which compute in float32: on the exact flow of a Gaussian."""

import pytest
import torch

from halfstep.diffusion.analytic import gaussian_flow, gaussian_teacher
from halfstep.diffusion.samplers import (
    check_solver,
    check_walk,
    draws_noise,
    PREFIX,
    sample_with_scheduler,
    supported_schedulers,
    walk_points,
)
from halfstep.diffusion.schedules import VPLinear
from halfstep.diffusion.time_grids import uniform
from halfstep.errors import ConfigError
from tests.support.denoisers import seeded


def noise(rows=4):
    return torch.randn(rows, 2, generator=seeded(3))


@pytest.mark.parametrize("name", [n for n in supported_schedulers() if not draws_noise(PREFIX + n)])
def test_schedulers_of_diffusers_pass_through_the_exact_flow(name):
    """Points at t = 1, 1/2 and 0 of 32 steps lie where the flow of one Gaussian leads."""
    schedule, z = VPLinear(), noise()
    solver, times, teacher = PREFIX + name, uniform(32), gaussian_teacher(VPLinear())
    check_solver(solver)
    numbers = (0, 8, 16, 24, 32)
    try:
        check_walk(schedule, times, solver, numbers)
    except ConfigError as error:
        assert (
            "diverges" in str(error)
            or "cannot sample" in str(error)
            or "does not visit" in str(error)
        )
        return
    points = walk_points(teacher, z, times, solver, numbers).unbind(1)
    torch.testing.assert_close(points[0], z)
    generators = [seeded() for _ in z]
    end = sample_with_scheduler(teacher, z, times, name, generators=generators)
    assert torch.equal(points[-1], end)
    for k, x in zip(numbers[1:-1], points[1:-1], strict=True):
        exact = gaussian_flow(schedule, z, 1.0, times[k])
        assert float((x - exact).abs().max()) < 0.1, (k, x, exact)


def test_the_corrected_state_counts_where_a_scheduler_visits_a_time_twice():
    """diffusers' Heun predicts the end of a step, and then corrects it."""
    teacher, z, times = gaussian_teacher(VPLinear()), noise(), uniform(32)
    x = walk_points(teacher, z, times, f"{PREFIX}HeunDiscreteScheduler", (0, 31, 32))[:, 1]
    exact = gaussian_flow(VPLinear(), z, 1.0, times[31])
    euler = walk_points(teacher, z, times, "ddim", (0, 31, 32))[:, 1]
    assert float((x - exact).abs().max()) < 0.13 * float((euler - exact).abs().max())
