"""Every sampler on every schedule in few steps, the network exact: it ends near the solution, or refuses."""

from contextlib import suppress
from dataclasses import replace

import pytest
import torch

from halfstep.batch import Cond
from halfstep.diffusion.analytic import gaussian_flow, gaussian_teacher, mixture_teacher
from halfstep.diffusion.denoiser import Denoiser
from halfstep.diffusion.guidance import Guided
from halfstep.diffusion.prediction import Eps, V
from halfstep.diffusion.samplers import (
    draws_noise,
    PREFIX,
    sample_with_scheduler,
    SAMPLER_PRESETS,
    start,
    STEPS,
    supported_schedulers,
)
from halfstep.diffusion.samplers.registry import SCHEDULER
from halfstep.diffusion.samplers.step_checks import relative_error
from halfstep.diffusion.schedules import BetaTable, Cosine, Karras, RectifiedFlow, VPLinear
from halfstep.diffusion.time_grids import karras, uniform, uniform_logsnr
from halfstep.errors import ConfigError, HalfstepError
from halfstep.models import build
from halfstep.pipeline import Pipeline
from halfstep.pipeline.samplers import check_sampling, NAMES, sampler_fn, teacher_grid, TOLD
from tests.support.denoisers import Counted, named, seeded

MEAN, STD, N = 0.3, 0.5, 64
SCHEDULES = [
    Cosine(), VPLinear(), RectifiedFlow(), Karras(), BetaTable("scaled_linear"),
    BetaTable("squaredcos_cap_v2"),
    BetaTable(zero_snr=True),
]  # fmt: skip
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
COUNTS = (1, 2, 4, 10)
DIFFUSERS = [f"{PREFIX}{name}" for name in supported_schedulers()]
BEST_KNOWN = ("DDIM", "EulerDiscrete", "Heun", "PNDM", "DPMSolverMultistep", "UniPC", "SASolver")
EACH = [
    name if any(word in name for word in BEST_KNOWN) else pytest.param(name, marks=pytest.mark.slow)
    for name in DIFFUSERS
]
OF_ANY_PIPELINE = [name for name in NAMES if name not in (SCHEDULER, *TOLD)]
"""Samplers that need no scheduler that a model was published with."""


def off(name, schedule, times, *, std=STD, dtype=torch.float32):
    """The distance of samples from the exact end, in spreads of the data.

    For samplers that draw noise, only the spread of the samples counts: without any it is 1 off, too.
    """
    noise = torch.randn(N, 1, generator=seeded(3), dtype=torch.float64)
    sampler = sampler_fn(name, 0, range(N), (1,), times, schedule, 0.0)
    actual = sampler(gaussian_teacher(schedule, MEAN, std), noise.to(dtype), times).double()
    if draws_noise(name):
        return ((actual - MEAN).square().mean().sqrt() / std - 1).abs().item()
    x_start = start(schedule, noise, times[0])
    exact = gaussian_flow(schedule, x_start, times[0], times[-1], MEAN, std)
    return ((actual - exact).square().mean().sqrt() / std).item()


def refused(name, schedule, steps):
    """Whether it is; else it ends near the solution."""
    try:
        distance = off(name, schedule, teacher_grid(steps, name, schedule))
    except HalfstepError:
        return True
    assert distance < (2.6 if draws_noise(name) else 2.2), (steps, distance)
    return False


# What is refused of few steps, and nothing else: the singular ends and the grids, with a table's corners.
SINGULAR = (RectifiedFlow(), BetaTable(zero_snr=True))
NOWHERE = {
    "dpm-fast": lambda s, n: n == 2,
    "euler-maruyama": lambda s, n: n < 10 or s != VPLinear(),
    "HeunDiscrete": lambda s, n: (s in (Cosine(), SCHEDULES[5]) and n > 1)
    or (s == RectifiedFlow() and n in (2, 4)) or (s == SINGULAR[1] and n == 2),
    "PNDM": lambda s, n: (s in (Cosine(), SCHEDULES[5]) and n > 1) or n == 2,
    "KDPM2Ancestral": lambda s, n: n > 1,
    "SASolver": lambda s, n: s == Karras() and n == 10,
}  # fmt: skip


@pytest.mark.parametrize("name", [*OF_ANY_PIPELINE, *EACH])
@every_schedule
def test_few_steps_end_near_the_solution_or_are_refused(name, schedule):
    may = next((rule for word, rule in NOWHERE.items() if word in name), lambda s, n: False)
    for steps in COUNTS:
        if (name in SAMPLER_PRESETS and schedule in SINGULAR) or (
            "PNDM" in name and schedule in SINGULAR
        ):
            assert refused(name, schedule, steps)
        else:
            assert not refused(name, schedule, steps) or may(schedule, steps), steps


@pytest.mark.parametrize(
    "name, schedule, steps",
    [
        ("PNDMScheduler", Cosine(), 4),
        ("PNDMScheduler", Cosine(), 2),
        ("PNDMScheduler", VPLinear(), 2),
        ("PNDMScheduler", BetaTable("squaredcos_cap_v2"), 10),
        ("HeunDiscreteScheduler", Cosine(), 4),
        ("HeunDiscreteScheduler", Cosine(), 10),
        ("HeunDiscreteScheduler", RectifiedFlow(), 2),
        ("HeunDiscreteScheduler", RectifiedFlow(), 4),
        ("HeunDiscreteScheduler", BetaTable(zero_snr=True), 2),
        ("HeunDiscreteScheduler", Cosine(-30.0, 30.0), 20),
        ("EulerDiscreteScheduler", VPLinear(0.1, 199.0), 10),  # float32 has no digits left
        ("DEISMultistepScheduler", VPLinear(0.1, 150.0), 4),
    ],
)
def test_schedulers_that_lead_nowhere_are_refused_before_a_network_is_asked(name, schedule, steps):
    teacher, noise = Counted(gaussian_teacher(schedule)), torch.ones(2, 1)
    with pytest.raises(ConfigError, match=f"'{name}' .*in {steps} steps"):
        sample_with_scheduler(teacher, noise, uniform(steps), name, generators=[seeded(), seeded()])
    assert teacher.calls == 0
    with pytest.raises(ConfigError, match="diverges"):
        check_sampling(f"{PREFIX}{name}", uniform(steps), schedule)


@pytest.mark.parametrize(
    "name, schedule, expected",
    [
        ("dpm-fast", Cosine(), [2, 5, 6, 7, 8, 9]),
        ("dpm-fast", VPLinear(), [2]),
        ("euler-maruyama", Cosine(), [*range(1, 40)]),
        ("euler-maruyama", VPLinear(), [*range(1, 7)]),
    ],
)
def test_the_steps_that_the_docs_say_are_refused(name, schedule, expected):
    """docs/how-to/choose-sampler-and-grid.md says these numbers."""
    refused_steps = []
    for steps in range(1, 40):
        with suppress(ConfigError):
            check_sampling(name, teacher_grid(steps, name, schedule), schedule)
            continue
        refused_steps.append(steps)
    assert refused_steps == expected


@pytest.mark.parametrize("name", ["HeunDiscreteScheduler", "PNDMScheduler"])
def test_schedulers_that_lead_somewhere_are_not(name):
    """In more steps, from lower, or where alpha(1) is not near 0."""
    grids = [(Cosine(), uniform(50)), (Cosine(), tuple(0.9 * t for t in uniform(6)))]
    grids += [(VPLinear(), uniform(4)), (Karras(), uniform(6)), (BetaTable(), uniform(10))]
    for schedule, times in grids:
        assert off(f"{PREFIX}{name}", schedule, times) < 1.3


class Unhashable:
    """A user's own schedule, compared by value and without a hash."""

    variance_preserving, __hash__ = True, None

    def __eq__(self, other):
        return type(self) is type(other)

    def at(self, t):
        return Cosine().at(t)

    def time(self, logsnr):
        return Cosine().time(logsnr)


def test_a_schedule_of_ones_own_is_tried_too():
    noise = torch.ones(1, 1)
    for schedule in (Unhashable(), type("Plain", (Unhashable,), {"__hash__": object.__hash__})()):
        teacher = gaussian_teacher(schedule)
        x = sample_with_scheduler(
            teacher, noise, uniform(4), "DDIMScheduler", generators=[seeded()]
        )
        assert (x - MEAN - STD * 0.7).abs().max() < 0.5
        with pytest.raises(ConfigError, match="diverges"):
            sample_with_scheduler(
                teacher, noise, uniform(4), "PNDMScheduler", generators=[seeded()]
            )


@pytest.mark.slow
@pytest.mark.parametrize("name", [*STEPS, "ancestral", "stochastic", *DIFFUSERS])
@pytest.mark.parametrize("std", [0.2, 0.5, 1.0])
def test_other_grids_ends_and_data(name, std):
    """Samples end near the solution, for data of other spreads as well."""
    count = 0
    for schedule in (Cosine(-30.0, 30.0), VPLinear(0.1, 40.0), Karras(0.001, 1000.0), Cosine()):
        for steps in (3, 7, 20):
            for times in (uniform(steps), uniform_logsnr(steps, schedule), karras(steps, schedule)):
                try:
                    distance = off(name, schedule, times, std=std)
                except HalfstepError:
                    continue
                count += 1
                assert distance < 8, (schedule, times)
    assert count > 5


def test_how_far_astray():
    """In spreads; noise drawn on the way counts by how far apart it puts the ends, nan as endless."""
    exact = torch.tensor([1.0, -1.0])
    assert relative_error(exact, exact) == 0 and relative_error(0 * exact, exact) == 1
    assert relative_error(-exact, exact) == 2 and relative_error(-exact, exact, drawn=True) == 0
    assert (
        relative_error(8 * exact, 2 * exact) == 3
        and relative_error(-8 * exact, 2 * exact, drawn=True) == 3
    )
    assert relative_error(torch.tensor([1.0, torch.nan]), exact) == torch.inf
    assert relative_error(torch.tensor([1.0, torch.inf]), exact, drawn=True) == torch.inf


# --- inference mode -----------------------------------------------------------------------------------


def pipeline(schedule):
    torch.manual_seed(3)
    net = build("mlp", {"dim": 2, "width": 16, "depth": 1, "num_classes": 4})
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return Pipeline(
        Denoiser(net, schedule, V()).freeze(), (2,), class_names=("a", "b", "c"), null=3, clip=2.0
    )


@pytest.mark.parametrize("name", [*OF_ANY_PIPELINE, *EACH])
@pytest.mark.parametrize("schedule", [VPLinear(), Karras()], ids=named)
def test_inference_mode_gives_the_same_bits(name, schedule):
    if name == "stochastic":
        made = replace(pipeline(schedule), times=(uniform(24),), sampler="ddim")
        made = Pipeline(**{**vars(made), "sampler": "stochastic"})
    else:
        made = pipeline(schedule)
    expected = made.sample(3, sampler=name, steps=24, guidance_scale=1.5)
    with torch.inference_mode():
        assert torch.equal(made.sample(3, sampler=name, steps=24, guidance_scale=1.5), expected)


@pytest.mark.parametrize("schedule", [Cosine(), VPLinear(), RectifiedFlow(), Karras()], ids=named)
def test_encoding_in_inference_mode_gives_the_same_bits(schedule):
    made, x = pipeline(schedule), torch.rand(3, 2, generator=seeded()) * 2 - 1
    expected = made.encode(x, steps=6, guidance_scale=2.0)
    edited = made.sample(3, images=x, mask=torch.tensor([[False, True]]), steps=5)
    with torch.inference_mode():
        assert torch.equal(made.encode(x.clone(), steps=6, guidance_scale=2.0), expected)
        again = made.sample(3, images=x, mask=torch.tensor([[False, True]]), steps=5)
        assert torch.equal(again, edited)
        inside = pipeline(schedule)
        assert torch.equal(inside.encode(x, steps=6, guidance_scale=2.0), expected)


def test_what_inference_mode_left_behind_can_be_trained_with():
    """A table's levels and a trial's verdict are kept; neither belongs to the mode it was made in."""
    table = BetaTable("scaled_linear", levels=321)
    with torch.inference_mode():
        teacher = mixture_teacher(table)
        noise = torch.ones(2, 2)
        sample_with_scheduler(
            teacher, noise, uniform(3), "DDIMScheduler", generators=[seeded(), seeded()],
            cond=Cond(label=torch.tensor([0, 1])),
        )  # fmt: skip
    x = torch.ones(2, 2, requires_grad=True)
    t = torch.full((2,), 0.5, dtype=torch.float64)
    pred = Guided(mixture_teacher(table, parameterisation=Eps()), 1.5, 3)(
        x, t, Cond(label=torch.tensor([0, 1]))
    )
    pred.x0.sum().backward()
    assert x.grad.isfinite().all()
