"""From eps to v: the teacher where it can be read, the data where it cannot, refusals."""

import pytest
import torch

from halfstep.batch import Batch, Cond
from halfstep.diffusion.analytic import gaussian_teacher, Mixture, mixture_teacher
from halfstep.diffusion.denoiser import Denoiser, level_of, NetTime
from halfstep.diffusion.loss_weighting import constant, snr, snr_plus_one, WEIGHTINGS
from halfstep.diffusion.prediction import Eps, V, X0, X0AndEps
from halfstep.diffusion.schedules import BetaTable, Cosine, Karras, RectifiedFlow, VPLinear
from halfstep.errors import ConfigError
from halfstep.methods import DenoiserOnly, Progressive, Reparameterise
from halfstep.methods.diffusion.reparameterise import Match
from halfstep.rng import Draw
from tests.support.denoisers import Counted, named, seeded, Wobbly, wobbly_teacher

pytestmark = pytest.mark.usefixtures("float64")


def draw_of(seed, batch):
    return Draw.all(seeded(seed), batch)


class Watched:
    def __init__(self, denoiser):
        self.denoiser = denoiser

    def __call__(self, x_t, t, cond=None):
        self.x_t, self.t, self.cond = x_t, t, cond
        return self.denoiser(x_t, t, cond)


SHIFTED = BetaTable(levels=50, beta_end=0.4)
MOVES = [
    (Cosine(), Cosine(), None),
    (VPLinear(), VPLinear(), None),
    (BetaTable(), BetaTable(zero_snr=True), 1000),
    (SHIFTED, BetaTable(levels=50, beta_end=0.4, zero_snr=True), 50),
    (SHIFTED, SHIFTED, 50),
    (RectifiedFlow(), RectifiedFlow(), None),
    (Karras(), Karras(), None),
]


@pytest.mark.parametrize("old, new, levels", MOVES, ids=lambda v: named(v))
def test_target_by_hand(old, new, levels):
    """A student of nothing: its loss is the weighed target, the teacher's where SNR >= 0.01."""
    n = 400
    teacher = wobbly_teacher(old, Eps())
    x0 = torch.rand(n, 3, 4, generator=seeded(1)) * 2 - 1
    student = Watched(wobbly_teacher(new, V()))
    loss = Match(teacher, new, constant, levels)(student, Batch(x0), draw_of(5, n))
    x_t, t, level = student.x_t, student.t, level_of(new, student.t, x0)
    ratio = new.at(t).logsnr.exp()
    blind = ratio < 0.01
    assert 0 < blind.sum() < n
    if new.at(torch.tensor(1.0)).alpha == 0 and levels == 50:
        assert bool((t == 1).any())  # where no teacher can be asked
    # The teacher at the same ratio of signal to noise, found by bisection and not by `time`.
    low, high = torch.full_like(t, 1 / (levels or 1e9)), torch.ones_like(t)
    for _ in range(60):
        middle = (low + high) / 2
        high, low = (
            torch.where(old.at(middle).logsnr < ratio.log(), middle, high),
            torch.where(old.at(middle).logsnr < ratio.log(), low, middle),
        )
    teacher_x0 = teacher(x_t, high).x0
    expected = torch.where(blind.reshape(-1, 1, 1), x0, teacher_x0)
    actual = student.denoiser(x_t, t).x0
    torch.testing.assert_close(
        loss, (actual - expected).square().mean((1, 2)), rtol=1e-5, atol=1e-8
    )
    eps = ((x_t - level.alpha * x0) / level.sigma).flatten()
    assert abs(eps.std() - 1) < 0.1


@pytest.mark.parametrize("old, new, levels", MOVES, ids=lambda v: named(v))
def test_the_exact_v_teacher_has_no_loss_where_the_eps_teacher_is_readable(old, new, levels):
    """The best denoiser depends on x and the ratio alone, so moving the schedule changes nothing."""
    n, data = 300, Mixture()
    cond = Cond(label=torch.randint(4, (n,), generator=seeded()))
    batch = Batch(data.draw(n, seeded(1)), cond)
    student = Watched(mixture_teacher(new, data, V()))
    match = Match(mixture_teacher(old, data, Eps()), new, snr_plus_one, levels)
    loss = match(student, batch, draw_of(5, n))
    readable = new.at(student.t).logsnr.exp() >= 0.01
    assert 0 < readable.sum() < n and student.cond is cond
    assert loss[readable].max() < 1e-12 * 1e4  # the ratio of signal to noise goes to 1e4 and beyond
    assert loss[~readable].min() > 1e-3 * 0.01 and bool(loss.isfinite().all())


@pytest.mark.parametrize("old, new, levels", MOVES, ids=lambda v: named(v))
def test_dropped_labels_have_the_teachers_null_prediction_as_their_target(old, new, levels):
    """Null 3 is the mixture without a label: the exact v teacher has no loss there either."""
    n, data, null = 400, Mixture(), 3
    label = torch.randint(3, (n,), generator=seeded())
    student = Watched(mixture_teacher(new, data, V()))
    teacher = Watched(mixture_teacher(old, data, Eps()))
    teacher.schedule = old
    match = Match(teacher, new, snr_plus_one, levels, drop=0.3, null=null)
    batch = Batch(data.draw(n, seeded(1)), Cond(label=label))
    loss = match(student, batch, draw_of(5, n))
    seen = student.cond.label
    assert torch.equal(seen, teacher.cond.label)
    dropped = seen == null
    assert torch.equal(seen[~dropped], label[~dropped]) and 0.2 < dropped.double().mean() < 0.4
    readable = new.at(student.t).logsnr.exp() >= 0.01
    assert loss[readable].max() < 1e-12 * 1e4
    blind = dropped & ~readable  # the data, as in training
    guess = student.denoiser(student.x_t, student.t, student.cond)
    level = level_of(new, student.t, batch.x0)
    target = torch.where(blind[:, None], batch.x0, guess.x0)
    eps = torch.where(
        blind[:, None], (student.x_t - level.alpha * batch.x0) / level.sigma, guess.eps
    )
    expected = (target - guess.x0).square().mean(1) + (eps - guess.eps).square().mean(1)
    assert blind.any()
    torch.testing.assert_close(loss[blind], expected[blind], rtol=1e-6, atol=1e-9)


def test_the_share_of_dropped_labels():
    labelled = DenoiserOnly(mixture_teacher(Cosine(), Mixture(), Eps()), 3)
    for given, share in ((None, 0.1), (0.0, 0.0), (0.5, 0.5)):
        [stage] = Reparameterise(drop_labels=given).stages(labelled)
        assert (stage.objective.drop, stage.objective.null) == (share, 3)
    plain = DenoiserOnly(labelled.denoiser)
    [stage] = Reparameterise().stages(plain)
    assert (stage.objective.drop, stage.objective.null) == (0.0, None)
    with pytest.raises(ConfigError, match="null class"):
        Reparameterise(drop_labels=0.1).check(plain)
    Reparameterise(drop_labels=0.0).check(plain)


def test_at_pure_noise_the_target_is_the_data():
    """Zero terminal SNR, t = 1: the loss of the mean of the data is the variance of the data."""
    n = 4000
    old, new = BetaTable(levels=4, beta_end=0.9), BetaTable(levels=4, beta_end=0.9, zero_snr=True)
    batch = Batch(0.3 + 0.5 * torch.randn(n, 1, generator=seeded(1)))
    student = Watched(gaussian_teacher(new))
    match = Match(gaussian_teacher(old, parameterisation=Eps()), new, constant, 4)
    loss = match(student, batch, draw_of(2, n))[student.t == 1]
    assert len(loss) > 900
    assert abs(loss.mean() - 0.25) < 4 * 0.25 * (2 / len(loss)) ** 0.5
    exact = (0.3 - batch.x0[student.t == 1, 0]).square()
    torch.testing.assert_close(loss, exact, rtol=1e-10, atol=1e-12)


def test_the_eps_target_at_pure_noise_is_the_noise():
    """The snr weight sees the eps error alone, and x_t is the noise where alpha = 0."""
    new = BetaTable(levels=2, beta_end=0.9, zero_snr=True)
    student = Watched(wobbly_teacher(new, V()))
    match = Match(wobbly_teacher(BetaTable(levels=2, beta_end=0.9), Eps()), new, snr, 2)
    x0 = torch.rand(40, 3, generator=seeded(1))
    loss = match(student, Batch(x0), draw_of(2, 40))
    at_noise = student.t == 1
    assert 0 < at_noise.sum() < 40
    guess = student.denoiser(student.x_t, student.t).eps
    expected = (guess - student.x_t).square().mean(1)
    torch.testing.assert_close(loss[at_noise], expected[at_noise], rtol=1e-12, atol=1e-14)


def test_the_teacher_is_asked_once_and_never_differentiated():
    inner = wobbly_teacher(Cosine(), Eps())
    teacher, student = Counted(inner), wobbly_teacher(Cosine(), V())
    match = Match(teacher, Cosine(), snr_plus_one)
    assert match.forwards == 4
    match(student, Batch(torch.ones(5, 3)), draw_of(0, 5)).mean().backward()
    assert teacher.calls == 1 and inner.net.gain.grad is None
    assert student.net.gain.grad.abs() > 0


def test_micro_batches_have_the_losses_of_the_batch():
    teacher, student = wobbly_teacher(Cosine(), Eps()), wobbly_teacher(Cosine(), V())
    batch = Batch(torch.randn(5, 3, 4, generator=seeded()), Cond(torch.arange(5)))
    match = Match(teacher, Cosine(), snr_plus_one, drop=0.5, null=9)
    whole = match(student, batch, draw_of(4, 5))
    for a, b in ((0, 2), (2, 5)):
        part = match(student, batch[a:b], Draw(seeded(4), 5, slice(a, b)))
        torch.testing.assert_close(part, whole[a:b], rtol=1e-12, atol=0)


# --- the method ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("reads", [Eps(), X0(), V()], ids=named)
def test_stage(reads):
    time = NetTime(scale=7.0, offset=2.0)
    teacher = Denoiser(Wobbly(), Cosine(), reads, time=time, autocast=torch.bfloat16)
    [stage] = Reparameterise(updates=12, weighting="constant").stages(DenoiserOnly(teacher))
    student = stage.student
    assert (stage.name, stage.updates, stage.times) == ("v-teacher", 12, ())
    assert student.parameterisation == V() and student.schedule == Cosine()
    assert student.time == time and student.autocast == torch.bfloat16
    assert torch.equal(student.net.gain, teacher.net.gain)
    assert student.net.gain is not teacher.net.gain
    assert student.net.gain.requires_grad and student.training
    assert not teacher.net.gain.requires_grad and not teacher.training
    assert stage.objective == Match(teacher, Cosine(), WEIGHTINGS["constant"], None)


def test_stage_on_a_table():
    teacher = wobbly_teacher(BetaTable(levels=40), Eps())
    [stage] = Reparameterise().stages(DenoiserOnly(teacher))
    assert stage.student.schedule == BetaTable(levels=40) and stage.objective.levels == 40
    [stage] = Reparameterise(zero_snr=True).stages(DenoiserOnly(teacher))
    expected = BetaTable(levels=40, zero_snr=True)
    assert stage.student.schedule == stage.objective.schedule == expected
    assert stage.objective.teacher is teacher and teacher.schedule == BetaTable(levels=40)
    next(Progressive(start=2).stages(DenoiserOnly(stage.student)))


def test_training_moves_the_student_to_the_teacher():
    """A v student started from an eps network learns to say in v what the teacher said in eps."""
    teacher = gaussian_teacher(Cosine(), parameterisation=Eps())

    class Line(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.ab = torch.nn.Parameter(torch.zeros(5, 2))

        def forward(self, x, t, cond=None):
            a, b = self.ab[(4 * t).round().long()].unbind(1)
            return a[:, None] * x + b[:, None]

    student = Denoiser(Line(), Cosine(), V(), time=NetTime(scale=1.0))
    match = Match(teacher, Cosine(), snr_plus_one, levels=4)
    optimiser, rng = torch.optim.Adam(student.parameters()), seeded()
    for k in range(300):
        optimiser.param_groups[0]["lr"] = 0.05 * (1 - k / 300)
        batch = Batch(0.3 + 0.5 * torch.randn(256, 2, generator=rng))
        optimiser.zero_grad()
        match(student, batch, Draw.all(rng, 256)).mean().backward()
        optimiser.step()
    x, t = torch.randn(4, 2, generator=seeded(3)), torch.arange(1, 5) / 4
    actual, expected = student(x, t).x0.detach(), teacher(x, t.clamp(max=0.9)).x0
    torch.testing.assert_close(actual[:3], expected[:3], rtol=0, atol=2e-3)
    torch.testing.assert_close(actual[3], torch.full((2,), 0.3), rtol=0, atol=0.1)


def test_refuses_two_outputs():
    with pytest.raises(ConfigError, match="both x0 and eps"):
        Reparameterise().check(DenoiserOnly(wobbly_teacher(Cosine(), X0AndEps())))


def test_refuses_zero_snr_without_a_table():
    with pytest.raises(ConfigError, match="zero_snr"):
        Reparameterise(zero_snr=True).check(DenoiserOnly(wobbly_teacher(Cosine(), Eps())))


def test_refuses_an_unknown_weighting():
    with pytest.raises(ConfigError, match="no weighting 'snr-1'"):
        Reparameterise(weighting="snr-1")
