"""Denoiser, guidance and classifier guidance: what the network sees, what comes back, what is refused."""

import pytest
import torch
from torch import nn

from halfstep.batch import Cond
from halfstep.diffusion.analytic import Mixture, mixture_teacher
from halfstep.diffusion.denoiser import Denoiser, level_of, NetTime
from halfstep.diffusion.guidance import ClassifierGuided, Guided
from halfstep.diffusion.prediction import Eps, Prediction, V, X0
from halfstep.diffusion.samplers import sample
from halfstep.diffusion.schedules import BetaTable, Cosine, RectifiedFlow
from halfstep.diffusion.time_grids import uniform
from halfstep.errors import ConfigError
from halfstep.pipeline import Pipeline
from tests.support.denoisers import named, READS, SCHEDULES, seeded, Wobbly, wobbly_teacher

pytestmark = pytest.mark.usefixtures("float64")
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=named)
every_reading = pytest.mark.parametrize("reads", READS, ids=named)

DATA = Mixture()


class Spy(nn.Module):
    """Remembers what it was called with; answers with x times the label, plus one."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x, time, cond=None):
        self.seen.append((x, time, cond))
        label = 0 if cond is None or cond.label is None else cond.label
        return torch.tanh(x * (1 + torch.as_tensor(label)).reshape(-1, *[1] * (x.ndim - 1)))


# --- one network, one schedule ------------------------------------------------------------------------


@every_schedule
@every_reading
@pytest.mark.parametrize("shape", [(5, 3, 4, 6), (4, 2, 5, 4), (3, 3, 3, 3), (1, 2, 7), (2, 6)])
def test_every_sample_has_its_own_time(schedule, reads, shape):
    """One sample alone gives what it gives in a batch; also where the batch is as wide as the image."""
    denoiser = wobbly_teacher(schedule, reads)
    x, t = torch.randn(shape, generator=seeded()), torch.linspace(0.1, 0.9, shape[0])
    pred, level = denoiser(x, t), denoiser.level(t, x)
    torch.testing.assert_close(level.mix(pred.x0, pred.eps), x, rtol=0, atol=1e-11)
    for k in range(shape[0]):
        alone = denoiser(x[k : k + 1], t[k : k + 1])
        torch.testing.assert_close(alone.x0[0], pred.x0[k], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(alone.eps[0], pred.eps[k], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(8, 1), (), (1,), (7,), (8, 3)])
def test_one_time_per_sample(shape):
    denoiser = wobbly_teacher(Cosine(), V())
    expected = rf"one time per sample: expected shape \[8\], got \{list(shape)}"
    with pytest.raises(ConfigError, match=expected.replace("]", r"\]").replace(r"\\]", r"\]")):
        denoiser(torch.randn(8, 3, 8, 8), torch.full(shape, 0.5))


def test_levels_keep_the_precision_of_t():
    """float64 times give float32 images the level of float64, and a level of their own dtype."""
    t, x = torch.tensor([1 - 1e-9, 0.3, 1e-9]), torch.zeros(3, 2, 5, dtype=torch.float32)
    level, exact = level_of(RectifiedFlow(), t, x), RectifiedFlow().at(t)
    assert level.alpha.dtype == torch.float32 and level.alpha.shape == (3, 1, 1)
    assert torch.equal(level.alpha.flatten(), exact.alpha.float())
    assert torch.equal(level.sigma.flatten(), exact.sigma.float())
    assert level.alpha[0].item() == pytest.approx(1e-9, rel=1e-6)


@pytest.mark.parametrize(
    "time, schedule, expected",
    [
        (None, Cosine(), [300.0, 500.0, 1000.0]),
        (NetTime(scale=999.0), Cosine(), [299.7, 499.5, 999.0]),
        (NetTime(scale=1000.0, offset=-1.0), BetaTable(), [299.0, 499.0, 999.0]),
        (NetTime(of="logsnr", scale=1.0), Cosine(), [1.348461169, 0.0, -20.0]),
        (NetTime(of="logsnr", scale=0.5, offset=3.0), Cosine(), [3.6742305845, 3.0, -7.0]),
        (NetTime(of="logsnr", scale=1.0), RectifiedFlow(), [1.6945957207744073, 0.0, -20.0]),
    ],
)
def test_how_the_network_wants_its_time(time, schedule, expected):
    spy = Spy()
    Denoiser(spy, schedule, V(), time=time)(torch.ones(3, 2), torch.tensor([0.3, 0.5, 1.0]))
    torch.testing.assert_close(spy.seen[0][1], torch.tensor(expected), rtol=1e-9, atol=1e-9)


def test_the_clean_end_of_the_logsnr_is_bounded_too():
    assert NetTime(of="logsnr", scale=1.0)(torch.tensor([0.0]), RectifiedFlow()).item() == 20.0


def test_the_network_sees_its_own_dtype_and_the_condition():
    spy, cond = Spy(), Cond(label=torch.tensor([2, 0, 1]))
    x = torch.ones(3, 2, dtype=torch.float32)
    pred = Denoiser(spy, Cosine(), V())(x, torch.full((3,), 0.4), cond)
    assert spy.seen[0][0].dtype == spy.seen[0][1].dtype == torch.float32
    assert spy.seen[0][2] is cond
    assert pred.x0.dtype == pred.eps.dtype == torch.float32


def test_autocast_is_for_the_network_alone():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.line, self.dtypes = nn.Linear(6, 6, dtype=torch.float32), []

        def forward(self, x, t, cond=None):
            out = self.line(x)
            self.dtypes.append(out.dtype)
            return out

    x, t = torch.randn(5, 6, generator=seeded(), dtype=torch.float32), torch.linspace(0.1, 1, 5)
    denoiser = Denoiser(Half(), Cosine(), X0(), autocast=torch.bfloat16)
    pred, level = denoiser(x, t), denoiser.level(t, x)
    assert denoiser.net.dtypes == [torch.bfloat16]
    assert pred.x0.dtype == pred.eps.dtype == torch.float32
    torch.testing.assert_close(level.mix(pred.x0, pred.eps), x, rtol=0, atol=1e-6)
    denoiser.autocast = None
    denoiser(x, t)
    assert denoiser.net.dtypes[-1] == torch.float32


def test_twin_and_freeze():
    teacher = wobbly_teacher(Cosine(), V())
    assert teacher.freeze() is teacher
    trainable_copy = teacher.trainable_copy()
    assert trainable_copy.training and all(p.requires_grad for p in trainable_copy.parameters())
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())
    with torch.no_grad():
        trainable_copy.net.gain += 1
    assert teacher.net.gain.item() == 1.7
    assert (trainable_copy.schedule, trainable_copy.parameterisation, trainable_copy.time) == (
        teacher.schedule,
        teacher.parameterisation,
        teacher.time,
    )


# --- classifier-free guidance -------------------------------------------------------------------------


def score_eps(x, level, weights=DATA.weights):
    """eps = -sigma * gradient of log p(x_t), by autograd: no formula of the code under test."""
    x = x.detach().requires_grad_(True)
    mean, std = torch.tensor(DATA.means), torch.tensor(DATA.stds)
    spread = (level.alpha * std) ** 2 + level.sigma**2
    away = (x[:, None] - level.alpha[..., None] * mean).square().sum(-1)
    log_p = torch.tensor(weights).log() - away / (2 * spread) - (2 * torch.pi * spread).log()
    (score,) = torch.autograd.grad(log_p.logsumexp(1).sum(), x)
    return -level.sigma * score


def only(k):
    return tuple(float(j == k) for j in range(len(DATA.means)))


@every_schedule
@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5, 7.0])
def test_guided_mixture_has_its_closed_form(schedule, scale):
    x, t = torch.randn(6, 2, generator=seeded()), torch.linspace(0.1, 0.9, 6)
    label = torch.full((6,), 1)
    teacher = mixture_teacher(schedule, DATA)
    pred = Guided(teacher, scale, null=3)(x, t, Cond(label=label))
    level = teacher.level(t, x)
    free, bound = score_eps(x, level), score_eps(x, level, only(1))
    eps = free + scale * (bound - free)
    torch.testing.assert_close(pred.eps, eps, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(level.mix(pred.x0, pred.eps), x, rtol=0, atol=1e-10)


@every_schedule
@every_reading
def test_guidance_commutes_with_parameterisation(schedule, reads):
    """Guiding x0, eps or v is one and the same act, so nobody can see which we did."""

    class Labelled(Wobbly):
        def forward(self, x, t, cond=None):
            return super().forward(x * (1 + cond.label.reshape(-1, 1, 1)), t)

    denoiser = Denoiser(Labelled(reads.outputs), schedule, reads, time=NetTime(scale=1.0))
    x, t = torch.randn(5, 3, 4, generator=seeded()), torch.linspace(0.1, 0.9, 5)
    label, null = torch.tensor([1, 2, 1, 3, 2]), torch.zeros(5, dtype=torch.int64)
    pred = Guided(denoiser, 3.5, null=0)(x, t, Cond(label=label))
    outs = (denoiser.net(x, t, Cond(label=who)) for who in (null, label))
    raw = reads.decode(torch.lerp(*outs, 3.5), x, denoiser.level(t, x))
    torch.testing.assert_close(pred.x0, raw.x0, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(pred.eps, raw.eps, rtol=1e-10, atol=1e-10)


def test_guidance_is_one_batched_forward():
    spy = Spy()
    cond = Cond(torch.tensor([4, 5, 6]), torch.ones(3, 2, 7), torch.tensor([1.0, 2.0, 3.0]))
    x, t = torch.randn(3, 2, generator=seeded()), torch.tensor([0.2, 0.5, 0.9])
    Guided(Denoiser(spy, Cosine(), V()), 2.0, null=9)(x, t, cond)
    [(x_seen, time, both)] = spy.seen
    assert torch.equal(x_seen, torch.cat([x, x])) and torch.equal(time, 1000 * torch.cat([t, t]))
    assert both.label.tolist() == [4, 5, 6, 9, 9, 9]
    assert both.encoder_hidden_states.shape == (6, 2, 7) and both.guidance_scale.tolist() == [
        1,
        2,
        3,
        1,
        2,
        3,
    ]


def test_scale_one_is_off():
    """One forward, without the null label, and exactly the conditional prediction."""
    spy, cond = Spy(), Cond(label=torch.tensor([1, 2, 0]))
    denoiser = Denoiser(spy, Cosine(), V())
    x, t = torch.randn(3, 2, generator=seeded()), torch.full((3,), 0.5)
    plain = denoiser(x, t, cond)
    for scale in (1, 1.0):
        pred = Guided(denoiser, scale, null=9)(x, t, cond)
        assert torch.equal(pred.x0, plain.x0) and torch.equal(pred.eps, plain.eps)
    assert [len(x) for x, _, _ in spy.seen] == [3, 3, 3]
    assert all(c.label.tolist() == [1, 2, 0] for _, _, c in spy.seen)


def test_a_scale_a_sample():
    """float [B], also on images as wide as the batch and also 1 among them."""
    denoiser = Denoiser(Spy(), Cosine(), V())
    x, t = torch.randn(4, 2, 5, 4, generator=seeded()), torch.linspace(0.1, 0.9, 4)
    cond, scales = Cond(label=torch.tensor([1, 2, 3, 4])), torch.tensor([0.0, 1.0, 2.0, 7.5])
    pred = Guided(denoiser, scales, null=0)(x, t, cond)
    for k, scale in enumerate(scales.tolist()):
        rows = slice(k, k + 1)
        alone = Guided(denoiser, scale, null=0)(x[rows], t[rows], cond[rows])
        torch.testing.assert_close(pred.x0[rows], alone.x0, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(pred.eps[rows], alone.eps, rtol=1e-12, atol=1e-12)


def test_guided_float32_stays_float32():
    guided = Guided(Denoiser(Spy(), Cosine(), V()), torch.tensor([2.0, 3.0]), null=0)
    x = torch.ones(2, 3, dtype=torch.float32)
    pred = guided(x, torch.full((2,), 0.5), Cond(label=torch.tensor([1, 1])))
    assert pred.x0.dtype == pred.eps.dtype == torch.float32


@pytest.mark.parametrize("cond", [None, Cond(), Cond(guidance_scale=torch.ones(2))])
def test_guidance_without_labels_is_refused(cond):
    guided = Guided(Denoiser(Spy(), Cosine(), V()), 2.0, null=0)
    with pytest.raises(ConfigError, match="needs labels: give cond="):
        guided(torch.ones(2, 3), torch.full((2,), 0.5), cond)


def test_guided_advice_works():
    """'... or scale=1 without': a guided denoiser at scale 1 asks for no labels."""
    guided = Guided(Denoiser(Spy(), Cosine(), V()), 1.0, null=0)
    x, t = torch.ones(2, 3), torch.full((2,), 0.5)
    assert torch.equal(guided(x, t).x0, guided.denoiser(x, t).x0)


# --- classifier guidance ------------------------------------------------------------------------------


class ExactClassifier(nn.Module):
    """log p(label | x_t) of the mixture, up to a constant a sample."""

    def __init__(self, schedule):
        super().__init__()
        self.schedule = schedule

    def forward(self, x, t):
        level = level_of(self.schedule, t, x)
        std = torch.tensor(DATA.stds)
        spread = (level.alpha * std) ** 2 + level.sigma**2
        away = (x[:, None] - level.alpha[..., None] * torch.tensor(DATA.means)).square().sum(-1)
        return torch.tensor(DATA.weights).log() - away / (2 * spread) - spread.log()


class Blind(nn.Module):
    """The same network, which does not look at its condition."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x, t, cond=None):
        return self.net(x, t)


def blind_teacher(schedule, reads=None):
    teacher = mixture_teacher(schedule, DATA, reads)
    teacher.net = Blind(teacher.net)
    return teacher


@every_schedule
@pytest.mark.parametrize("reads", [X0(), Eps(), V()], ids=named)
@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_classifier_guidance_on_the_mixture(schedule, reads, scale):
    """With the exact noisy classifier it is classifier-free guidance; at scale 1, the class itself."""
    x, t = torch.randn(6, 2, generator=seeded()), torch.linspace(0.1, 0.9, 6)
    cond = Cond(label=torch.tensor([0, 1, 2, 2, 1, 0]))
    pushed = ClassifierGuided(blind_teacher(schedule, reads), ExactClassifier(schedule), scale)
    with torch.no_grad():  # as in `sample`
        pred = pushed(x, t, cond)
    expected = Guided(mixture_teacher(schedule, DATA), scale, null=3)(x, t, cond)
    torch.testing.assert_close(pred.x0, expected.x0, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(pred.eps, expected.eps, rtol=1e-7, atol=1e-8)
    if scale == 1:
        exact = mixture_teacher(schedule, DATA)(x, t, cond)
        torch.testing.assert_close(pred.x0, exact.x0, rtol=1e-7, atol=1e-8)
    assert not pred.x0.requires_grad


def test_classifier_guided_samples_of_a_class():
    """Walking with it lands on the class, and asks for no gradient of its own."""
    pushed = ClassifierGuided(blind_teacher(Cosine()), ExactClassifier(Cosine()), 1.0)
    noise = torch.randn(2000, 2, generator=seeded())
    x = sample(pushed, noise, uniform(32), cond=Cond(label=torch.full((2000,), 1)))
    mean, std = torch.tensor(DATA.means[1]), DATA.stds[1]
    assert bool(((x.mean(0) - mean).abs() < 4 * std / 2000**0.5).all())
    assert bool(((x.std(0) / std - 1).abs() < 0.15).all())


class Timed(torch.nn.Module):
    """A classifier whose gradient needs its weights, its buffer and its time."""

    def __init__(self, forward=None):
        super().__init__()
        self.hidden, self.head = torch.nn.Linear(2, 8), torch.nn.Linear(8, 3)
        self.time = torch.nn.Linear(1, 8)
        self.register_buffer("shift", torch.ones(8))
        self.through = forward or (lambda net, x, t: net.head(net.seen(x, t)))

    def seen(self, x, t):
        return torch.tanh(self.hidden(x) * self.time(t[:, None]) + self.shift)

    def forward(self, x, t):
        return self.through(self, x, t)


def timed(schedule, **more):
    torch.manual_seed(2)
    return ClassifierGuided(blind_teacher(schedule), Timed(**more), 3.0)


@every_schedule
@pytest.mark.parametrize("frozen", [False, True])
def test_classifier_guidance_in_every_mode_of_torch(schedule, frozen):
    """Gradients on or off, what is made in inference mode and what is made before: the same bits."""
    pushed = timed(schedule).freeze() if frozen else timed(schedule).eval()
    x, label = torch.randn(6, 2, generator=seeded()), torch.tensor([0, 1, 2, 2, 1, 0])
    t = torch.linspace(0.1, 0.9, 6)
    expected = pushed(x, t, Cond(label=label))
    assert (expected.x0 - blind_teacher(schedule)(x, t).x0).abs().max() > 1e-3
    with torch.no_grad():
        predictions = [pushed(x, t, Cond(label=label))]
    with torch.inference_mode():
        predictions.append(pushed(x, t, Cond(label=label)))
        predictions.append(pushed(x.clone(), t.clone(), Cond(label=label.clone())))
        made = timed(schedule).eval()
        assert made.classifier.head.weight.is_inference()
        predictions.append(made(x.clone(), t.clone(), Cond(label=label.clone())))
        samples = sample(made, x.clone(), uniform(5, start=0.9), cond=Cond(label=label.clone()))
    for pred in predictions:
        assert torch.equal(pred.x0, expected.x0) and torch.equal(pred.eps, expected.eps)
    assert torch.equal(samples, sample(pushed, x, uniform(5, start=0.9), cond=Cond(label=label)))
    assert not frozen or not expected.x0.requires_grad


@torch.inference_mode()
def without_gradients(net, x, t):
    return net.head(net.seen(x, t))


@pytest.mark.parametrize(
    "forward",
    [
        without_gradients,
        torch.no_grad()(lambda net, x, t: net.head(net.seen(x, t))),
        lambda net, x, t: net.head(net.seen(x.detach(), t)).detach(),
    ],
)
def test_a_classifier_without_a_gradient_is_refused(forward):
    pushed, x = timed(Cosine(), forward=forward), torch.ones(2, 2)
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode, pytest.raises(ConfigError, match="gradient"):
            pushed(x, torch.full((2,), 0.5), Cond(label=torch.tensor([0, 1])))


def test_classifier_guidance_freezes_no_classifier():
    """It is the caller's, who may go on training it; its answers have no gradient in any case."""
    pushed, x = timed(Cosine()), torch.ones(2, 2)
    pushed.classifier.head.requires_grad_(False)
    before = [p.requires_grad for p in pushed.classifier.parameters()]
    frozen = pushed.freeze()
    assert frozen is pushed and not pushed.training
    assert [p.requires_grad for p in pushed.classifier.parameters()] == before
    assert not any(p.requires_grad for p in pushed.denoiser.parameters())
    pred = frozen(x, torch.full((2,), 0.5), Cond(label=torch.tensor([0, 1])))
    assert not pred.x0.requires_grad and not pred.eps.requires_grad
    assert all(p.grad is None for p in pushed.parameters())


def test_classifier_guidance_refuses():
    schedule = RectifiedFlow()
    pushed = ClassifierGuided(blind_teacher(schedule), ExactClassifier(schedule), 1.0)
    x = torch.ones(2, 2)
    for cond in (None, Cond()):
        with pytest.raises(ConfigError, match="needs labels"):
            pushed(x, torch.full((2,), 0.5), cond)
    with pytest.raises(ConfigError, match="alpha = 0"):
        pushed(x, torch.ones(2), Cond(label=torch.tensor([0, 1])))


class Cut(nn.Module):
    """Answers by a change of x."""

    def __init__(self, change):
        super().__init__()
        self.change, self.gain = change, nn.Parameter(torch.ones(()))

    def forward(self, x, time, cond=None):
        return self.change(x)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: x[:1], r"answers \[1, 2\] for samples of \[4, 2\].*reads \[4, 2\]"),
        (lambda x: x.mean(0), r"answers \[2\] for"),
        (lambda x: x[:3], r"answers \[3, 2\] for"),
        (lambda x: x.repeat(2, 1), r"answers \[8, 2\] for"),
        (lambda x: x[:, :1], r"answers \[4, 1\] for"),
        (lambda x: (x,), "answers a tuple for"),
    ],
)
def test_an_answer_of_another_shape_is_not_broadcast(change, words):
    x = torch.randn(4, 2, generator=seeded())
    teacher = Denoiser(Cut(change), Cosine(), V())
    with pytest.raises(ConfigError, match=words):
        teacher(x, torch.full((4,), 0.5))
    with pytest.raises(ConfigError, match="the network answers"):
        Pipeline(teacher, (2,)).sample(4)


@pytest.mark.parametrize("wrap", ["guided", "pushed"])
def test_guided_teachers_have_the_students_of_their_denoiser(wrap):
    inner = wobbly_teacher(Cosine(), V())
    teacher = (
        Guided(inner, 2.0, null=0)
        if wrap == "guided"
        else ClassifierGuided(inner, ExactClassifier(Cosine()), 2.0)
    )
    assert teacher.schedule == Cosine() and teacher.parameterisation == V()
    assert teacher.freeze() is teacher and not inner.net.gain.requires_grad and not inner.training
    trainable_copy = teacher.trainable_copy()
    assert type(trainable_copy) is Denoiser and trainable_copy is not inner
    assert trainable_copy.net.gain.requires_grad and trainable_copy.training


def test_predictions_are_values():
    x = torch.ones(2, 3)
    pred = Prediction(x, x)
    with pytest.raises(AttributeError):
        pred.x0 = x
