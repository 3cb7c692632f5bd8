"""The analytic teachers are exact: against the score by autograd, against moments, against each other."""

import pytest
import torch

from halfstep.batch import Cond
from halfstep.diffusion.analytic import gaussian_flow, gaussian_teacher, Mixture, mixture_teacher
from halfstep.diffusion.prediction import Eps
from halfstep.diffusion.schedules import Cosine, Karras, RectifiedFlow
from tests.support.denoisers import named, READS, SCHEDULES, seeded

pytestmark = pytest.mark.usefixtures("float64")
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=named)
ODD = Mixture(means=((0.2,) * 12, (-0.5,) * 12), stds=(0.3, 0.1), weights=(0.25, 0.75))


def log_density(data, x, level, components):
    """log p(x_t), written out: x flattened to [B, D]."""
    parts = []
    for mean, std, weight in zip(data.means, data.stds, data.weights, strict=True):
        normal = torch.distributions.Normal(
            level.alpha * torch.tensor(mean), ((level.alpha * std) ** 2 + level.sigma**2).sqrt()
        )
        parts.append(torch.tensor(weight).log() + normal.log_prob(x).sum(1))
    return torch.stack([parts[k] for k in components]).logsumexp(0)


@every_schedule
@pytest.mark.parametrize("reads", READS, ids=named)
@pytest.mark.parametrize("label", [None, 0, 1, 2])
def test_mixture_teacher_is_the_score(schedule, reads, label):
    """eps = -sigma * gradient of log p(x_t), on images of an ugly shape; label 2 means all."""
    teacher = mixture_teacher(schedule, ODD, reads)
    x, t = torch.randn(5, 2, 3, 2, generator=seeded()), torch.linspace(0.15, 0.85, 5)
    flat = x.flatten(1).requires_grad_(True)
    level = schedule.at(t[:, None])
    components = (0, 1) if label in (None, 2) else (label,)
    log_p = log_density(ODD, flat, level, components).sum()
    (score,) = torch.autograd.grad(log_p, flat)
    cond = None if label is None else Cond(label=torch.full((5,), label))
    pred = teacher(x, t, cond)
    torch.testing.assert_close(pred.eps.flatten(1), -level.sigma * score, rtol=1e-8, atol=1e-9)
    shaped = teacher.level(t, x)
    torch.testing.assert_close(shaped.mix(pred.x0, pred.eps), x, rtol=0, atol=1e-11)


def test_labels_differ_within_a_batch():
    teacher, x, t = mixture_teacher(Cosine(), ODD), torch.zeros(3, 12), torch.full((3,), 0.5)
    pred = teacher(x, t, Cond(label=torch.tensor([0, 1, 2])))
    for k, label in enumerate((0, 1, None)):
        cond = None if label is None else Cond(label=torch.tensor([label]))
        alone = teacher(x[:1], t[:1], cond)
        torch.testing.assert_close(pred.x0[k], alone.x0[0], rtol=1e-12, atol=0)
    assert pred.x0[0, 0] > pred.x0[2, 0] > pred.x0[1, 0]


@pytest.mark.parametrize("schedule", [Cosine(), RectifiedFlow(), Karras()], ids=named)
def test_teachers_are_finite_at_both_ends(schedule):
    teacher = mixture_teacher(schedule)
    x = torch.randn(2, 2, generator=seeded())
    pred = teacher(x, torch.tensor([0.0, 1.0]))
    assert bool(pred.x0.isfinite().all() and pred.eps.isfinite().all())
    if schedule == RectifiedFlow():
        torch.testing.assert_close(pred.x0[0], x[0])
        mean = torch.tensor(Mixture().weights) @ torch.tensor(Mixture().means)
        torch.testing.assert_close(pred.x0[1], mean)


@every_schedule
def test_gaussian_teacher_is_the_best_linear_guess(schedule):
    """E[x0 | x_t] by regression: mean + cov / var * (x_t - alpha mean)."""
    t = torch.linspace(0.1, 0.9, 5)
    level, x = schedule.at(t[:, None]), torch.randn(5, 3, generator=seeded())
    gain = level.alpha * 0.49 / (level.alpha**2 * 0.49 + level.sigma**2)
    pred = gaussian_teacher(schedule, mean=-0.2, std=0.7)(x, t)
    torch.testing.assert_close(pred.x0, -0.2 + gain * (x + 0.2 * level.alpha))
    default = gaussian_teacher(schedule)(x, t)
    torch.testing.assert_close(default.x0, gaussian_teacher(schedule, 0.3, 0.5)(x, t).x0)


@every_schedule
def test_gaussian_flow_solves_its_equation(schedule):
    """d(x / alpha) / d(sigma / alpha) = eps, by a central difference; and it is undone backwards."""
    teacher, x = gaussian_teacher(schedule, parameterisation=Eps()), torch.tensor([[1.3], [-0.4]])
    for t in (0.2, 0.5, 0.8):
        h = 1e-4
        ahead, behind = (gaussian_flow(schedule, x, t, s) for s in (t + h, t - h))
        a, b = (schedule.at(torch.tensor(s)) for s in (t + h, t - h))
        slope = (ahead / a.alpha - behind / b.alpha) / (a.sigma / a.alpha - b.sigma / b.alpha)
        eps = teacher(x, torch.full((2,), t)).eps
        torch.testing.assert_close(slope, eps, rtol=1e-5, atol=1e-6)
        back = gaussian_flow(schedule, gaussian_flow(schedule, x, t, 0.1), 0.1, t)
        torch.testing.assert_close(back, x, rtol=1e-12, atol=1e-12)


def test_gaussian_flow_ends_in_the_data():
    """distillation-checks.md 37: exact ODE output for std 0.5 from z = 1."""
    one = gaussian_flow(Cosine(), torch.tensor(1.0), 1.0, 0.0, mean=0.0, std=0.5)
    assert one.item() == pytest.approx(0.500000002, abs=6e-10)
    x = torch.randn(9, generator=seeded())
    moved = gaussian_flow(RectifiedFlow(), x, 1.0, 0.0, mean=0.3, std=0.5)
    torch.testing.assert_close(moved, 0.3 + 0.5 * x, rtol=1e-12, atol=1e-12)


def test_data_is_what_it_says():
    n, data = 40_000, Mixture()
    x, label = data.labelled(n, seeded())
    assert x.shape == (n, 2) and x.dtype == torch.float64 and label.dtype == torch.int64
    assert torch.equal(x, data.draw(n, seeded()))
    assert data.draw(3, seeded(), torch.float32).dtype == torch.float32
    share = label.bincount(minlength=3) / n
    for k, (mean, std, weight) in enumerate(zip(data.means, data.stds, data.weights, strict=True)):
        points = x[label == k]
        assert abs(share[k] - weight) < 4 * (weight * (1 - weight) / n) ** 0.5
        assert bool(
            ((points.mean(0) - torch.tensor(mean)).abs() < 4 * std / len(points) ** 0.5).all()
        )
        assert bool(((points.std(0) / std - 1).abs() < 4 / (2 * len(points)) ** 0.5).all())
