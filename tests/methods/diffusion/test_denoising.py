"""Teacher training: the loss by hand, its gradient, times, dropped labels, refusals."""

import pytest
import torch
from torch import nn

from halfstep.batch import Batch, Cond
from halfstep.diffusion.analytic import gaussian_teacher
from halfstep.diffusion.denoiser import Denoiser, level_of, NetTime
from halfstep.diffusion.loss_weighting import (
    constant,
    min_snr,
    snr_plus_one,
    truncated_snr,
    WEIGHTINGS,
)
from halfstep.diffusion.prediction import Eps, Prediction, V, X0
from halfstep.diffusion.schedules import BetaTable, Cosine, RectifiedFlow
from halfstep.errors import ConfigError
from halfstep.methods import DenoiserOnly, Denoising
from halfstep.methods.base import errors
from halfstep.methods.diffusion.denoising import Denoise
from halfstep.methods.random_times import EDGE, random_times
from halfstep.rng import Draw
from tests.support.denoisers import named, seeded, Wobbly, wobbly_teacher

pytestmark = pytest.mark.usefixtures("float64")


def draw_of(seed, batch):
    return Draw.all(seeded(seed), batch)


class Watched:
    """A student that remembers what it was asked."""

    def __init__(self, denoiser):
        self.denoiser = denoiser

    def __call__(self, x_t, t, cond=None):
        self.x_t, self.t, self.cond = x_t, t, cond
        return self.denoiser(x_t, t, cond)


@pytest.mark.parametrize("name", WEIGHTINGS)
@pytest.mark.parametrize("schedule", [Cosine(), RectifiedFlow()], ids=named)
@pytest.mark.parametrize("shape", [(5, 3, 4, 6), (4, 2, 5, 4), (1, 3)])
def test_loss_by_hand(name, schedule, shape):
    """weight(SNR) * mean squared error of x0, from what the student was asked and answered."""
    x0 = torch.rand(shape, generator=seeded(1)) * 2 - 1
    student = Watched(wobbly_teacher(schedule, V()))
    loss = Denoise(schedule, WEIGHTINGS[name])(student, Batch(x0), draw_of(3, shape[0]))
    level = level_of(schedule, student.t, x0)
    eps = (student.x_t - level.alpha * x0) / level.sigma
    guess = student.denoiser(student.x_t, student.t)
    dims = tuple(range(1, len(shape)))
    x_err = (guess.x0 - x0).square().mean(dims)
    snr = schedule.at(student.t).logsnr.exp()
    weight = {
        "constant": torch.ones_like(snr),
        "snr": snr,
        "truncated-snr": snr.clamp(min=1),
        "snr+1": snr + 1,
        "min-snr": snr.clamp(max=5),
    }[name]
    assert loss.shape == shape[:1]
    torch.testing.assert_close(loss, weight * x_err, rtol=1e-8, atol=1e-12)
    assert eps.std(correction=0) > 0.3  # it was noised


def test_noise_is_unit_normal_and_apart_from_the_times():
    n = 20_000
    student = Watched(wobbly_teacher(Cosine(), V()))
    x0 = torch.full((n, 1), 0.4)
    Denoise(Cosine(), constant)(student, Batch(x0), draw_of(0, n))
    level = level_of(Cosine(), student.t, x0)
    eps = (student.x_t - level.alpha * x0) / level.sigma
    assert abs(eps.mean()) < 4 / n**0.5 and abs(eps.std() - 1) < 4 / (2 * n) ** 0.5
    assert abs(torch.corrcoef(torch.stack([eps[:, 0], student.t]))[0, 1]) < 4 / n**0.5


def test_errors_are_means_over_each_sample():
    a, b = torch.randn(2, 5, 3, 4, 6, generator=seeded())
    x_err, eps_err = errors(Prediction(a, b), Prediction(b, a + 2 * b))
    torch.testing.assert_close(x_err, (a - b).square().mean((1, 2, 3)))
    torch.testing.assert_close(eps_err, (a + b).square().mean((1, 2, 3)))


def test_gradient():
    student = wobbly_teacher(Cosine(), X0())
    batch, gain, h = Batch(torch.ones(5, 3)), student.net.gain, 1e-6

    def loss():
        return Denoise(Cosine(), truncated_snr)(student, batch, draw_of(2, 5)).mean()

    loss().backward()
    ends = []
    with torch.no_grad():
        for sign in (1, -1):
            gain += sign * h
            ends.append(loss())
            gain -= sign * h
    torch.testing.assert_close(gain.grad, (ends[0] - ends[1]) / (2 * h), rtol=1e-6, atol=1e-9)


def test_the_exact_denoiser_is_the_optimum():
    """Nothing near the posterior mean has a smaller loss, in every parameterisation's weight."""
    n = 20_000
    batch = Batch(0.3 + 0.5 * torch.randn(n, 1, generator=seeded(1)))
    exact = gaussian_teacher(Cosine())

    def loss(student, weighting):
        return Denoise(Cosine(), weighting, levels=20)(student, batch, draw_of(2, n)).mean()

    for weighting in (constant, min_snr):
        best = loss(exact, weighting)
        for mean, std in ((0.35, 0.5), (0.25, 0.5), (0.3, 0.55), (0.3, 0.45)):
            assert loss(gaussian_teacher(Cosine(), mean, std), weighting) > best


class PerLevel(nn.Module):
    """x0 = a x + b, one (a, b) a level."""

    def __init__(self, levels):
        super().__init__()
        self.levels, self.ab = levels, nn.Parameter(torch.zeros(levels + 1, 2))

    def forward(self, x, t, cond=None):
        a, b = self.ab[(t * self.levels).round().long()].unbind(1)
        return a[:, None] * x + b[:, None]


def test_training_reaches_the_closed_form():
    """The best affine denoiser of Gaussian data is the posterior mean: gain and offset of every level."""
    student = Denoiser(PerLevel(4), Cosine(), X0(), time=NetTime(scale=1.0))
    [stage] = Denoising(updates=400, weighting="constant", levels=4).stages(DenoiserOnly(student))
    assert stage.student is student and stage.updates == 400
    optimiser, rng = torch.optim.Adam(student.parameters()), seeded()
    for k in range(stage.updates):
        optimiser.param_groups[0]["lr"] = 0.05 * (1 - k / stage.updates)
        batch = Batch(0.3 + 0.5 * torch.randn(512, 2, generator=rng))
        optimiser.zero_grad()
        stage.objective(student, batch, Draw.all(rng, 512)).mean().backward()
        optimiser.step()
    t = torch.arange(1, 5) / 4
    x = torch.tensor([[-1.0, 0.2], [0.5, 1.4], [0.0, 1.0], [-0.7, 0.7]])
    expected = gaussian_teacher(Cosine())(x, t).x0
    torch.testing.assert_close(student(x, t).x0.detach(), expected, rtol=0, atol=0.03)


def test_micro_batches_have_the_losses_of_the_batch():
    student = wobbly_teacher(Cosine(), X0())
    cond = Cond(label=torch.arange(5))
    batch = Batch(torch.randn(5, 3, 4, generator=seeded()), cond)
    objective = Denoise(Cosine(), snr_plus_one, drop=0.5, null=9)
    watched = Watched(student)
    whole, labels = objective(watched, batch, draw_of(4, 5)), None
    labels = watched.cond.label
    for a, b in ((0, 2), (2, 5)):
        part = objective(watched, batch[a:b], Draw(seeded(4), 5, slice(a, b)))
        torch.testing.assert_close(part, whole[a:b], rtol=1e-12, atol=0)
        assert torch.equal(watched.cond.label, labels[a:b])


# --- times --------------------------------------------------------------------------------------------


def test_continuous_times_stay_off_the_ends():
    class Ends(Draw):
        def uniform(self):
            return torch.tensor([0.0, 0.5, 1 - 2.0**-53])

    t = random_times(Ends(seeded(), 3, slice(0, 3)), None)
    assert t.tolist() == [EDGE, 0.5, 1 - EDGE] and EDGE == 2.0**-24
    level = RectifiedFlow().at(t)
    assert bool(level.logsnr.isfinite().all())


def test_continuous_times_are_uniform():
    n = 20_000
    t = random_times(draw_of(0, n), None)
    assert t.dtype == torch.float64
    counts = (t * 5).long().bincount(minlength=5) / n
    assert bool(((counts - 0.2).abs() < 4 * (0.16 / n) ** 0.5).all())


@pytest.mark.parametrize("levels", [1, 3, 1000])
def test_discrete_times_are_the_levels(levels):
    n = 20_000
    t = random_times(draw_of(0, n), levels)
    index = (t * levels).round()
    torch.testing.assert_close(t, index / levels, rtol=0, atol=0)
    assert index.min() == 1 and index.max() == levels
    counts = index.long().bincount()[1:] / n
    share = 1 / levels
    assert bool(((counts - share).abs() < 5 * (share * (1 - share) / n) ** 0.5 + 1e-12).all())


@pytest.mark.parametrize(
    "levels, schedule, expected",
    [
        (0, Cosine(), None),
        (7, Cosine(), 7),
        (0, BetaTable(levels=20), 20),
        (10, BetaTable(levels=20), 10),
    ],
)
def test_which_levels(levels, schedule, expected):
    [stage] = Denoising(levels=levels).stages(DenoiserOnly(wobbly_teacher(schedule, Eps())))
    assert stage.objective.levels == expected
    assert (stage.name, stage.times, stage.updates) == ("teacher", (), 100_000)
    assert stage.objective.forwards == 3
    loss = stage.objective(stage.student, Batch(torch.ones(50, 2)), draw_of(0, 50))
    assert bool(loss.isfinite().all())


# --- dropped labels -----------------------------------------------------------------------------------


def dropped(share, seed, n, null=10, **fields):
    student = Watched(wobbly_teacher(Cosine(), V()))
    cond = Cond(label=torch.arange(n) % 10, **fields)
    Denoise(Cosine(), constant, drop=share, null=null)(
        student, Batch(torch.zeros(n, 1), cond), draw_of(seed, n)
    )
    return cond, student.cond


@pytest.mark.parametrize("share", [0.1, 0.6])
def test_share_of_dropped_labels(share):
    n = 20_000
    cond, dropped_cond = dropped(share, 0, n)
    is_null = dropped_cond.label == 10
    assert abs(is_null.double().mean() - share) < 4 * (share * (1 - share) / n) ** 0.5
    assert torch.equal(dropped_cond.label[~is_null], cond.label[~is_null])
    assert torch.equal(dropped_cond.label, dropped(share, 0, n)[1].label)
    assert not torch.equal(dropped_cond.label, dropped(share, 1, n)[1].label)


def test_all_and_none_dropped_and_nothing_else():
    extra = {"encoder_hidden_states": torch.ones(6, 2, 3), "guidance_scale": torch.arange(6.0)}
    cond, dropped_cond = dropped(1.0, 0, 6, **extra)
    assert dropped_cond.label.tolist() == [10] * 6
    assert (
        dropped_cond.encoder_hidden_states is cond.encoder_hidden_states
        and dropped_cond.guidance_scale is cond.guidance_scale
    )
    cond, dropped_cond = dropped(0.0, 0, 6, **extra)
    assert dropped_cond is cond


@pytest.mark.parametrize("cond", [None, Cond(), Cond(guidance_scale=torch.ones(4))])
def test_nothing_to_drop(cond):
    student = Watched(wobbly_teacher(Cosine(), V()))
    batch = Batch(torch.zeros(4, 1), cond)
    Denoise(Cosine(), constant, drop=0.5, null=3)(student, batch, draw_of(0, 4))
    assert student.cond is cond


def test_dropping_needs_a_null_label():
    with pytest.raises(ConfigError, match="drop_labels needs"):
        Denoising(drop_labels=0.1).check(DenoiserOnly(wobbly_teacher(Cosine(), V())))
    [stage] = Denoising(drop_labels=0.1).stages(
        DenoiserOnly(wobbly_teacher(Cosine(), V()), unconditional=0)
    )
    assert (stage.objective.drop, stage.objective.null) == (0.1, 0)


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_refuses_a_share_that_is_none(share):
    with pytest.raises(ConfigError, match="drop_labels"):
        Denoising(drop_labels=share)
    assert Denoising(drop_labels=1).drop_labels == 1


def test_refuses_an_unknown_weighting():
    with pytest.raises(ConfigError, match="no weighting 'SNR"):
        Denoising(weighting="SNR+1")
    for name in WEIGHTINGS:
        [stage] = Denoising(weighting=name).stages(DenoiserOnly(wobbly_teacher(Cosine(), V())))
        assert stage.objective.weighting is WEIGHTINGS[name]


def test_the_student_may_be_wrapped():
    """It is called and never asked for its schedule: as under DDP."""

    class Wrapped(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.hidden = [inner]

        def forward(self, *args):
            return self.hidden[0](*args)

    inner = Denoiser(Wobbly(), Cosine(), V())
    batch = Batch(torch.ones(3, 2))
    objective = Denoise(Cosine(), constant)
    one, other = (objective(s, batch, draw_of(0, 3)) for s in (inner, Wrapped(inner)))
    assert torch.equal(one, other)


def test_eps_is_not_trained_where_it_says_nothing():
    """A zero-terminal-SNR table has t = 1 among its times, a straight schedule only if asked to."""
    blind = Denoiser(Wobbly(), BetaTable(zero_snr=True), Eps())
    with pytest.raises(ConfigError, match="write predicts='v'"):
        Denoising().check(DenoiserOnly(blind))
    next(Denoising().stages(DenoiserOnly(Denoiser(Wobbly(), BetaTable(zero_snr=True), V()))))
    next(Denoising().stages(DenoiserOnly(Denoiser(Wobbly(), RectifiedFlow(), Eps()))))
    with pytest.raises(ConfigError, match="write predicts='v'"):
        Denoising(levels=10).check(DenoiserOnly(Denoiser(Wobbly(), RectifiedFlow(), Eps())))
