"""diffusers' schedulers: halfstep's own steps where they are the same, the exact flow where they are not."""

import ast
import inspect
from dataclasses import replace

import pytest
import torch

from halfstep.batch import Cond
from halfstep.diffusion.analytic import gaussian_flow, gaussian_teacher, mixture_teacher
from halfstep.diffusion.denoiser import Denoiser
from halfstep.diffusion.guidance import Guided
from halfstep.diffusion.prediction import Eps, V, X0
from halfstep.diffusion.samplers import (
    calls,
    ddim,
    diffusers_schedulers,
    dpmpp_2m,
    sample,
    sample_with_scheduler,
    supported_schedulers,
)
from halfstep.diffusion.schedules import BetaTable, Cosine, Karras, RectifiedFlow, VPLinear
from halfstep.diffusion.time_grids import karras, trailing, uniform, uniform_logsnr
from halfstep.errors import ConfigError
from halfstep.models import build
from halfstep.pipeline import Pipeline
from tests.support.denoisers import Counted, named, SCHEDULES, seeded, STOCHASTIC, wobbly_teacher
from tests.support.progress import Ledger

every_schedule = pytest.mark.parametrize(
    "schedule", [*SCHEDULES, BetaTable(zero_snr=True)], ids=named
)

ORDER_2 = [
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
]
EVERY = ["DDIMScheduler", "EulerDiscreteScheduler", *ORDER_2, *STOCHASTIC]
LONG = "KDPM2AncestralDiscreteScheduler"  # diffusers' own interpolation, as its sister's below
EACH = [pytest.param(name, marks=pytest.mark.slow) if name == LONG else name for name in EVERY]
UNEVEN = (0.93, 0.8, 0.41, 0.4, 0.1, 0.0)


def at_noise(schedule):
    return schedule.at(torch.ones((), dtype=torch.float64))


def sampled(denoiser, noise, times, name, **more):
    generators = [seeded(k) for k in range(len(noise))]
    return sample_with_scheduler(denoiser, noise, times, name, generators=generators, **more)


def some_noise(n=5, d=2):
    return torch.randn(n, d, generator=seeded(), dtype=torch.float64)


def test_the_names_are_those_that_diffusers_has():
    assert set(EVERY) <= set(supported_schedulers())


def test_diffusers_is_imported_only_where_it_is_used():
    tree = ast.parse(inspect.getsource(diffusers_schedulers))
    tops = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert tops and not any("diffusers" in ast.unparse(node) for node in tops)


# --- the same steps as halfstep's own -----------------------------------------------------------------


@every_schedule
@pytest.mark.parametrize("times", [uniform(1), uniform(3), uniform(16), UNEVEN], ids=len)
def test_ddim_is_ours(schedule, times):
    """On every schedule and grid, steps that do not divide 1000 among them."""
    teacher, noise = mixture_teacher(schedule), some_noise()
    actual = sampled(teacher, noise, times, "DDIMScheduler")
    torch.testing.assert_close(actual, sample(teacher, noise, times), rtol=0, atol=1e-12)


@pytest.mark.parametrize("steps", [64, 128])
def test_ddim_is_ours_where_diffusers_own_table_would_round(steps):
    teacher, noise = mixture_teacher(BetaTable("scaled_linear")), some_noise()
    actual = sampled(teacher, noise, uniform(steps), "DDIMScheduler")
    torch.testing.assert_close(actual, sample(teacher, noise, uniform(steps)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["DDIMScheduler", "DPMSolverMultistepScheduler"])
def test_grids_down_to_the_first_level_of_a_table(name):
    table = BetaTable("scaled_linear")
    teacher, noise, step = (
        mixture_teacher(table),
        some_noise(),
        ddim if "DDIM" in name else dpmpp_2m,
    )
    for times in (uniform_logsnr(5, table), karras(4, table), trailing(7)):
        actual = sampled(teacher, noise, times, name)
        torch.testing.assert_close(actual, sample(teacher, noise, times, step), rtol=0, atol=1e-5)


@every_schedule
@pytest.mark.parametrize("times", [uniform(2), uniform(7), uniform(20), UNEVEN], ids=len)
def test_dpm_solver_is_ours(schedule, times):
    """Where alpha(1) = 0 diffusers takes 2^-12 for it, so that the second step has a past."""
    teacher, noise = mixture_teacher(schedule), some_noise()
    actual = sampled(teacher, noise, times, "DPMSolverMultistepScheduler")
    singular = times[0] == 1 and at_noise(schedule).alpha == 0
    expected = sample(teacher, noise, times, dpmpp_2m)
    torch.testing.assert_close(actual, expected, rtol=0, atol=3e-3 if singular else 3e-6)


@every_schedule
def test_euler_is_ddim(schedule):
    """Euler in sigma / alpha; it has 7 digits of as much as 22026 times x."""
    teacher, noise = mixture_teacher(schedule), some_noise()
    actual = sampled(teacher, noise, uniform(8), "EulerDiscreteScheduler")
    torch.testing.assert_close(actual, sample(teacher, noise, uniform(8)), rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", ["DDIMScheduler", "DPMSolverMultistepScheduler"])
def test_clipping_is_ours(name):
    teacher, noise = wobbly_teacher(Cosine(), X0()), 3 * some_noise(5, 4)
    step = ddim if "DDIM" in name else dpmpp_2m
    for clip in (0.25, 1e6):
        actual = sampled(teacher, noise, uniform(4), name, clip=clip)
        expected = sample(teacher, noise, uniform(4), step, clip=clip)
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
        assert (actual.abs().max() <= 0.25 + 1e-6) == (clip == 0.25)


def test_conditions_reach_the_network():
    teacher, noise = Guided(mixture_teacher(Cosine()), 1.5, 3), some_noise()
    cond = Cond(torch.tensor([0, 1, 2, 1, 0]))
    actual = sampled(teacher, noise, uniform(4), "DDIMScheduler", cond=cond)
    expected = sample(teacher, noise, uniform(4), cond=cond)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


# --- the exact flow -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "schedule, name",
    [(VPLinear(), name) for name in ["DDIMScheduler", *ORDER_2] if name != "PNDMScheduler"]
    + [
        (Karras(), name)
        for name in ("UniPCMultistepScheduler", "HeunDiscreteScheduler", "PNDMScheduler")
    ],
    ids=lambda v: v if isinstance(v, str) else named(v),
)
def test_schedulers_converge_to_the_exact_flow(schedule, name):
    """Four times the steps divide the error by 4^order, nearly.  (PNDM's landing is of an order less.)"""
    teacher, noise = gaussian_teacher(schedule), some_noise(16)
    x = noise if schedule.variance_preserving else at_noise(schedule).sigma * noise
    exact = gaussian_flow(schedule, x, 1.0, 0.0)

    def error(steps):
        return (sampled(teacher, noise, uniform(steps), name) - exact).abs().mean().item()

    few, many = error(24), error(96)
    assert few / many > (3.6 if name == "DDIMScheduler" else 8)


@pytest.mark.parametrize("name", EACH)
@every_schedule
def test_every_scheduler_lands_where_the_data_is_one_point(schedule, name):
    if name == "PNDMScheduler" and at_noise(schedule).alpha == 0:
        pytest.skip("works on eps")
    teacher, tried = gaussian_teacher(schedule, mean=0.3, std=0.0), 0
    for times in (uniform(8), UNEVEN, uniform(20)):
        try:
            x = sampled(teacher, some_noise(), times, name)
        except ConfigError as refused:
            assert "diverges" in str(refused)
            continue
        tried += 1
        assert (x - 0.3).abs().max() < 1e-5
    assert tried


class Recorded(Counted):
    """A denoiser that keeps the eps it finds, one row a call."""

    def __init__(self, denoiser):
        super().__init__(denoiser)
        self.eps = []

    def __call__(self, x_t, t, cond=None):
        pred = super().__call__(x_t, t, cond)
        self.eps.append(pred.eps)
        return pred


@pytest.mark.parametrize("name", [name for name in EVERY if name not in STOCHASTIC])
@every_schedule
def test_the_network_is_asked_at_the_level_where_the_scheduler_is(schedule, name):
    """Where the data is one point every call finds the eps of the start: on the grid and between."""
    times = tuple(0.9 * t for t in uniform(5))  # float32 and 2^-12 for alpha = 0 lose it near t = 1
    teacher = Recorded(gaussian_teacher(schedule, mean=0.3, std=0.0))
    sampled(teacher, some_noise(), times, name)
    for eps in teacher.eps[1:]:
        torch.testing.assert_close(eps, teacher.eps[0], rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", EACH)
def test_one_step_is_the_predicted_x0(name):
    teacher, noise = mixture_teacher(Cosine()), some_noise()
    x = sampled(teacher, noise, uniform(1), name)
    torch.testing.assert_close(
        x, teacher(noise, torch.ones(5, dtype=torch.float64)).x0, rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("name", STOCHASTIC)
def test_noise_of_a_scheduler_makes_the_data(name):
    x = sampled(gaussian_teacher(VPLinear()), some_noise(400), uniform(60), name)
    assert abs(x.mean() - 0.3) < 4 * 0.5 / 800**0.5
    assert abs(x.std() / 0.5 - 1) < 0.15


# --- calls, noise, progress ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("steps", [1, 3, 5])
def test_calls_are_those_made(name, steps):
    counted, ledger = Counted(mixture_teacher(VPLinear())), Ledger()
    sampled(counted, some_noise(), uniform(steps), name, progress=ledger)
    assert counted.calls == calls(f"diffusers:{name}", steps)
    assert ledger.steps == steps
    sampled(counted, some_noise()[:0], uniform(steps), name, progress=ledger)
    assert ledger.steps == steps  # of no sample none


@pytest.mark.parametrize("steps", [1, 2, 16])
def test_calls_of_the_best_known(steps):
    assert calls("diffusers:DDIMScheduler", steps) == steps
    assert calls("diffusers:UniPCMultistepScheduler", steps) == steps
    assert calls("diffusers:HeunDiscreteScheduler", steps) == 2 * steps - 1
    assert calls("diffusers:KDPM2DiscreteScheduler", steps) == 2 * steps - 1


@pytest.fixture(scope="module")
def pipeline():
    torch.manual_seed(3)
    net = build("mlp", {"dim": 5, "width": 16, "depth": 1})
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return Pipeline(Denoiser(net, VPLinear(), V()).freeze(), (5,))


@pytest.mark.parametrize("name", EACH)
def test_an_image_is_the_same_in_any_batch(pipeline, name):
    """Up to the rounding of matrix products, which some enlarge; another noise changes x by about 1."""
    sampler, state = f"diffusers:{name}", torch.random.get_rng_state()
    whole = pipeline.sample(6, seed=11, steps=4, sampler=sampler)
    assert whole.dtype == torch.float32
    for batch, first in [(1, 0), (4, 2)]:
        part = pipeline.sample(
            6 - first, seed=11, steps=4, sampler=sampler, batch=batch, first=first
        )
        torch.testing.assert_close(part, whole[first:], rtol=0, atol=2e-3)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_each_image_and_each_seed_has_noise_of_its_own(name):
    """From one start, with generators that differ."""
    teacher, noise = gaussian_teacher(VPLinear()), torch.ones(3, 2, dtype=torch.float64)
    x = sampled(teacher, noise, uniform(4), name)
    assert len({tuple(row.tolist()) for row in x}) == 3
    others = [seeded(k) for k in (0, 1, 9)]
    y = sample_with_scheduler(teacher, noise, uniform(4), name, generators=others)
    assert torch.equal(x[:2], y[:2]) and not torch.equal(x[2], y[2])


def test_a_pipeline_samples_with_it(pipeline):
    actual = pipeline.sample(4, seed=0, steps=8, sampler="diffusers:DPMSolverMultistepScheduler")
    ddim = pipeline.sample(4, seed=0, steps=8, sampler="dpmpp-2m")
    torch.testing.assert_close(actual, ddim, rtol=0, atol=2e-4)


def test_a_student_keeps_its_own_grid(pipeline):
    student = replace(pipeline, times=(UNEVEN,))
    actual = student.sample(4, sampler="diffusers:DDIMScheduler")
    torch.testing.assert_close(actual, student.sample(4), rtol=0, atol=1e-5)


def test_no_samples(pipeline):
    assert pipeline.sample(0, steps=2, sampler="diffusers:DDPMScheduler").shape == (0, 5)
    x = sampled(mixture_teacher(Cosine()), torch.empty(0, 2), uniform(3), "DDPMScheduler")
    assert x.shape == (0, 2)


# --- what is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, words",
    [
        ("UniPCMultistepSchedule", "perhaps you meant 'UniPCMultistepScheduler'"),
        ("SchedulerMixin", "there is no diffusers scheduler 'SchedulerMixin'.*choose from"),
        ("", "there is no diffusers scheduler ''"),
        ("FlowMatchEulerDiscreteScheduler", "takes no table of betas: choose from.*DDIMScheduler"),
        ("EDMEulerScheduler", "takes no table of betas"),
        ("LCMScheduler", "samples consistency models"),
        ("DDIMInverseScheduler", "from data to noise"),
        ("CogVideoXDPMScheduler", "need more than the network's answer"),
    ],
)
def test_names_that_cannot_be_are_refused(pipeline, name, words):
    with pytest.raises(ConfigError, match=words):
        pipeline.sample(1, steps=2, sampler=f"diffusers:{name}")
    with pytest.raises(ConfigError, match=words):
        calls(f"diffusers:{name}", 2)


def test_a_sampler_that_is_none_is_told_of_these(pipeline):
    with pytest.raises(ConfigError, match="diffusers:NAME"):
        pipeline.sample(1, steps=2, sampler="UniPCMultistepScheduler")


def test_a_grid_that_ends_above_0_is_refused():
    with pytest.raises(ConfigError, match=r"ends at 0\.2"):
        sampled(mixture_teacher(Cosine()), some_noise(), (1.0, 0.5, 0.2), "DDIMScheduler")


@pytest.mark.parametrize("schedule", [RectifiedFlow(), BetaTable(zero_snr=True)], ids=named)
def test_eps_from_zero_snr_is_refused(schedule):
    with pytest.raises(ConfigError, match="works on eps"):
        sampled(mixture_teacher(schedule), some_noise(), uniform(4), "PNDMScheduler")
    teacher = mixture_teacher(schedule, parameterisation=Eps())
    with pytest.raises(ConfigError, match="eps output"):
        sampled(teacher, some_noise(), uniform(4), "DDIMScheduler")


def test_levels_that_float32_does_not_hold_are_refused():
    with pytest.raises(ConfigError, match=r"2 steps.*float32"):
        sampled(
            mixture_teacher(Cosine()), some_noise(), uniform(2), "KDPM2AncestralDiscreteScheduler"
        )


def test_one_generator_a_sample():
    teacher, noise = mixture_teacher(Cosine()), some_noise()
    with pytest.raises(ConfigError, match="got 1 for 5"):
        sample_with_scheduler(teacher, noise, uniform(2), "DDPMScheduler", generators=[seeded()])


@pytest.mark.parametrize("begin", [1.0, 0.5, 0.2])
@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler"])
def test_a_trial_knows_where_the_exact_flow_ends_from_wherever_it_begins(name, begin):
    times = uniform(100, start=begin)
    assert diffusers_schedulers._trial_error(name, Cosine(), times) < 0.05
    assert diffusers_schedulers._trial_error(name, VPLinear(), times) < 0.05
