"""Parameterisations: the conversions of the official code, exact round trips, refusals at the ends."""

import pytest
import torch
from hypothesis import given, settings, strategies as st

from halfstep.diffusion.prediction import (
    Eps,
    PARAMETERISATIONS,
    Prediction,
    V,
    Velocity,
    X0,
    X0AndEps,
)
from halfstep.diffusion.schedules import BetaTable, Cosine, Karras, Level, RectifiedFlow
from halfstep.errors import ConfigError
from tests.support.denoisers import named, READS, SCHEDULES, seeded

pytestmark = pytest.mark.usefixtures("float64")
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=named)
every_reading = pytest.mark.parametrize("reads", READS, ids=named)


def number(value):
    return torch.tensor([[value]], dtype=torch.float64)


def at(t):
    return Cosine().at(number(t))


@pytest.mark.parametrize(
    "t, x_of_eps, eps_of_x, x_of_v, v_of_x",
    [
        (0.3, 0.459258647, 0.512548661, 0.627101812, 0.320477971),
        (0.75, 0.823679653, 0.416929142, 0.560900540, -0.117600635),
    ],
)
def test_conversions(t, x_of_eps, eps_of_x, x_of_v, v_of_x):
    """distillation-checks.md 10 and 11: z = 0.5."""
    z, level = number(0.5), at(t)
    assert Eps().decode(number(0.2), z, level).x0.item() == pytest.approx(x_of_eps, abs=6e-10)
    assert X0().decode(number(0.3), z, level).eps.item() == pytest.approx(eps_of_x, abs=6e-10)
    assert V().decode(number(-0.4), z, level).x0.item() == pytest.approx(x_of_v, abs=6e-10)
    pred = X0().decode(number(0.3), z, level)
    assert V().encode(pred, level).item() == pytest.approx(v_of_x, abs=6e-10)


def test_eps_blows_up_at_the_noisy_end():
    """distillation-checks.md 12."""
    z, level = number(0.5), at(1.0)
    assert Eps().decode(number(0.2), z, level).x0.item() == pytest.approx(6607.939750, rel=1e-9)
    assert X0().decode(number(0.3), z, level).eps.item() == pytest.approx(0.499986381, abs=6e-10)


@pytest.mark.parametrize(
    "t, merged", [(0.1, 0.470277611), (0.3, 0.426431925), (0.75, 0.376699516), (1.0, 0.300013619)]
)
def test_both_merges(t, merged):
    """distillation-checks.md 13: o_x = 0.3, o_eps = 0.2, z = 0.5."""
    out, z = torch.tensor([[0.3, 0.2]]), number(0.5)
    pred = X0AndEps().decode(out, z, at(t))
    assert pred.x0.item() == pytest.approx(merged, abs=6e-10)
    assert at(t).mix(pred.x0, pred.eps).item() == pytest.approx(0.5, rel=1e-12)


@every_schedule
def test_both_is_the_weighted_mean_of_its_halves(schedule):
    """sigma^2 and alpha^2 weigh the two readings of x0, on every schedule; channels are dimension 1."""
    x, o_x, o_eps = torch.randn(3, 5, 3, 4, 6, generator=seeded())
    level = schedule.at(torch.linspace(0.05, 0.95, 5).reshape(-1, 1, 1, 1))
    pred = X0AndEps().decode(torch.cat([o_x, o_eps], 1), x, level)
    a2, s2 = level.alpha**2, level.sigma**2
    expected = (s2 * o_x + a2 * (x - level.sigma * o_eps) / level.alpha) / (a2 + s2)
    torch.testing.assert_close(pred.x0, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(level.mix(pred.x0, pred.eps), x, rtol=1e-12, atol=1e-11)


def test_clipping_recomputes_eps():
    """distillation-checks.md 14."""
    z, level = number(0.5), at(0.75)
    free = Prediction.from_x0(number(1.4), z, level)
    pred = free.clipped(z, level)
    assert pred.x0.item() == 1.0
    assert pred.eps.item() == pytest.approx(0.126961032, abs=6e-10)
    assert V().encode(pred, level).item() == pytest.approx(-0.875282299, abs=6e-10)
    assert free.eps.item() == pytest.approx(-0.038735031, abs=6e-10)
    assert free.clipped(z, level, 2.0).x0.item() == 1.4
    assert Prediction.from_x0(number(-1.4), z, level).clipped(z, level, 0.5).x0.item() == -0.5


@every_schedule
@every_reading
@settings(max_examples=25)
@given(t=st.floats(0.001, 0.999))
def test_decode_inverts_encode(schedule, reads, t):
    x0, eps = torch.randn(2, 5, 3, 4, 6, generator=seeded())
    level = schedule.at(torch.full((5, 1, 1, 1), t))
    x_t = level.mix(x0, eps)
    out = reads.encode(Prediction(x0, eps), level)
    assert out.shape[1] == reads.outputs * x0.shape[1]
    pred = reads.decode(out, x_t, level)
    # Dividing by alpha or sigma costs their size in digits: an x0 output is asked for eps near data.
    torch.testing.assert_close(level.alpha * pred.x0, level.alpha * x0, rtol=0, atol=1e-13 * 80)
    torch.testing.assert_close(level.sigma * pred.eps, level.sigma * eps, rtol=0, atol=1e-13 * 80)
    loss = max(1.0, 1 / level.alpha.min().item(), 1 / level.sigma.min().item())
    torch.testing.assert_close(pred.x0, x0, rtol=0, atol=1e-13 * 80 * loss)
    torch.testing.assert_close(pred.eps, eps, rtol=0, atol=1e-13 * 80 * loss)


READABLE = {X0: "noise", Eps: "data", V: "both", Velocity: "both", X0AndEps: "both"}
CLEAN, NOISE = (1.0, 0.0), (0.0, 1.0)


@every_reading
@pytest.mark.parametrize("end, where", [(CLEAN, "data"), (NOISE, "noise")], ids=["data", "noise"])
def test_exactly_readable_ends(reads, end, where):
    """At alpha = 1, sigma = 0 and at alpha = 0, sigma = 1: exact, or refused with a reason."""
    x0, eps = torch.randn(2, 2, 3, generator=seeded())
    level = Level(*(torch.full((2, 1), v) for v in end))
    x_t, out = level.mix(x0, eps), reads.encode(Prediction(x0, eps), level)
    if READABLE[type(reads)] in (where, "both"):
        pred = reads.decode(out, x_t, level)
        torch.testing.assert_close(pred.x0, x0, rtol=0, atol=1e-15)
        torch.testing.assert_close(pred.eps, eps, rtol=0, atol=1e-15)
    else:
        advice = {
            "data": "eps at sigma = 0",
            "noise": "x0 at alpha = 0.*reparameterise",
        }[where]
        with pytest.raises(ConfigError, match=advice):
            reads.decode(out, x_t, level)


@every_reading
def test_one_unreadable_sample_is_enough(reads):
    """A batch with one sample at an end is refused whole, never half wrong."""
    level = RectifiedFlow().at(torch.tensor([0.5, 1.0, 0.0]).reshape(3, 1))
    x0, eps = torch.randn(2, 3, 4, generator=seeded())
    out = reads.encode(Prediction(x0, eps), level)
    if READABLE[type(reads)] == "both":
        pred = reads.decode(out, level.mix(x0, eps), level)
        torch.testing.assert_close(pred.x0, x0, rtol=0, atol=1e-15)
    else:
        with pytest.raises(ConfigError, match="does not determine"):
            reads.decode(out, level.mix(x0, eps), level)


def test_real_schedules_at_their_ends():
    """Cosine and Karras never touch the ends; a table with zero terminal SNR does at t = 1."""
    x = torch.randn(2, 3, generator=seeded())
    ends = torch.tensor([[0.0], [1.0]])
    for reads in READS[:4]:
        for schedule in (Cosine(), Karras()):
            pred = reads.decode(x, x, schedule.at(ends))
            assert bool(pred.x0.isfinite().all() and pred.eps.isfinite().all())
    blind = BetaTable(zero_snr=True).at(torch.ones(2, 1))
    with pytest.raises(ConfigError, match="alpha = 0"):
        Eps().decode(x, x, blind)
    assert torch.equal(V().decode(x, x, blind).x0, -x)


def test_velocity_is_the_slope_of_the_straight_path():
    """x(t + h) - x(t) = h * velocity on the straight schedule (Liu et al. 2023)."""
    x0, eps = torch.randn(2, 3, 4, generator=seeded())
    a, b = (RectifiedFlow().at(torch.tensor(t)) for t in (0.3, 0.31))
    slope = (b.mix(x0, eps) - a.mix(x0, eps)) / 0.01
    out = Velocity().encode(Prediction(x0, eps), a)
    torch.testing.assert_close(out, slope, rtol=0, atol=1e-12)


def test_v_is_the_derivative_along_the_angle():
    """On a circle alpha = cos, sigma = sin, v = d x_t / d angle (Salimans & Ho 2022, appendix D)."""
    x0, eps = torch.randn(2, 3, 4, generator=seeded())
    level, h = Cosine().at(torch.tensor(0.3)), 1e-6
    ahead, behind = (Cosine().at(torch.tensor(0.3 + k * h / Cosine().a)) for k in (1, -1))
    slope = (ahead.mix(x0, eps) - behind.mix(x0, eps)) / (2 * h)
    out = V().encode(Prediction(x0, eps), level)
    torch.testing.assert_close(out, slope, rtol=0, atol=1e-9)


def test_toward():
    """distillation-checks.md 40: w = 2 is scale 3, the same in x0, eps and v."""
    z, level = number(0.5), at(0.3)
    null, label = (Prediction.from_x0(number(x), z, level) for x in (0.1, 0.4))
    pred = null.toward(label, 3.0)
    assert pred.x0.item() == pytest.approx(1.0, rel=1e-12)
    assert pred.eps.item() == pytest.approx(-0.861217018, abs=6e-10)
    assert V().encode(pred, level).item() == pytest.approx(-1.221349562, abs=6e-10)
    assert null.toward(label, 0.0) == null and null.toward(label, 1.0).x0.item() == 0.4
    per_sample = null.toward(label, torch.tensor([[0.0], [1.0], [3.0]])).x0
    torch.testing.assert_close(per_sample, torch.tensor([[0.1], [0.4], [1.0]]))


def test_blindness_is_where_decoding_is_refused():
    """`blind_to_data` says that the target for x0 at SNR 0 is lost."""
    assert [reads.blind_to_data for reads in READS] == [False, True, False, False, False]
    assert [type(p) for p in PARAMETERISATIONS.values()] == [X0, Eps, V, Velocity, X0AndEps]
    assert list(PARAMETERISATIONS) == ["x0", "eps", "v", "velocity", "x0-and-eps"]


@every_reading
def test_dtype_is_kept(reads):
    x = torch.randn(2, 3, generator=seeded(), dtype=torch.float32)
    level = Cosine().at(torch.full((2, 1), 0.4, dtype=torch.float32))
    pred = reads.decode(torch.cat([x] * reads.outputs, 1), x, level)
    assert pred.x0.dtype == pred.eps.dtype == torch.float32
    assert reads.encode(pred, level).dtype == torch.float32
