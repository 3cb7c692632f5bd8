"""Schedules: the numbers of the official code, inverses, ends, diffusers' tables, refusals."""

from math import atan, cos, inf, log, pi, sin, sqrt, tan

import pytest
import torch
from hypothesis import given, strategies as st

from halfstep.diffusion.denoiser import NetTime
from halfstep.diffusion.schedules import (
    arriving,
    BetaTable,
    Cosine,
    Karras,
    Level,
    RectifiedFlow,
    SCHEDULES,
    VPLinear,
)
from halfstep.errors import ConfigError
from tests.support.denoisers import named, SCHEDULES as ALL, seeded

NAN = float("nan")
pytestmark = pytest.mark.usefixtures("float64")
every = pytest.mark.parametrize("schedule", ALL, ids=named)


def level(schedule, t):
    return schedule.at(torch.tensor(t, dtype=torch.float64))


def test_cosine_constants():
    assert Cosine().b == pytest.approx(4.539992973129e-05, rel=1e-12)
    assert Cosine().a == pytest.approx(1.5707055269354342, rel=1e-14)


@pytest.mark.parametrize(
    "t, logsnr",
    [
        (0.0, 20.0),
        (1.0, -20.0),
        (0.3, 1.348461169),
        (0.1, 3.684989987),
        (0.25, 1.762618767),
        (0.75, -1.762618767),
        (0.01, 8.301352644),
        (1 / 1024, 12.901555546),
        (1 / 8192, 16.693749699),
    ],
)
def test_cosine_logsnr(t, logsnr):
    """distillation-checks.md 2 to 6."""
    assert level(Cosine(), t).logsnr.item() == pytest.approx(logsnr, rel=1e-9)


@pytest.mark.parametrize(
    "t, alpha, sigma",
    [
        (0.3, 0.890998280, 0.454006680),
        (0.1, 0.987682658, 0.156470338),
        (0.25, 0.923870845, 0.382704404),
    ],
)
def test_cosine_levels(t, alpha, sigma):
    """distillation-checks.md 3 to 5; a pure cosine is 8e-6 away at t = 0.3."""
    at_t = level(Cosine(), t)
    assert at_t.alpha.item() == pytest.approx(alpha, rel=2e-9)
    assert at_t.sigma.item() == pytest.approx(sigma, rel=2e-9)
    assert abs(cos(pi * 0.3 / 2) - 0.890998280) > 8e-6


def test_cosine_is_symmetric_and_balanced_in_the_middle():
    t = torch.rand(50, generator=seeded())
    torch.testing.assert_close(
        Cosine().at(1 - t).logsnr, -Cosine().at(t).logsnr, rtol=1e-11, atol=1e-12
    )
    assert abs(level(Cosine(), 0.5).logsnr.item()) < 1e-12


def test_cosine_ends_are_not_zero():
    """distillation-checks.md 7."""
    data, noise = level(Cosine(), 0.0), level(Cosine(), 1.0)
    assert noise.alpha.item() == pytest.approx(4.539992972e-05, rel=1e-9)
    assert data.sigma.item() == pytest.approx(4.539992972e-05, rel=1e-9)
    assert noise.logsnr.exp().item() == pytest.approx(2.0611536e-09, rel=1e-7)
    assert data.logsnr.exp().item() == pytest.approx(4.85165195e8, rel=1e-8)


def test_cosine_with_other_ends():
    schedule = Cosine(logsnr_min=-12.0, logsnr_max=15.0)
    assert level(schedule, 0.0).logsnr.item() == pytest.approx(15.0, rel=1e-12)
    assert level(schedule, 1.0).logsnr.item() == pytest.approx(-12.0, rel=1e-12)
    b = atan(2.718281828459045 ** (-7.5))
    middle = (atan(2.718281828459045**6) - b) / 2 + b
    assert level(schedule, 0.5).logsnr.item() == pytest.approx(-2 * log(tan(middle)), abs=1e-12)


def test_vp_linear_is_the_integral_of_beta():
    """log alpha = -1/2 integral of beta; the integral by Simpson's rule, exact for a linear beta."""
    for low, high in [(0.1, 20.0), (0.3, 7.0)]:
        for t in (0.0, 0.01, 0.4, 1.0):
            beta = [low + s * (high - low) for s in (0, t / 2, t)]
            log_alpha = -0.5 * t * (beta[0] + 4 * beta[1] + beta[2]) / 6
            at_t = level(VPLinear(low, high), t)
            assert at_t.alpha.log().item() == pytest.approx(log_alpha, rel=1e-12, abs=1e-15)
            expected = sqrt(max(0.0, 1 - 2.718281828459045 ** (2 * log_alpha)))
            assert at_t.sigma.item() == pytest.approx(expected, rel=1e-9)


def test_straight_is_a_line():
    t = torch.tensor([0.0, 0.25, 1.0])
    at_t = RectifiedFlow().at(t)
    assert at_t.alpha.tolist() == [1.0, 0.75, 0.0]
    assert at_t.sigma.tolist() == [0.0, 0.25, 1.0]
    assert at_t.logsnr[[0, 2]].tolist() == [inf, -inf]


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
def test_a_shift_is_that_of_diffusers(shift):
    """sigma = s t / (1 + (s - 1) t), exact at both ends, and its inverse."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    schedule, t = RectifiedFlow(shift), torch.linspace(0, 1, 41, dtype=torch.float64)
    at_t = schedule.at(t)
    theirs = FlowMatchEulerDiscreteScheduler(num_train_timesteps=40, shift=shift).sigmas.flip(0)
    torch.testing.assert_close(at_t.sigma[1:].float(), theirs)
    torch.testing.assert_close(at_t.alpha + at_t.sigma, torch.ones_like(t))
    assert at_t.alpha[[0, -1]].tolist() == [1, 0] and at_t.sigma[[0, -1]].tolist() == [0, 1]
    torch.testing.assert_close(schedule.time(at_t.logsnr), t)
    assert NetTime("sigma", 1000.0)(t, schedule)[20] == 1000 * at_t.sigma[20]


def test_karras_is_equation_5():
    schedule, n = Karras(sigma_min=0.01, sigma_max=50.0, rho=5.0), 18
    i = torch.arange(n)
    expected = (50 ** (1 / 5) + i / (n - 1) * (0.01 ** (1 / 5) - 50 ** (1 / 5))) ** 5
    at_t = schedule.at(1 - i / (n - 1))
    torch.testing.assert_close(at_t.sigma, expected, rtol=1e-12, atol=0)
    assert at_t.alpha.tolist() == [1.0] * n
    ends = Karras().at(torch.tensor([0.0, 1.0])).sigma
    torch.testing.assert_close(ends, torch.tensor([0.002, 80.0]), rtol=1e-12, atol=0)


@every
def test_variance_preserving_says_the_truth(schedule):
    at_t = schedule.at(torch.linspace(0.01, 1, 40))
    total = at_t.alpha**2 + at_t.sigma**2
    assert bool(((total - 1).abs() < 1e-12).all()) == schedule.variance_preserving


@every
def test_logsnr_falls(schedule):
    t = torch.linspace(0.001, 1, 700)
    at_t = schedule.at(t)
    assert bool((at_t.logsnr.diff() < 0).all())
    torch.testing.assert_close(at_t.logsnr, ((at_t.alpha / at_t.sigma) ** 2).log())


@every
@given(t=st.floats(0.0005, 1.0))
def test_time_inverts_at(schedule, t):
    at_t = torch.tensor(t, dtype=torch.float64)
    assert schedule.time(schedule.at(at_t).logsnr).item() == pytest.approx(t, rel=1e-9)


@every
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-6), (torch.float64, 1e-13)])
def test_time_inverts_at_in_every_precision(schedule, dtype, tolerance):
    t = torch.tensor([[0.0005, 0.01, 0.3], [0.5, 0.97, 1.0]], dtype=dtype)
    back = schedule.time(schedule.at(t).logsnr)
    assert back.dtype == dtype and back.shape == t.shape
    torch.testing.assert_close(back, t, rtol=0, atol=tolerance)


@every
def test_at_inverts_time(schedule):
    logsnr = torch.linspace(-4, 7, 41)
    back = schedule.at(schedule.time(logsnr)).logsnr
    torch.testing.assert_close(back, logsnr, rtol=0, atol=1e-9)


@pytest.mark.parametrize("schedule", [VPLinear(), RectifiedFlow()], ids=named)
def test_time_of_clean_data_is_zero(schedule):
    assert schedule.time(torch.tensor(inf)).item() == 0


def test_time_of_pure_noise_is_one():
    assert RectifiedFlow().time(torch.tensor(-inf)).item() == 1
    assert BetaTable(zero_snr=True).time(torch.tensor(-inf)).item() == 1


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (1,), (5, 3, 1), (2, 0)])
def test_shape_and_dtype_are_kept(schedule, dtype, shape):
    t = 0.1 + 0.9 * torch.rand(shape, generator=seeded(), dtype=dtype)
    for at_t in (schedule.at(t), arriving(schedule, t)):
        assert at_t.alpha.shape == at_t.sigma.shape == t.shape
        assert at_t.alpha.dtype == at_t.sigma.dtype == dtype
    back = schedule.time(schedule.at(t).logsnr)
    assert back.shape == t.shape and back.dtype == dtype


ENDS = [
    *((Cosine, -30.0, 30.0), (Cosine, -30.0, -20.0), (Cosine, 20.0, 30.0), (Cosine, -30.0, 0.3)),
    *((VPLinear, 200.0, 200.0), (Karras, 1e-18, 1e18), (Karras, 1.0, 1e18, 1.0)),
]
"""Classes and arguments: a schedule that cannot be made fails its own test and not the others."""


@pytest.mark.parametrize("schedule", [*ALL, *ENDS], ids=str)
def test_float32_levels_are_those_of_float64(schedule):
    """Also at the ends, and never nan: signal and noise in float64 are not lost in float32."""
    if isinstance(schedule, tuple):
        kind, *ends = schedule
        schedule = kind(*ends)
    t = torch.cat([torch.linspace(0.001, 1, 333), 1 - 2.0 ** -torch.arange(8.0, 25)])
    one, other = schedule.at(t.float()), schedule.at(t.float().double())
    torch.testing.assert_close(one.alpha.double(), other.alpha, rtol=2e-5, atol=2e-7)
    torch.testing.assert_close(one.sigma.double(), other.sigma, rtol=2e-5, atol=2e-7)
    assert torch.equal(one.logsnr.isfinite(), other.logsnr.isfinite())


@pytest.mark.parametrize("low, high", [(-30.0, 30.0), (-30.0, -29.0), (29.0, 30.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_farthest_cosine_has_signal_and_noise_at_its_ends(low, high, dtype):
    """Of one to -40 float32's alpha is below 0; of one from 40 float16's sigma is 0."""
    at_t = Cosine(low, high).at(torch.tensor([0.0, 1.0], dtype=dtype))
    assert bool((at_t.alpha > 0).all()) and bool((at_t.sigma > 0).all())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "schedule", [*ALL, BetaTable(zero_snr=True), BetaTable(levels=1), RectifiedFlow()], ids=repr
)
def test_of_nan_comes_nan(schedule, dtype):
    t = torch.tensor([1.0, NAN], dtype=dtype)
    at_t = schedule.at(t)
    assert bool((at_t.alpha.isnan() | at_t.sigma.isnan())[1]) and not at_t.sigma[0].isnan()
    assert schedule.time(t).isnan().tolist() == [False, True]


@every
def test_whoever_arrives_at_zero_arrives_at_clean_data(schedule):
    t = torch.tensor([0.0, 0.4, 1.0])
    at_t, plain = arriving(schedule, t), schedule.at(t)
    assert (at_t.alpha[0].item(), at_t.sigma[0].item()) == (1.0, 0.0)
    assert torch.equal(at_t.alpha[1:], plain.alpha[1:])
    assert torch.equal(at_t.sigma[1:], plain.sigma[1:])


def test_mix():
    at_t = Level(torch.tensor(0.8), torch.tensor(0.6))
    assert at_t.mix(torch.tensor(2.0), torch.tensor(-1.0)).item() == pytest.approx(1.0)
    assert at_t.logsnr.item() == pytest.approx(2 * log(0.8 / 0.6))


def test_names():
    assert {name: kind() for name, kind in SCHEDULES.items()}["vp-linear"] == VPLinear()
    assert set(SCHEDULES) == {"cosine", "vp-linear", "rectified-flow", "karras", "beta-table"}


def test_schedules_are_values():
    assert Cosine() == Cosine() and Cosine(-15.0) != Cosine()
    assert len({BetaTable(), BetaTable(), BetaTable(zero_snr=True)}) == 2


# --- tables -----------------------------------------------------------------------------------------

BETAS = tuple(0.001 + 0.03 * sin(0.05 * k) ** 2 for k in range(37))
TABLES = [
    BetaTable("linear"),
    BetaTable("scaled_linear", beta_start=0.00085, beta_end=0.012),
    BetaTable("squaredcos_cap_v2"),
    BetaTable("linear", levels=77, beta_end=0.2),
    BetaTable("trained_betas", levels=37, betas=BETAS),
]


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("table", TABLES, ids=lambda table: f"{table.kind}-{table.levels}")
def test_table_is_that_of_diffusers(table, zero_snr):
    from dataclasses import replace

    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    scheduler = DDIMScheduler(
        num_train_timesteps=table.levels,
        beta_start=table.beta_start,
        beta_end=table.beta_end,
        beta_schedule="linear" if table.betas else table.kind,
        trained_betas=list(table.betas) or None,
        rescale_betas_zero_snr=zero_snr,
    ).alphas_cumprod.double()
    n = torch.arange(table.levels, dtype=torch.float64)
    ours = replace(table, zero_snr=zero_snr).at((n + 1) / table.levels)
    # diffusers multiplies a thousand float32 numbers.
    torch.testing.assert_close(ours.alpha**2, scheduler, rtol=1e-4, atol=2e-6)
    torch.testing.assert_close(ours.sigma**2, 1 - scheduler, rtol=1e-4, atol=2e-6)


def test_zero_terminal_snr_is_exact_at_the_end():
    """Lin et al. 2024, Algorithm 1: alpha shifted and scaled, its first entry kept, its last 0."""
    plain, zero = BetaTable(), BetaTable(zero_snr=True)
    t = torch.arange(1, 1001) / 1000
    was, now = plain.at(t), zero.at(t)
    assert (now.alpha[-1].item(), now.sigma[-1].item()) == (0.0, 1.0)
    expected = (was.alpha - was.alpha[-1]) / (was.alpha[0] - was.alpha[-1]) * was.alpha[0]
    torch.testing.assert_close(now.alpha, expected, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(now.alpha[0], was.alpha[0], rtol=1e-13, atol=0)


def test_a_table_is_interpolated_in_logsnr():
    table = BetaTable(levels=10, beta_end=0.5)
    n = torch.arange(1, 10)
    ends = table.at(n / 10).logsnr, table.at((n + 1) / 10).logsnr
    for share in (0.25, 0.7):
        at_t = table.at((n + share) / 10).logsnr
        torch.testing.assert_close(at_t, torch.lerp(*ends, share), rtol=1e-11, atol=1e-12)


def test_a_table_is_clean_at_zero():
    for table in (*TABLES, BetaTable(zero_snr=True)):
        clean = table.at(torch.tensor([0.0, 1.0]))
        assert (clean.alpha[0].item(), clean.sigma[0].item()) == (1.0, 0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("levels", [2, 3, 7, 49, 77, 1000, 1003])
def test_every_level_of_a_zero_snr_table_can_be_read(levels, dtype):
    """Rounding of t = (n + 1) / levels must not turn the last readable entry into the blind one."""
    table = BetaTable(levels=levels, zero_snr=True, beta_end=0.02 if levels > 100 else 0.3)
    n = torch.arange(levels, dtype=dtype)
    for t in ((n + 1) / levels, (n + 1) * (1 / levels)):
        at_t = table.at(t.clamp(max=1))
        assert at_t.alpha[-1].item() == 0
        assert bool((at_t.alpha[:-1] > 0).all()), at_t.alpha[-3:]
        torch.testing.assert_close(
            table.time(at_t.logsnr).double(), (n.double() + 1) / levels, rtol=0, atol=1e-4 / levels
        )


def test_a_table_of_one_level():
    table = BetaTable(levels=1)
    assert table.at(torch.tensor(1.0)).alpha.item() == pytest.approx(sqrt(1 - 1e-4))
    assert table.time(table.at(torch.tensor(1.0)).logsnr).item() == 1


@pytest.mark.parametrize("t", [1e-9, 0.0001, 0.00099])
def test_a_table_refuses_times_below_its_first_level(t):
    with pytest.raises(ConfigError, match="between 0 and 1/1000"):
        BetaTable().at(torch.tensor([0.5, t]))


@pytest.mark.parametrize("t", [0.9991, 0.9999999])
def test_a_zero_snr_table_refuses_times_before_its_end(t):
    with pytest.raises(ConfigError, match="zero-terminal"):
        BetaTable(zero_snr=True).at(torch.tensor([0.5, t]))
    assert BetaTable().at(torch.tensor(t)).alpha > 0


@pytest.mark.parametrize(
    "options, advice",
    [
        ({"kind": "scaled-linear"}, "there is no beta table 'scaled-linear'.*'scaled_linear'"),
        ({"kind": "trained_betas"}, "betas are given with kind='trained_betas'"),
        ({"betas": (0.1, 0.2), "levels": 2}, "betas are given with kind='trained_betas'"),
        ({"kind": "trained_betas", "betas": (0.1, 0.2)}, "levels=1000 but 2 betas: write levels=2"),
    ],
)
def test_a_table_refuses(options, advice):
    with pytest.raises(ConfigError, match=advice):
        BetaTable(**options)


HALF = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
TABLES = [
    BetaTable("scaled_linear", 1000, 0.00085, 0.012),
    BetaTable(),
    BetaTable(levels=100, zero_snr=True),
]


@HALF
@pytest.mark.parametrize("schedule", [*ALL, *TABLES], ids=repr)
def test_levels_in_half_precision_are_those_of_double(schedule, dtype):
    """Rounded once, at the end: what is in between is computed in float32 at least."""
    t = torch.linspace(0, 1, 101, dtype=torch.float64).to(dtype)
    if getattr(schedule, "zero_snr", False):  # of 100: bfloat16's times lie between its last levels
        t = torch.tensor([0.0, 0.25, 0.5, 0.99, 1.0]).to(dtype)
        expected = schedule.at(torch.tensor([0.0, 0.25, 0.5, 0.99, 1.0], dtype=torch.float64))
    else:
        expected = schedule.at(t.double())
    actual = schedule.at(t)
    for half, double in ((actual.alpha, expected.alpha), (actual.sigma, expected.sigma)):
        assert half.dtype is dtype
        torch.testing.assert_close(half.double(), double, rtol=torch.finfo(dtype).eps, atol=2e-3)
    back = schedule.time(expected.logsnr.to(dtype))
    assert back.dtype is dtype and bool(((back >= 0) & (back <= 1)).all())


@pytest.mark.parametrize("dtype, digits", [(torch.float64, 1e-9), (torch.float32, 2e-5)])
@pytest.mark.parametrize(
    "schedule",
    [
        *ALL,
        *TABLES,
        *(
            RectifiedFlow(),
            VPLinear(0.0, 20.0),
            VPLinear(20.0, 0.0),
            VPLinear(1.0, 1.0),
            VPLinear(0, 1),
        ),
        *(
            BetaTable(zero_snr=True),
            BetaTable(levels=1),
            BetaTable("trained_betas", 3, betas=(0.1, 0.5, 1.0)),
        ),
        *(Karras(rho=1.0), Karras(1e-3, 1e3, 100.0), Cosine(-30.0, 5.0)),
    ],
    ids=repr,
)
def test_time_inverts_at_at_the_ends(schedule, dtype, digits):
    for t in (0.0, 1.0):
        at_t = schedule.at(torch.tensor(t, dtype=dtype))
        times = schedule.time(at_t.logsnr)
        assert times.dtype is dtype and times.item() == pytest.approx(t, abs=digits)
    ends = {inf: 0.0, -inf: 1.0, 1e30: 0.0, -1e30: 1.0}
    if isinstance(schedule, BetaTable):  # nothing but clean data lies before its first level
        ends[1e30] = 1 / schedule.levels
        blind = level(schedule, 1.0).alpha == 0  # and nothing but noise after the last but one
        ends[-1e30] = 1 - 1 / schedule.levels if blind else 1.0
    for logsnr, t in ends.items():
        assert schedule.time(torch.tensor(logsnr, dtype=dtype)).item() == pytest.approx(t)


def test_half_precision_reads_what_lies_between_levels_and_what_is_rounded_off_the_ends():
    steep = BetaTable(levels=20, beta_end=0.5)
    for dtype in (torch.bfloat16, torch.float64):  # 0.625 is exact: between levels 11 and 12
        alpha = steep.at(torch.tensor(0.625, dtype=dtype)).alpha.item()
        assert alpha == pytest.approx(0.3442, abs=0.001)
    first = BetaTable().at(
        torch.tensor(0.001, dtype=torch.bfloat16)
    )  # of which it makes 0.00099945
    assert first.sigma.item() == pytest.approx(0.01, rel=0.01)
    last = BetaTable(levels=50, zero_snr=True).at(
        torch.tensor(0.98, dtype=torch.bfloat16)
    )  # 0.98047
    exact = BetaTable(levels=50, zero_snr=True).at(torch.tensor(0.98))
    assert last.alpha.item() == pytest.approx(exact.alpha.item(), rel=0.01)


@pytest.mark.parametrize(
    ("made", "option"),
    [
        *((lambda v=v: Cosine(logsnr_min=v), "logsnr") for v in (20.0, 30.0, NAN, -inf, -31.0, "a")),
        *((lambda v=v: Cosine(logsnr_max=v), "logsnr") for v in (-20.0, NAN, inf, 31.0, 10**400)),
        *((lambda v=v: VPLinear(beta_min=v), "beta_min") for v in (-1.0, NAN, inf, 1e308, True)),
        *((lambda v=v: VPLinear(beta_max=v), "beta_max") for v in (-0.1, NAN, inf, 1e4)),
        (lambda: VPLinear(0.0, 0.0), "noise"),
        *((lambda v=v: Karras(sigma_min=v), "sigma") for v in (0.0, -1.0, NAN, inf, 80.0, 90.0, 1e-300)),
        *((lambda v=v: Karras(sigma_max=v), "sigma") for v in (0.002, 0.001, NAN, inf, 1e300)),
        *((lambda v=v: Karras(rho=v), "rho") for v in (0.0, -7.0, NAN, inf, 1e-3, 1e308, 1e7)),
        (lambda: Karras(1e-18, 80.0, rho=0.05), "rho"),  # whose sigma_min^20 is 0
        (lambda: Karras(1.0, 1.0 + 1e-9), "rho"),
        *((lambda v=v: BetaTable(beta_start=v), "beta") for v in (-0.01, 0.0, NAN, inf, 1.0, 1e-20)),
        *((lambda v=v: BetaTable(beta_end=v), "beta") for v in (1.5, 1.0, NAN, -0.02)),
        *((lambda v=v: BetaTable(levels=v), "levels") for v in (0, -1, 1.5, 10**12, NAN)),
        (lambda: BetaTable(levels=1, zero_snr=True), "levels"),
        (lambda: BetaTable(levels=10**6), "betas"),  # no signal is left long before the last
        *(
            (lambda v=v: BetaTable("trained_betas", 2, betas=v), "betas")
            for v in ((0.1, 2.0), (0.1, -0.1), (NAN, 0.1), (1.0, 0.1), (0.0, 0.1), (0.1, 1e-20), 0.1)
        ),
    ],
)  # fmt: skip
def test_numbers_that_are_no_schedule(made, option):
    with pytest.raises(ConfigError, match=option):
        made()


def test_a_table_that_ends_without_signal_has_no_levels_before_its_end():
    table = BetaTable("trained_betas", 4, betas=(0.1, 0.2, 0.3, 1.0))
    assert level(table, 1.0).alpha.item() == 0 and level(table, 0.75).alpha.item() > 0.7
    with pytest.raises(ConfigError, match="no level"):
        table.at(torch.tensor(0.9))


@pytest.mark.parametrize("schedule", ALL, ids=named)
def test_times_are_floating_point(schedule):
    for function in (schedule.at, schedule.time):
        with pytest.raises(ConfigError, match="floating point"):
            function(torch.tensor([0, 1]))
