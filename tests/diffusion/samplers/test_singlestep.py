"""DPM-Solver++(3S) and DPM-Solver-fast: the official trajectories, the papers' formulas, orders, ends."""

from functools import lru_cache
from itertools import pairwise
from math import log

import pytest
import torch
from torch import nn

from halfstep.diffusion.analytic import gaussian_flow, gaussian_teacher, mixture_teacher
from halfstep.diffusion.denoiser import Denoiser, NetTime
from halfstep.diffusion.prediction import Eps, Prediction
from halfstep.diffusion.samplers import (
    calls,
    dpm_fast,
    dpmpp_3s,
    ModelOutput,
    sample,
    SAMPLER_PRESETS,
    start,
    TimePoint,
)
from halfstep.diffusion.schedules import (
    arriving,
    BetaTable,
    Cosine,
    Karras,
    RectifiedFlow,
    VPLinear,
)
from halfstep.diffusion.time_grids import checked, fast, orders, uniform
from halfstep.errors import ConfigError
from tests.support.denoisers import Counted, fine_flow, named, seeded

SMOOTH = [Cosine(), VPLinear(), RectifiedFlow(), Karras()]
SD = BetaTable("scaled_linear", beta_start=0.00085, beta_end=0.012)
STEPS = {"dpmpp_3s": dpmpp_3s, "dpm_fast": dpm_fast}
every_step = pytest.mark.parametrize("name", STEPS)
every_schedule = pytest.mark.parametrize("schedule", SMOOTH, ids=named)

# uvit-probe.json, "sampler": the official DPM_Solver of U-ViT on a closed-form network, float32.
START = [1.3, -0.4, 0.05, -2.2, 0.7, 1.9]
TRAJECTORIES = {
    10: [7.739611, -0.644773, -0.041204, -20.924543, 1.445328, 16.031477],
    25: [7.700678, -0.618654, -0.012974, -20.911427, 1.471653, 15.99666],
    50: [7.705132, -0.614653, -0.006074, -20.905113, 1.480626, 16.000214],
}
TIMES_OF_TEN = [1000.0, 900.1, 800.2, 700.3, 600.4, 500.5, 400.6, 300.7, 200.8, 100.9]
SPACING = {10: 99.9, 25: 39.96, 50: 19.98}
"""Between the probe's model times, which are 1000 less so many of it."""


@pytest.fixture(autouse=True)
def _float64(float64):
    pass


class Official(nn.Module):
    """eps(x, label) = 0.8 tanh(x) + 0.1 sin(label / 100), and the labels it was asked at."""

    def __init__(self):
        super().__init__()
        self.labels = []

    def forward(self, x, label, cond=None):
        self.labels.append(label[0].item())
        return 0.8 * x.tanh() + 0.1 * (label / 100).sin().reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("steps", TRAJECTORIES)
def test_the_official_trajectory(steps, dtype):
    """dpm_solver_pp.py as U-ViT calls it: times to 0.02, output to 1e-4."""
    net, preset = Official(), SAMPLER_PRESETS["dpmpp-3s"]
    denoiser = Denoiser(net, SD, Eps(), time=NetTime(scale=1000.0))
    noise = torch.tensor(START, dtype=dtype).reshape(6, 1, 1, 1)
    x = sample(denoiser, noise, preset.grid(steps, SD), preset.step(steps, SD, None))
    assert x.dtype == dtype
    expected = [1000 - SPACING[steps] * k for k in range(steps)]
    if steps == 10:
        assert expected == pytest.approx(TIMES_OF_TEN)
    assert net.labels == pytest.approx(expected, abs=0.02)
    outputs = torch.tensor(TRAJECTORIES[steps], dtype=dtype)
    torch.testing.assert_close(x.flatten(), outputs, rtol=0, atol=1e-4)


# --- groups and grids ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "steps, expected",
    [
        (1, [1]),
        (2, [2]),
        (3, [2, 1]),
        (4, [3, 1]),
        (5, [3, 2]),
        (6, [3, 2, 1]),
        (10, [3, 3, 3, 1]),
        (50, [3] * 16 + [2]),
    ],
)
def test_orders(steps, expected):
    assert orders(steps) == expected


def test_orders_spend_every_call():
    for steps in range(1, 200):
        assert sum(orders(steps)) == steps and len(orders(steps)) == steps // 3 + 1


@pytest.mark.parametrize("steps", [0, -3])
@pytest.mark.parametrize("make", [orders, dpmpp_3s, dpm_fast, lambda n: fast(n, Cosine())])
def test_at_least_one_step(make, steps):
    with pytest.raises(ConfigError, match=f"got {steps}: write steps=1"):
        make(steps)


def test_uniform_to_an_end():
    assert uniform(4, end=0.2) == pytest.approx((1.0, 0.8, 0.6, 0.4, 0.2), abs=1e-15)
    assert uniform(2, start=0.8, end=0.4) == pytest.approx((0.8, 0.6, 0.4), abs=1e-15)
    for n in (1, 3, 7, 10, 49, 250):
        assert (uniform(n, end=1e-3)[0], uniform(n, end=1e-3)[-1]) == (1.0, 1e-3)


@every_schedule
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 6, 11])
def test_fast_grid(schedule, steps):
    """Groups equal in log-SNR, each divided equally by its order; both ends exact."""
    times = fast(steps, schedule, start=0.95, end=0.01)
    assert len(times) == steps + 1 and (times[0], times[-1]) == (0.95, 0.01)
    gaps = schedule.at(torch.tensor(times)).logsnr.diff()
    ends = schedule.at(torch.tensor([0.95, 0.01])).logsnr
    outer = (ends[1] - ends[0]) / (steps // 3 + 1)
    expected = [1 / order for order in orders(steps) for _ in range(order)]
    torch.testing.assert_close(gaps / outer, torch.tensor(expected), rtol=1e-7, atol=0)


def test_fast_grid_of_the_published_models():
    times = fast(50, VPLinear())
    assert checked(times) == times and (times[0], times[-1]) == (1.0, 1e-4)
    assert SAMPLER_PRESETS["dpm-fast"].grid(50, VPLinear()) == times
    assert (
        SAMPLER_PRESETS["dpm-fast"].grid(7, SD)[-1]
        == SAMPLER_PRESETS["dpmpp-3s"].grid(7, SD)[-1]
        == 1e-3
    )
    few = BetaTable(levels=77, beta_end=0.2)
    assert (
        SAMPLER_PRESETS["dpm-fast"].grid(7, few)[-1]
        == SAMPLER_PRESETS["dpmpp-3s"].grid(7, few)[-1]
        == 1 / 77
    )
    assert SAMPLER_PRESETS["dpmpp-3s"].grid(7, VPLinear()) == uniform(7, end=1e-3)
    with pytest.raises(ConfigError, match=r"1 or 0\.0001 is infinite"):
        fast(6, RectifiedFlow())


# --- the papers' formulas -----------------------------------------------------------------------------


def plus_plus(level, h, r, x, ask, order):
    """DPM-Solver++'s update over a group: r1, r2 and the phis as its authors print them."""
    sigma_s, lv = level[0].sigma, level
    m_s = ask(x, 0)
    if order == 1:
        return lv[1].sigma / sigma_s * x - lv[1].alpha * torch.expm1(-h) * m_s
    m_1 = ask(lv[1].sigma / sigma_s * x - lv[1].alpha * torch.expm1(-r[1] * h) * m_s, 1)
    t, plain = lv[-1], lv[-1].sigma / sigma_s * x - lv[-1].alpha * torch.expm1(-h) * m_s
    if order == 2:
        return plain - 0.5 / r[1] * t.alpha * torch.expm1(-h) * (m_1 - m_s)
    phi_22, phi_2 = torch.expm1(-r[2] * h) / (r[2] * h) + 1, torch.expm1(-h) / h + 1
    x_2 = lv[2].sigma / sigma_s * x - lv[2].alpha * torch.expm1(-r[2] * h) * m_s
    m_2 = ask(x_2 + r[2] / r[1] * lv[2].alpha * phi_22 * (m_1 - m_s), 2)
    return plain + 1 / r[2] * t.alpha * phi_2 * (m_2 - m_s)


def noise_form(level, h, r, x, ask, order):
    """DPM-Solver-1, -2 and -3 (Lu et al. 2022a, Algorithms 1 and 2) over a group."""
    alpha_s, lv = level[0].alpha, level
    e_s = ask(x, 0)
    if order == 1:
        return lv[1].alpha / alpha_s * x - lv[1].sigma * torch.expm1(h) * e_s
    e_1 = ask(lv[1].alpha / alpha_s * x - lv[1].sigma * torch.expm1(r[1] * h) * e_s, 1)
    t, plain = lv[-1], lv[-1].alpha / alpha_s * x - lv[-1].sigma * torch.expm1(h) * e_s
    if order == 2:
        return plain - t.sigma / (2 * r[1]) * torch.expm1(h) * (e_1 - e_s)
    x_2 = lv[2].alpha / alpha_s * x - lv[2].sigma * torch.expm1(r[2] * h) * e_s
    phi_22, phi_2 = torch.expm1(r[2] * h) / (r[2] * h) - 1, torch.expm1(h) / h - 1
    e_2 = ask(x_2 - lv[2].sigma * r[2] / r[1] * phi_22 * (e_1 - e_s), 2)
    return plain - t.sigma / r[2] * phi_2 * (e_2 - e_s)


def as_printed(teacher, x, times, order, name):
    """One update of the papers from times[0] to times[-1], in half log-SNR."""
    level = [teacher.schedule.at(torch.tensor(t)) for t in times]
    lam = [lv.logsnr / 2 for lv in level]
    h = lam[-1] - lam[0]
    r = [(value - lam[0]) / h for value in lam]

    def ask(x, k):
        pred = teacher(x, torch.full((len(x),), times[k]))
        return pred.x0 if name == "dpmpp_3s" else pred.eps

    return (plus_plus if name == "dpmpp_3s" else noise_form)(level, h, r, x, ask, order)


@every_schedule
@every_step
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 8])
def test_any_uneven_grid_is_walked_as_printed(schedule, name, steps):
    """Every group, with r1 and r2 of the grid's own points."""
    teacher, noise = mixture_teacher(schedule), torch.randn(5, 2, generator=seeded())
    times = (0.93, 0.8, 0.62, 0.5, 0.47, 0.3, 0.21, 0.15, 0.08)[: steps + 1]
    actual = sample(teacher, noise, times, STEPS[name](steps))
    x, done = start(schedule, noise, times[0]), 0
    for order in orders(steps):
        part = times[done : done + order + 1]
        x = as_printed(teacher, x, part, order, name)
        done += order
    torch.testing.assert_close(actual, x, rtol=1e-11, atol=1e-11)


@every_schedule
@every_step
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 11])
def test_exact_where_the_data_is_one_point(schedule, name, steps):
    """With a constant x0 and eps groups of any length solve the flow exactly."""
    teacher = gaussian_teacher(schedule, mean=0.3, std=0.0)
    noise = torch.randn(5, 3, generator=seeded())
    times = uniform(steps, start=0.9, end=0.2)
    actual = sample(teacher, noise, times, STEPS[name](steps))
    level, end = (schedule.at(torch.tensor(s)) for s in (0.9, 0.2))
    eps = (start(schedule, noise, 0.9) - level.alpha * 0.3) / level.sigma
    torch.testing.assert_close(actual, end.mix(torch.tensor(0.3), eps), rtol=0, atol=1e-11)


# --- order --------------------------------------------------------------------------------------------


NOISE = torch.randn(64, 2, generator=seeded(), dtype=torch.float64)


@lru_cache
def exact(schedule):
    """Where the flow takes NOISE from t = 0.9 to 0.1."""
    return fine_flow(mixture_teacher(schedule), NOISE, 0.9, 0.1, steps=600)


def grid_of(name, schedule, steps):
    if name == "dpmpp_3s":
        return uniform(steps, start=0.9, end=0.1)
    return fast(steps, schedule, start=0.9, end=0.1)


def measured_orders(schedule, name, ns):
    errors = []
    for n in ns:
        x = sample(mixture_teacher(schedule), NOISE, grid_of(name, schedule, n), STEPS[name](n))
        errors.append((x - exact(schedule)).square().mean().sqrt().item())
    pairs = pairwise(zip(ns, errors, strict=True))
    return [log(one / other) / log(m / n) for (n, one), (m, other) in pairs]


@pytest.mark.parametrize("schedule", [Cosine(), VPLinear()], ids=named)
@every_step
def test_order_three_on_the_mixture(schedule, name):
    """Measured where n mod 3 = 2: the one step of order 2 at the end has a local error of h^3."""
    for order in measured_orders(schedule, name, (101, 203, 407)):
        assert 2.7 < order < 3.4


@pytest.mark.parametrize("schedule", [Cosine(), VPLinear()], ids=named)
@every_step
@pytest.mark.parametrize("ns", [(99, 198, 396), (100, 199, 397)])
def test_a_tail_of_order_one_costs_one_step_of_it(schedule, name, ns):
    """n mod 3 = 0 or 1 ends in one DDIM step, whose local error is h^2: the whole comes down to 2."""
    for order in measured_orders(schedule, name, ns):
        assert 1.8 < order < 2.6


@pytest.mark.parametrize("schedule", SMOOTH, ids=named)
@every_step
def test_ends_where_the_flow_ends(schedule, name):
    teacher, noise = gaussian_teacher(schedule), torch.randn(16, 2, generator=seeded())
    exact = gaussian_flow(schedule, start(schedule, noise, 0.9), 0.9, 0.1)
    x = sample(teacher, noise, grid_of(name, schedule, 62), STEPS[name](62))
    assert (x - exact).abs().max() < 2e-3


# --- the loop -----------------------------------------------------------------------------------------


@every_step
@pytest.mark.parametrize("steps", [1, 3, 4, 5, 16])
def test_calls_and_shapes(name, steps):
    """One call a step, any shape of x, and the dtype kept."""
    teacher, preset = Counted(gaussian_teacher(VPLinear())), SAMPLER_PRESETS[name.replace("_", "-")]
    noise = torch.randn(5, 1, 1, 1, generator=seeded(), dtype=torch.float32)
    x = sample(teacher, noise, preset.grid(steps, VPLinear()), preset.step(steps, VPLinear(), None))
    assert x.shape == noise.shape and x.dtype == torch.float32 and bool(x.isfinite().all())
    assert teacher.calls == steps == calls(name.replace("_", "-"), steps)


@every_step
@pytest.mark.parametrize("batch", [0, 1])
def test_no_sample_and_one(name, batch):
    times = uniform(7, start=0.9, end=0.1)
    x = sample(mixture_teacher(Cosine()), torch.ones(batch, 2), times, STEPS[name](7))
    assert x.shape == (batch, 2) and bool(x.isfinite().all())


@every_step
def test_a_step_is_a_function_of_its_history(name):
    """A user's loop, with a new step and new outputs every time, gives the same samples."""
    teacher, noise = mixture_teacher(VPLinear()), torch.randn(5, 2, generator=seeded())
    times = uniform(8, start=0.9, end=0.1)
    once = STEPS[name](8)
    expected = sample(teacher, noise, times, once)
    assert torch.equal(sample(teacher, noise, times, once), expected)  # nothing is kept in it
    x, history_seen = noise, []
    for k in range(8):
        level, to = (arriving(VPLinear(), torch.tensor(t)) for t in times[k : k + 2])
        history_seen.append((TimePoint(k, times[k], level), teacher(x, torch.full((5,), times[k]))))
        outputs = [
            ModelOutput(TimePoint(p.step, p.t, p.level), Prediction(v.x0.clone(), v.eps.clone()))
            for p, v in history_seen[-3:]
        ]
        x = STEPS[name](8)(x, outputs, TimePoint(k + 1, times[k + 1], to), None)
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-13)


@every_step
def test_clipping_moves_the_whole_group(name):
    """A clipped prediction says where its x lies, so the anchor is where sampling was."""
    teacher, noise = gaussian_teacher(Cosine()), torch.randn(5, 2, generator=seeded())
    times = uniform(5, start=0.9, end=0.1)
    free, wide, tight = (
        sample(teacher, noise, times, STEPS[name](5), clip=c) for c in (None, 99.0, 0.1)
    )
    torch.testing.assert_close(free, wide, rtol=0, atol=1e-12)
    assert tight.isfinite().all() and not torch.allclose(free, tight, atol=1e-2)


# --- refusals -----------------------------------------------------------------------------------------


@every_step
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 6])
def test_landing_on_data_is_refused(name, steps):
    with pytest.raises(ConfigError, match=f"{name} .*sigma = 0"):
        times = uniform(steps, start=0.8)
        sample(mixture_teacher(Cosine()), torch.ones(2, 2), times, STEPS[name](steps))


@every_step
@pytest.mark.parametrize("schedule", [RectifiedFlow(), BetaTable(zero_snr=True)], ids=named)
def test_a_start_without_signal_is_refused(schedule, name):
    with pytest.raises(ConfigError, match=f"{name} .*alpha = 0"):
        sample(mixture_teacher(schedule), torch.ones(2, 2), uniform(5, end=0.2), STEPS[name](5))
    times = uniform(5, start=0.9, end=0.2)
    assert (
        sample(mixture_teacher(schedule), torch.ones(2, 2), times, STEPS[name](5)).isfinite().all()
    )


@every_step
def test_a_longer_grid_than_it_was_made_for_is_refused(name):
    with pytest.raises(ConfigError, match=f"write {name}\\(len"):
        times = uniform(5, start=0.9, end=0.1)
        sample(mixture_teacher(Cosine()), torch.ones(2, 2), times, STEPS[name](4))


def ended(name, schedule, times):
    """The distance between the ends of sampling and of the flow, in spreads of the data."""
    noise = torch.tensor([[1.0]])
    x_start = start(schedule, noise, times[0])
    exact = gaussian_flow(schedule, x_start, times[0], times[-1], 0.0)
    actual = sample(gaussian_teacher(schedule, 0.0), noise, times, STEPS[name](len(times) - 1))
    return ((actual - exact).abs() / exact.abs()).item()


@pytest.mark.parametrize(
    "schedule, steps, end",
    [
        (VPLinear(), 2, 1e-4),
        (Karras(), 2, 1e-4),
        (SD, 2, 1e-3),
        (Cosine(), 2, 1e-4),
        (Cosine(), 8, 1e-4),
        (BetaTable("squaredcos_cap_v2"), 5, 1e-3),
    ],
)
def test_a_group_too_long_for_its_order_is_refused(schedule, steps, end):
    """An exact network's answers, summed over so far, end more than twice the spread away."""
    with pytest.raises(ConfigError, match="dpm_fast"):
        ended("dpm_fast", schedule, fast(steps, schedule, end=end))


def test_a_group_too_long_for_its_order_is_refused_on_a_straight_schedule():
    with pytest.raises(ConfigError, match="dpm_fast"):
        ended("dpm_fast", RectifiedFlow(), uniform(5, start=0.999, end=0.1))


@pytest.mark.parametrize("schedule", [Cosine(), VPLinear(), Karras(), SD], ids=named)
@every_step
def test_walks_that_are_not_refused_end_near_the_flow(schedule, name):
    preset, count = SAMPLER_PRESETS[name.replace("_", "-")], 0
    for steps in (1, 2, 3, 4, 5, 6, 8, 10, 20):
        try:
            off = ended(name, schedule, preset.grid(steps, schedule))
        except ConfigError:
            assert name == "dpm_fast" and steps in (2, 5, 6, 8)
            continue
        count += 1
        assert off < (2 if steps < 10 else 0.6), steps
    assert count >= 5
