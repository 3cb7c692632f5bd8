"""The encoder: from data to noise and back, its students, and what happens at t = 0."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from halfstep.batch import Batch, Cond
from halfstep.diffusion.analytic import gaussian_flow, gaussian_teacher, Mixture, mixture_teacher
from halfstep.diffusion.denoiser import Denoiser, level_of, NetTime
from halfstep.diffusion.loss_weighting import snr_plus_one
from halfstep.diffusion.prediction import Eps, V, Velocity, X0, X0AndEps
from halfstep.diffusion.samplers import encode, noise_of, sample, start
from halfstep.diffusion.schedules import BetaTable, Cosine, Karras, RectifiedFlow, VPLinear
from halfstep.diffusion.time_grids import karras, uniform
from halfstep.errors import ConfigError
from halfstep.methods import DenoiserOnly, Encoder, METHODS, Progressive, two_step_target
from halfstep.methods.diffusion.progressive import Halve
from halfstep.models import build
from halfstep.models.codec import sample_latents
from halfstep.pipeline import Pipeline
from halfstep.rng import sample_noise
from halfstep.training import distill, TrainingConfig
from tests.support.denoisers import Counted, named, SCHEDULES, seeded, wobbly_teacher
from tests.support.progress import Ledger
from tests.support.students import (
    Affine,
    Constants,
    draw_of,
    ExactStudent,
    gaussian_data,
    level_at,
    random_pipeline,
    train,
)

pytestmark = pytest.mark.usefixtures("float64")
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=named)
READS = [Eps(), V(), Velocity(), X0AndEps()]


# --- the loop -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps, expected", [(16, 0.824), (1024, 0.997)])
def test_encode_then_decode(steps, expected):
    """On Gaussian data of spread 1/2, x comes back as x times the two exact maps."""
    teacher, times, one = gaussian_teacher(Cosine(), 0.0, 0.5), uniform(steps), torch.ones(1, 1)

    def factor(t, to):  # of one DDIM step of the exact denoiser
        level_t, level_s = level_at(Cosine(), t), level_at(Cosine(), to)
        spread = 0.25 * level_t.alpha**2 + level_t.sigma**2
        x0, eps = 0.25 * level_t.alpha / spread, level_t.sigma / spread
        return x0 if to == 0 else level_s.alpha * x0 + level_s.sigma * eps

    up = torch.stack([factor(t, to) for t, to in pairwise(times[::-1])]).prod()
    down = torch.stack([factor(t, to) for t, to in pairwise(times)]).prod()
    noise = encode(teacher, one, times)
    assert noise.item() == pytest.approx(up.item(), rel=1e-12)
    back = sample(teacher, noise, times).item()
    assert back == pytest.approx((up * down).item(), rel=1e-12)
    assert back == pytest.approx(expected, abs=5e-4)


@pytest.mark.parametrize("schedule", [Cosine(), VPLinear(), RectifiedFlow(), Karras()], ids=named)
def test_many_steps_encode_as_the_exact_flow(schedule):
    top = 0.999 if schedule == RectifiedFlow() else 1.0
    x0 = 0.3 + 0.5 * torch.randn(7, 2, generator=seeded())
    teacher, times = gaussian_teacher(schedule), karras(700, schedule, start=top)
    noise = encode(teacher, x0, times)
    exact = noise_of(schedule, gaussian_flow(schedule, x0, 0.0, top), top)
    torch.testing.assert_close(noise, exact, rtol=0, atol=4e-2)
    torch.testing.assert_close(sample(teacher, noise, times), x0, rtol=0, atol=4e-2)


@every_schedule
def test_the_walk_by_hand(schedule):
    """Every level is `schedule.at`, t = 0 included, and the end is unit noise."""
    teacher, times = wobbly_teacher(schedule, V()), (0.97, 0.6, 0.25, 0.0)
    x = torch.randn(4, 2, 3, generator=seeded())
    actual = encode(teacher, x, times)
    for t, to in ((0.0, 0.25), (0.25, 0.6), (0.6, 0.97)):
        pred = teacher(x, torch.full((4,), t))
        x = level_at(schedule, to).mix(pred.x0, pred.eps)
    torch.testing.assert_close(start(schedule, actual, 0.97), x, rtol=1e-13, atol=1e-13)


def test_the_walk_asks_in_rising_order_with_the_condition():
    calls_seen, ledger = [], Ledger()

    class Spy(nn.Module):
        def forward(self, x, t, cond=None):
            calls_seen.append((t.tolist(), cond))
            return x

    cond = Cond(label=torch.tensor([1, 2, 3]))
    spy = Denoiser(Spy(), Cosine(), V(), time=NetTime(scale=1.0))
    encode(spy, torch.ones(3, 2), uniform(4), cond=cond, progress=ledger)
    assert [t for t, _ in calls_seen] == [[t] * 3 for t in (0.0, 0.25, 0.5, 0.75)]
    assert all(c is cond for _, c in calls_seen) and ledger.steps == 4


def test_calls_and_kinds():
    teacher = Counted(mixture_teacher(Cosine()))
    actual = encode(teacher, torch.zeros(0, 2), uniform(3))
    assert actual.shape == (0, 2) and teacher.calls == 3
    actual = encode(teacher, torch.ones(2, 2, dtype=torch.float32), uniform(1))
    assert actual.dtype == torch.float32 and not actual.requires_grad
    with pytest.raises(ConfigError, match="grid falls"):
        encode(teacher, torch.ones(1, 2), (0.0, 1.0))


@every_schedule
def test_noise_of_undoes_start(schedule):
    noise = torch.randn(5, 3, generator=seeded())
    for t in (1.0, 0.4):
        torch.testing.assert_close(noise_of(schedule, start(schedule, noise, t), t), noise)


@pytest.mark.parametrize("schedule", [*SCHEDULES, BetaTable(zero_snr=True)], ids=repr)
@pytest.mark.parametrize("reads", READS, ids=named)
def test_nothing_explodes_at_the_start(schedule, reads):
    """In float32, with a network that is wrong everywhere: errors of x are of the network's order."""
    x = torch.randn(6, 2, generator=seeded(), dtype=torch.float32)
    teacher = wobbly_teacher(schedule, reads)
    first = teacher(x, torch.zeros(6))
    assert bool(first.eps.isfinite().all()) and first.eps.abs().max() < 10
    torch.testing.assert_close(first.x0, x, rtol=2e-2, atol=2e-2)
    end = encode(teacher, x, tuple(0.5 * t for t in uniform(4)))
    assert start(schedule, end, 0.5).abs().max() < 10 * (1 + level_at(schedule, 0.5).sigma)


# --- the target ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "t, z, x1, x2, z_next, x0",
    [
        (0.25, 0.5, 0.3, -0.2, 0.799425435, 0.124417106),
        (0.5, 0.5, 0.3, -0.2, 0.608236171, 0.083226094),
        (0.75, 0.5, 0.3, -0.2, 0.516393944, 0.059892706),
        (0.0, 0.3, 0.3, 0.29, 0.287161578, 0.299998814),
    ],
)
def test_target(t, z, x1, x2, z_next, x0):
    """distillation-checks.md 44, N = 4."""
    level_t, mid, end = (torch.tensor([s]) for s in (t, t + 0.125, t + 0.25))
    x_t = torch.tensor([[z]])
    pred = two_step_target(Denoiser(Constants(x1, x2), Cosine(), X0()), x_t, level_t, mid, end)
    assert pred.x0.item() == pytest.approx(x0, abs=6e-10)
    landed = level_of(Cosine(), end, x_t).mix(pred.x0, pred.eps)
    assert landed.item() == pytest.approx(z_next, abs=6e-10)


@every_schedule
@pytest.mark.parametrize("reads", READS, ids=named)
@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_target_in_eps(schedule, reads, n):
    """eps~ = [(kappa_m - kappa_t) eps_1 + (kappa_e - kappa_m) eps_2] / (kappa_e - kappa_t), all the way."""
    teacher = wobbly_teacher(schedule, reads)
    rising = torch.tensor(uniform(2 * n, start=0.97)[::-1])
    t, mid, end = rising[0:-1:2], rising[1::2], rising[2::2]
    level_t, middle, level_s = (level_of(schedule, s, torch.empty(n, 1, 1)) for s in (t, mid, end))
    x = level_t.mix(*torch.randn(2, n, 2, 5, generator=seeded()))
    actual = two_step_target(teacher, x, t, mid, end)
    first = teacher(x, t)
    x_mid = middle.mix(first.x0, first.eps)
    second = teacher(x_mid, mid)
    kt, km, ke = (level.sigma / level.alpha for level in (level_t, middle, level_s))
    expected = ((km - kt) * first.eps + (ke - km) * second.eps) / (ke - kt)
    torch.testing.assert_close(actual.eps, expected, rtol=1e-9, atol=1e-10)
    two = level_s.mix(second.x0, second.eps)
    torch.testing.assert_close(level_s.mix(actual.x0, actual.eps), two, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(level_t.mix(actual.x0, actual.eps), x, rtol=1e-10, atol=1e-10)


# --- exact students -----------------------------------------------------------------------------------


@every_schedule
@pytest.mark.parametrize("reads", READS, ids=named)
def test_exact_students_encode_as_their_teacher(schedule, reads):
    """16 steps halved to 1, from t = 0 itself, with a nonlinear network as teacher."""
    teacher, times = wobbly_teacher(schedule, reads), uniform(16, start=0.98)
    x0 = torch.randn(3, 2, 5, generator=seeded())
    expected, student = encode(teacher, x0, times), teacher
    while len(times) > 2:
        student, times = ExactStudent(student, times, (-1, -2)), times[::2]
        torch.testing.assert_close(encode(student, x0, times), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("times", [uniform(16), karras(16, VPLinear())], ids=["uniform", "karras"])
def test_exact_students_to_the_very_end(times):
    teacher = mixture_teacher(VPLinear())
    x0 = Mixture().draw(9, seeded())
    expected, student = encode(teacher, x0, times), teacher
    while len(times) > 2:
        student, times = ExactStudent(student, times, (-1, -2)), times[::2]
        torch.testing.assert_close(encode(student, x0, times), expected, rtol=1e-12, atol=1e-12)


# --- the method ---------------------------------------------------------------------------------------


def test_stages():
    teacher, stages = wobbly_teacher(Cosine(), V()), []
    for stage in Encoder(start=8, stop=1, updates=(10,)).stages(DenoiserOnly(teacher)):
        assert stage.direction == "invert" and stage.objective.teacher is teacher
        assert type(stage.objective) is Halve and stage.objective.times[0] == 0
        assert stage.times == stage.objective.times[::-1][::2] and stage.times[0] == 1
        assert stage.objective.weighting is snr_plus_one
        assert not teacher.training and stage.student.training
        teacher = stage.student
        stages.append((stage.name, stage.updates))
    assert stages == [("0004-steps", 10), ("0002-steps", 20), ("0001-steps", 20)]
    assert METHODS["encoder"] is Encoder


@pytest.mark.parametrize("weighting", ["snr+1", "truncated-snr", "snr"])
def test_objective_by_hand(weighting):
    """Times {0, ..., 1 - 1/N}, x_t of the data, and the weight on what the student is off."""
    teacher, student = wobbly_teacher(Cosine(), V()), wobbly_teacher(Cosine(), Eps())
    [stage] = Encoder(start=8, stop=4, weighting=weighting).stages(DenoiserOnly(teacher))
    x0 = torch.rand((30, 3, 2), generator=seeded(1)) * 2 - 1
    loss = stage.objective(student, Batch(x0), draw_of(9, 30))
    draw = draw_of(9, 30)
    t = draw.integers(4) / 4
    assert set(t.tolist()) == {0.0, 0.25, 0.5, 0.75}
    level = level_of(Cosine(), t, x0)
    x_t = level.mix(x0, draw.normal(x0))
    target = two_step_target(teacher, x_t, t, t + 0.125, t + 0.25)
    eps_err = (student(x_t, t).eps - target.eps).square().mean((1, 2))
    x_err = eps_err / Cosine().at(t).logsnr.exp()
    expected = {
        "snr+1": x_err + eps_err,
        "truncated-snr": torch.maximum(x_err, eps_err),
        "snr": eps_err,
    }[weighting]
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-12)
    assert loss[t == 0].max() < 10


@pytest.mark.parametrize("schedule", [*SCHEDULES, BetaTable(zero_snr=True)], ids=repr)
@pytest.mark.parametrize("reads", [Eps(), V()], ids=named)
def test_losses_and_gradients_are_tame(schedule, reads):
    """float32, random networks: at t = 0 an x0 student's loss would be 22,026^2 times its error."""
    teacher, student = wobbly_teacher(schedule, V()), wobbly_teacher(schedule, reads)
    [stage] = Encoder(start=8, stop=4, weighting="snr").stages(DenoiserOnly(teacher))
    x0 = torch.rand((64, 2), generator=seeded(), dtype=torch.float32) * 2 - 1
    loss = stage.objective(student, Batch(x0), draw_of(3, 64))
    assert loss.max() < 1000
    loss.mean().backward()
    assert student.net.gain.grad.abs() < 100
    if schedule == Cosine():
        wild = stage.objective(wobbly_teacher(schedule, X0()), Batch(x0), draw_of(3, 64))
        assert wild.max() > 1e6


def test_a_trained_student_encodes_as_its_teacher():
    """8 steps to 4, an affine eps a time; the exact one is known."""
    teacher, times = gaussian_teacher(Cosine()).freeze(), uniform(8)
    rising = times[::2][::-1][:-1]
    net = Affine(rising, torch.zeros(4), torch.zeros(4))
    student = Denoiser(net, Cosine(), Eps(), time=NetTime(scale=1.0))
    x0 = 0.3 + 0.5 * torch.randn(256, 1, generator=seeded(5))
    expected = encode(teacher, x0, times)
    assert (encode(student, x0, times[::2]) - expected).abs().max() > 0.5
    [stage] = Encoder(start=8, stop=4).stages(DenoiserOnly(teacher))
    train(student, stage.objective, gaussian_data, 500, 0.05)
    torch.testing.assert_close(encode(student, x0, times[::2]), expected, rtol=0, atol=5e-3)


# --- refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "schedule, worse",
    [(Cosine(), "22,026"), (RectifiedFlow(), "inf"), (Karras(), "500"), (BetaTable(), "inf")],
    ids=["Cosine", "RectifiedFlow", "Karras", "BetaTable"],
)
def test_an_x0_teacher_is_refused(schedule, worse):
    teacher = wobbly_teacher(schedule, X0())
    with pytest.raises(ConfigError, match=f"times {worse}\\.") as refusal:
        Encoder(start=2).check(DenoiserOnly(teacher))
    assert "halfstep distill reparameterise" in str(refusal.value)
    Encoder(start=2, times=(1.0, 0.6, 0.3)).check(DenoiserOnly(teacher))
    for reads in READS:
        Encoder(start=2).check(DenoiserOnly(wobbly_teacher(schedule, reads)))


@pytest.mark.parametrize("weighting", ["constant", "min-snr"])
def test_weights_that_forget_eps_are_refused(weighting):
    with pytest.raises(ConfigError, match=r"eps error.*'snr\+1'"):
        Encoder(weighting=weighting)
    for good in ("snr+1", "truncated-snr", "snr"):
        assert Encoder(weighting=good).weighting == good


def test_clipped_targets_are_refused():
    with pytest.raises(ConfigError, match="leave target_clip out"):
        Encoder(target_clip=1.0)
    assert Progressive(weighting="constant").weighting == "constant"


def test_other_refusals_are_progressives():
    with pytest.raises(ConfigError, match="power of two"):
        Encoder(start=12, stop=4)
    with pytest.raises(ConfigError, match=r"meant 'snr\+1'"):
        Encoder(weighting="snr1")


# --- the pipeline -------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 2, 256])
def test_a_pipeline_encodes_and_decodes(batch):
    made, ledger = random_pipeline(class_names=("a", "b"), null=2), Ledger()
    x0 = Mixture().draw(5, seeded()).float()
    noise = made.encode(x0, steps=8, batch=batch, progress=ledger)
    assert noise.shape == (5, 2) and noise.dtype == torch.float32
    assert ledger.steps == 8 * -(-5 // batch)
    cond = Cond(label=torch.arange(5) % 2)
    expected = encode(made.denoiser, x0, uniform(8), cond=cond)
    torch.testing.assert_close(noise, expected, rtol=0, atol=2e-5)
    back = made.sample(5, steps=8, noise=noise, batch=batch)
    expected = sample(made.denoiser, noise, uniform(8), cond=cond)
    torch.testing.assert_close(back, expected, rtol=0, atol=2e-5)
    fine = made.sample(5, steps=400, noise=made.encode(x0, steps=400))
    assert (fine - x0).abs().mean() < 0.3 * (back - x0).abs().mean()
    other = made.sample(5, steps=8, noise=noise, labels=[1, 0, 1, 0, 1])
    assert (
        other - back
    ).abs().max() > 1e-3  # style transfer: encode as one class, decode as another


def test_encoding_takes_labels_and_guidance():
    made = random_pipeline(class_names=("a", "b"), null=2)
    x0 = torch.zeros(2, 2)
    plain = made.encode(x0, steps=2, labels=[1, 0])
    assert not torch.equal(plain, made.encode(x0, steps=2, labels=[0, 1]))
    assert not torch.equal(plain, made.encode(x0, steps=2, labels=[1, 0], guidance_scale=2.0))
    assert made.encode(torch.zeros(0, 2), steps=2).shape == (0, 2)
    assert made.encode(x0).shape == (2, 2)  # in a teacher's own 64 steps


def test_seeds_noise_is_the_noise_by_default():
    made = random_pipeline()
    noise = sample_noise(4, range(3), (2,))
    assert torch.equal(made.sample(3, seed=4, steps=2), made.sample(3, steps=2, noise=noise))
    with pytest.raises(ConfigError, match="noise of shape"):
        made.sample(3, noise=noise[:2])


def test_a_student_that_samples_is_refused_and_one_that_encodes_too():
    x0 = torch.zeros(1, 2)
    for sampler in ("ddim", "stochastic"):
        made = random_pipeline(times=(uniform(4),), sampler=sampler)
        with pytest.raises(ConfigError, match="halfstep distill encoder"):
            made.encode(x0)
    made = random_pipeline(times=(uniform(4), uniform(2)), direction="invert")
    for sampler in (None, "ddim", "stochastic"):
        with pytest.raises(ConfigError, match=r"write encode\(images\)"):
            made.sample(1, sampler=sampler)
    for steps, n in ((None, 2), (4, 4)):
        expected = encode(made.denoiser, x0.float(), uniform(n))
        torch.testing.assert_close(made.encode(x0, steps=steps), expected, rtol=0, atol=2e-5)
    with pytest.raises(ConfigError, match="it can take 2 or 4"):
        made.encode(x0, steps=3)


@pytest.mark.parametrize("steps", [0, -2])
def test_a_pipeline_refuses(steps):
    with pytest.raises(ConfigError, match="steps"):
        random_pipeline().encode(torch.zeros(1, 2), steps=steps)
    with pytest.raises(ConfigError, match="cannot encode"):
        random_pipeline(X0()).encode(torch.zeros(1, 2))
    with pytest.raises(ConfigError, match=r"got shape \[1, 3\]"):
        random_pipeline().encode(torch.zeros(1, 3))


class Halves:
    """A codec whose latents are means of 2 x 2 pixels."""

    scale, factor, channels = 3.0, 2, 1

    def moments(self, images):
        mean = torch.nn.functional.avg_pool2d(images, 2) + 0.5
        return torch.cat([mean, torch.full_like(mean, 2.0)], 1)

    def decode(self, latents):
        return (latents / self.scale - 0.5).repeat_interleave(2, 2).repeat_interleave(2, 3)


def test_latents_are_encoded_by_their_means():
    net = build("uvit", {"img_size": [2, 3], "patch_size": 1, "in_chans": 1, "embed_dim": 8,
                         "depth": 2, "num_heads": 2})  # fmt: skip
    made = Pipeline(Denoiser(net.float(), Cosine(), V()).freeze(), (1, 2, 3), codec=Halves())
    images = torch.rand(3, 1, 4, 6, generator=seeded(), dtype=torch.float32)
    moments = Halves().moments(images)
    latents = sample_latents(moments, torch.zeros_like(moments[:, :1]), 3.0)
    expected = encode(made.denoiser, latents, uniform(2))
    torch.testing.assert_close(made.encode(images, steps=2), expected, rtol=0, atol=2e-5)
    with pytest.raises(ConfigError, match=r"got shape \[3, 1, 4, 4\]"):
        made.encode(images[..., :4])


def test_a_run_makes_encoders(tmp_path):
    few = TrainingConfig(batch_size=8, save_every=2, log_every=2)
    method = Encoder(start=8, stop=2, updates=(2,))
    student = distill(random_pipeline(), "two-moons", tmp_path / "e", method=method, training=few)
    assert student.direction == "invert" and student.times == (uniform(2),)
    back = Pipeline.load(tmp_path / "e" / "stages" / "0004-steps")
    assert back.direction == "invert" and back.times == (uniform(4),)
    assert back.encode(torch.zeros(3, 2)).shape == (3, 2)
    again = Progressive(start=4, updates=(1,))
    with pytest.raises(ConfigError, match=r"direction 'invert'.*'denoise'.*distilled from"):
        distill(back, "two-moons", tmp_path / "p", method=again, training=few)
