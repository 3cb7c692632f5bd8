"""The points of a walk: a solver's own states, for every deterministic solver, and refusals of all others."""

import pytest
import torch

from halfstep.diffusion.analytic import gaussian_flow, gaussian_teacher, mixture_teacher
from halfstep.diffusion.prediction import Clip
from halfstep.diffusion.samplers import (
    check_solver,
    check_walk,
    dpm_fast,
    dpmpp_3s,
    PREFIX,
    sample,
    solver_grid,
    start,
    step_ends,
    STEPS,
    walk_points,
)
from halfstep.diffusion.schedules import BetaTable, Cosine, Karras, RectifiedFlow
from halfstep.diffusion.time_grids import uniform
from halfstep.errors import ConfigError
from tests.support.denoisers import Counted, named, SCHEDULES, seeded, STOCHASTIC

pytestmark = pytest.mark.usefixtures("float64")
FINE = uniform(16)


def noise(rows=4):
    return torch.randn(rows, 2, generator=seeded(3))


@pytest.mark.parametrize("solver", STEPS)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=named)
def test_every_point_is_where_the_solver_is_on_a_grid_that_ends_there(schedule, solver):
    teacher, z = mixture_teacher(schedule), noise()
    points = walk_points(teacher, z, FINE, solver, range(17)).unbind(1)
    assert torch.equal(points[0], start(schedule, z, 1.0))
    for k in range(1, 17):
        torch.testing.assert_close(
            points[k], sample(teacher, z, FINE[: k + 1], STEPS[solver]), rtol=0, atol=1e-12
        )


@pytest.mark.parametrize("solver", STEPS)
def test_some_points_are_those_of_all_and_cost_nothing_more(solver):
    teacher, z = Counted(mixture_teacher(Cosine())), noise()
    every = walk_points(teacher, z, FINE, solver, range(17))
    calls, teacher.calls = teacher.calls, 0
    some = walk_points(teacher, z, FINE, solver, (0, 4, 12, 16))
    assert torch.equal(some, every[:, [0, 4, 12, 16]])
    assert torch.equal(walk_points(teacher, z, FINE, solver, (0, 4)), every[:, [0, 4]])
    assert teacher.calls == 2 * calls == 2 * (31 if solver == "heun" else 16)


def test_walks_are_clipped_as_samples_are():
    teacher, z = mixture_teacher(Cosine()), noise()
    for clip in (None, 0.3, Clip(0.3, "x0")):
        points = walk_points(teacher, z, FINE, "ddim", (0, 8, 16), clip=clip)
        assert torch.equal(points[:, -1], sample(teacher, z, FINE, clip=clip))


@pytest.mark.parametrize(("solver", "step"), [("dpmpp-3s", dpmpp_3s), ("dpm-fast", dpm_fast)])
def test_single_step_solvers_keep_the_ends_of_whole_steps(solver, step):
    schedule, z = Cosine(), noise()
    teacher, times = gaussian_teacher(schedule), solver_grid(solver, 24, schedule)
    assert step_ends(solver, 24) == {*range(0, 24, 3), 23, 24}
    numbers = sorted(step_ends(solver, 24))
    points = walk_points(teacher, z, times, solver, numbers).unbind(1)
    assert torch.equal(points[-1], sample(teacher, z, times, step(24)))
    for k, x in zip(numbers[1:], points[1:], strict=True):
        exact = gaussian_flow(schedule, z, 1.0, times[k])
        assert float((x - exact).abs().max()) < 0.02, k


def test_every_point_of_another_solver_ends_a_step():
    assert step_ends("heun", 5) == set(range(6))
    assert step_ends("diffusers:DDIMScheduler", 5) == set(range(6))


def test_grids():
    assert solver_grid("heun", 4, Cosine()) == uniform(4)
    assert solver_grid("ddim", 8, BetaTable(levels=1000)) == solver_grid(
        "heun", 8, BetaTable(levels=1000)
    )
    assert solver_grid("heun", 4, Karras(), "karras") != uniform(4)
    with pytest.raises(ConfigError, match="time grid of its own, got grid='uniform'"):
        solver_grid("dpmpp-3s", 12, Cosine(), "uniform")


@pytest.mark.parametrize(
    "solver",
    ["ancestral", "stochastic", "euler-maruyama", *(PREFIX + name for name in STOCHASTIC)],
)
def test_solvers_that_draw_noise_are_refused(solver):
    with pytest.raises(ConfigError, match="draws noise at its steps"):
        check_solver(solver)


def test_unknown_solvers_and_a_published_one_are_refused():
    for solver in ("ddmi", "diffusers:NoScheduler"):
        with pytest.raises(ConfigError, match="there is no"):
            check_solver(solver)
    with pytest.raises(ConfigError, match="that of a published model"):
        check_solver("scheduler")
    for solver in (*STEPS, "dpmpp-3s", "dpm-fast", "diffusers:UniPCMultistepScheduler"):
        check_solver(solver)


def test_a_walk_that_cannot_be_is_refused_without_a_network():
    check_walk(Cosine(), FINE, "heun", (0, 8, 16))
    with pytest.raises(ConfigError, match="cannot start at t = 1"):
        check_walk(
            RectifiedFlow(), solver_grid("dpmpp-3s", 24, RectifiedFlow()), "dpmpp-3s", (0, 24)
        )
