"""Multistep consistency: exact students, the specification's numbers, and what the options change."""

import pytest
import torch

from halfstep.batch import Batch
from halfstep.data import NoData
from halfstep.diffusion.analytic import gaussian_teacher, mixture_teacher
from halfstep.diffusion.denoiser import Denoiser, level_of
from halfstep.diffusion.guidance import Guided
from halfstep.diffusion.prediction import Clip, Eps, Prediction, V, X0
from halfstep.diffusion.samplers import ddim, heun, sample
from halfstep.diffusion.schedules import BetaTable, Cosine, Karras, RectifiedFlow, VPLinear
from halfstep.diffusion.time_grids import uniform
from halfstep.errors import ConfigError
from halfstep.methods import DenoiserOnly, MultistepConsistency
from halfstep.methods.diffusion.multistep_consistency import ConsistencyLoss
from halfstep.methods.diffusion.walks import Walked
from halfstep.rng import Draw
from tests.support.denoisers import Counted, named, READS, SCHEDULES, seeded, wobbly_teacher
from tests.support.students import draw_of

pytestmark = pytest.mark.usefixtures("float64")
FINE = uniform(16)
SCHEDULE = {
    "cosine": Cosine(),
    "straight": RectifiedFlow(),
    "vp-linear": VPLinear(),
    "karras": Karras(),
}
ANALYTIC = [
    teacher(schedule)
    for schedule in SCHEDULE.values()
    for teacher in (gaussian_teacher, mixture_teacher)
]
every_teacher = pytest.mark.parametrize(
    "teacher", ANALYTIC, ids=lambda t: f"{named(t.schedule)}-{named(t.net)}"
)
every_count = pytest.mark.parametrize("segments", [1, 2, 8, 16])


class JumpsToTheEnd:
    """The exact student: the teacher's own steps from t to the end of its segment, as one prediction."""

    def __init__(self, teacher, times, segments, clip=None):
        self.teacher, self.times, self.segments = teacher, times, segments
        self.schedule, self.clip = teacher.schedule, clip

    def __call__(self, x, t, cond=None):
        rows = [self._one(x[k : k + 1], t[k].item()) for k in range(len(x))]
        return Prediction(*(torch.cat([getattr(r, of) for r in rows]) for of in ("x0", "eps")))

    def _one(self, x, t):
        i, length = self.times.index(t), (len(self.times) - 1) // self.segments
        way = self.times[i : (i // length + 1) * length + 1]
        shape = -1, *[1] * (x.ndim - 1)
        end = sample(
            self.teacher, x / (1 if self.schedule.variance_preserving else self._sigma(t)), way
        )
        a, s = (torch.tensor(v, dtype=torch.float64).reshape(shape) for v in self._level(t))
        if way[-1] == 0:
            return Prediction(end, (x - a * end) / s)
        ae, se = self._level(way[-1])
        x0 = (s * end - se * x) / (s * ae - se * a)
        return Prediction(x0, (ae * x - a * end) / (s * ae - se * a))

    def _level(self, t):
        level = self.schedule.at(torch.tensor(t, dtype=torch.float64))
        return level.alpha.item(), level.sigma.item()

    def _sigma(self, t):
        return self._level(t)[1]


def noised(teacher, rows=5):
    return Batch(torch.randn(rows, 2, generator=seeded()) * 0.5 + 0.1)


def loss_of(teacher, segments, **options):
    return ConsistencyLoss(teacher, FINE, segments, **options)


@every_teacher
@every_count
def test_the_exact_student_has_no_loss_at_any_fine_time(teacher, segments):
    """The last of a segment and t_end = 0 included."""
    exact, objective = JumpsToTheEnd(teacher, FINE, segments), loss_of(teacher, segments)
    places = objective.all_places()
    x0, eps = torch.randn(2, 16, 2, generator=seeded())
    x_t = level_of(teacher.schedule, places[0], x0).mix(x0, eps)
    target = objective.with_student(exact).target(x_t, places, None)
    guess = exact(x_t, places[0])
    scale = guess.x0.abs().max().clamp(min=1)
    torch.testing.assert_close(target.x0, guess.x0, rtol=0, atol=1e-12 * scale)
    torch.testing.assert_close(target.eps, guess.eps, rtol=1e-12, atol=1e-12)
    assert objective(exact, noised(teacher), draw_of(1, 5)).max() < 1e-20


@every_teacher
@every_count
def test_the_exact_student_samples_the_teachers_fine_walk(teacher, segments):
    noise = torch.randn(7, 2, generator=seeded())
    exact = JumpsToTheEnd(teacher, FINE, segments)
    actual = sample(exact, noise, FINE[:: 16 // segments])
    torch.testing.assert_close(actual, sample(teacher, noise, FINE), rtol=0, atol=1e-12)


NUMBERS = {
    # schedule, t, m, e, x_t, student at m, teacher's x0 at t, target x0, target eps, lands at
    "inside": (
        "cosine", 0.6875, 0.625, 0.5, 0.4, 0.1,
        0.33656902099507185, 0.16793241483115023, 0.3637939335981442, 0.37598730670991504,
    ),
    "alpha 0": ("straight", 1.0, 0.9375, 0.75, -1.2, 0.25, 0.3, 0.26, -1.2, -0.835),
    "last segment": (
        "vp-linear", 0.1875, 0.125, 0.0, 0.2, 0.15,
        0.27860609099656836, 0.15, 0.13552205461341935, 0.15,
    ),
    "m is e": (
        "karras", 0.5625, 0.5, 0.5, 2.0, 9.0,
        0.3225955158612197, 0.3225955158612197, 0.3893677933627223, 1.3019407784276846,
    ),
    "m is e is 0": (
        "straight", 0.0625, 0.0, 0.0, 0.2, 9.0,
        0.21484716157205241, 0.21484716157205241, -0.022707423580786035, 0.21484716157205241,
    ),
}  # fmt: skip


@pytest.mark.parametrize("numbers", NUMBERS.values(), ids=NUMBERS.keys())
def test_the_specifications_numbers(numbers):
    name, *places, x_t, says, first, x0, eps, lands = numbers
    teacher = gaussian_teacher(SCHEDULE[name])
    segments = {0.25: 4, 0.5: 2, 0.0: 4}[places[2]] if places[0] < 1 else 4
    objective = loss_of(teacher, 2 if name == "karras" else segments)
    x_t, places = torch.full((1, 1), x_t), tuple(torch.tensor([t]) for t in places)
    assert teacher(x_t, places[0]).x0.item() == pytest.approx(first, rel=1e-9)

    def student(x, t, cond=None):
        return Prediction.from_x0(torch.full_like(x, says), x, level_of(teacher.schedule, t, x))

    target = objective.with_student(student).target(x_t, places, None)
    assert target.x0.item() == pytest.approx(x0, rel=1e-9)
    assert target.eps.item() == pytest.approx(eps, rel=1e-9)
    end = level_of(teacher.schedule, places[2], x_t)
    ends = (1.0, 0.0) if places[2] == 0 else (end.alpha, end.sigma)
    assert (ends[0] * target.x0 + ends[1] * target.eps).item() == pytest.approx(lands, rel=1e-9)


@every_teacher
@pytest.mark.parametrize("segments", [1, 2, 16])
def test_the_student_of_heuns_steps_samples_what_heun_samples(teacher, segments):
    """The student that solves the objective; the last of its steps is DDIM, as the sampler's."""
    noise = torch.randn(3, 2, generator=seeded())
    student = _solved(loss_of(teacher, segments, solver="heun"), teacher)
    actual = sample(student, noise, FINE[:: 16 // segments])
    torch.testing.assert_close(actual, sample(teacher, noise, FINE, heun), rtol=0, atol=1e-12)


def test_the_numbers_of_exact_students():
    """x at the middle and at the end from unit noise, of 16 uniform fine steps."""
    for name, end in {
        "cosine": 0.753920384958555,
        "straight": 0.7556830933916336,
        "vp-linear": 0.7144706461476534,
        "karras": 0.7170484576655274,
    }.items():
        teacher = gaussian_teacher(SCHEDULE[name])
        for segments in (1, 2):
            exact = JumpsToTheEnd(teacher, FINE, segments)
            drawn = sample(exact, torch.ones(1, 1), FINE[:: 16 // segments])
            assert drawn.item() == pytest.approx(end, rel=1e-9)


def test_places_are_the_fine_times_of_all_segments():
    t, m, e = loss_of(gaussian_teacher(Cosine()), 4).all_places()
    assert t.tolist() == list(FINE[:-1])
    assert m.tolist() == list(FINE[1:])
    assert e.tolist() == [FINE[k // 4 * 4 + 4] for k in range(16)]
    drawn = loss_of(gaussian_teacher(Cosine()), 4).places(draw_of(0, 1000))
    assert {tuple(p) for p in zip(*(d.tolist() for d in drawn), strict=True)} == set(
        zip(t.tolist(), m.tolist(), e.tolist(), strict=True)
    )


@pytest.mark.parametrize("schedule", SCHEDULES, ids=named)
@pytest.mark.parametrize("reads", READS, ids=named)
@pytest.mark.parametrize("rows", [1, 5])
def test_every_schedule_and_output(schedule, reads, rows):
    """Rows of one batch with other ends, on a nonlinear network; 5 is also the samples' width."""
    teacher, times = wobbly_teacher(schedule, reads), tuple(0.9 * t for t in uniform(8))
    objective = ConsistencyLoss(teacher, times, 2)
    exact = JumpsToTheEnd(teacher, times, 2)
    batch = Batch(torch.randn(rows, 2, 5, generator=seeded()))
    loss = objective(exact, batch, draw_of(3, rows))
    assert loss.shape == (rows,)
    if not isinstance(reads, X0):  # the teacher itself is no exact student
        assert loss.max() < 1e-16 < objective(teacher, batch, draw_of(3, rows)).max()


def test_targets_have_no_gradients():
    teacher, student = wobbly_teacher(Cosine(), V()), wobbly_teacher(Cosine(), V())
    objective, places = loss_of(teacher, 2), loss_of(teacher, 2).all_places()
    target = objective.with_student(student).target(torch.randn(16, 2, 3), places, None)
    assert not target.x0.requires_grad and not target.eps.requires_grad
    loss = objective(student, Batch(torch.randn(4, 2, 3)), draw_of(0, 4)).mean()
    loss.backward()
    assert student.net.gain.grad.abs() > 0 and teacher.net.gain.grad is None


@pytest.mark.parametrize("guided", [False, True])
def test_an_update_costs_what_it_says(guided):
    teacher, student = (Counted(wobbly_teacher(Cosine(), V())) for _ in range(2))
    if guided:
        teacher.denoiser = Guided(teacher.denoiser, 2.0, 0)
        assert loss_of(teacher, 2).forwards == 6
        return
    objective = loss_of(teacher, 2)
    objective(student, Batch(torch.randn(4, 2, 3)), draw_of(0, 4))
    calls = teacher.calls + student.calls + 2  # and a backward
    assert calls == objective.forwards == 5


# -- clipping ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES, ids=named)
def test_the_exact_student_of_clipped_targets_samples_what_the_clipping_sampler_does(schedule):
    teacher, bound = wobbly_teacher(schedule, X0()), 0.3
    objective = ConsistencyLoss(teacher, FINE, 2, clip=Clip(bound))
    noise = torch.randn(3, 2, 5, generator=seeded())
    expected = sample(teacher, noise, FINE, clip=bound)
    student = _solved(objective, teacher)
    actual = sample(student, noise, FINE[::8])
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11)


def _solved(objective, teacher):
    """The student that solves the objective: a target whose second prediction is the student itself."""

    def student(x, t, cond=None):
        i = FINE.index(t[0].item())
        places = tuple(place[i].expand(len(x)) for place in objective.all_places())
        then = teacher if places[1][0] == places[2][0] else solve  # the last step asks no student
        return objective.with_student(then).target(x, places, cond)

    class Solve:
        schedule = teacher.schedule

        def __call__(self, x, t, cond=None):
            return student(x, t, cond)

    solve = Solve()
    return solve


def test_the_students_jump_is_clipped_as_its_sampler_clips():
    """By hand: the jump's image is the bound, and its eps is that of the clipped image."""
    teacher, bound = gaussian_teacher(Cosine()), 0.3
    places = tuple(torch.tensor([t]) for t in (0.6875, 0.625, 0.5))

    def student(x, t, cond=None):
        return Prediction.from_x0(torch.full_like(x, says), x, level_of(Cosine(), t, x))

    says, x_t = bound, torch.full((1, 1), 0.4)
    clipped = loss_of(teacher, 2, clip=Clip(bound)).with_student(student)
    expected = clipped.target(x_t, places, None)
    says = 9.0
    actual = clipped.target(x_t, places, None)
    assert actual.x0.item() == pytest.approx(expected.x0.item(), abs=1e-12)
    assert actual.eps.item() == pytest.approx(expected.eps.item(), abs=1e-12)
    leaving = loss_of(teacher, 2, clip=Clip(bound, "x0")).with_student(student)
    assert leaving.target(x_t, places, None).x0.abs().item() > 1  # such students are not clipped


# -- options -------------------------------------------------------------------------------------------


def test_the_adjusted_noise_has_the_variance_that_a_mean_lacks():
    """In one dimension, by hand: c^2 sigma_m^2 = sigma_m^2 + (alpha_m - alpha_t sigma_m / sigma_t)^2 Var."""
    teacher, eta = gaussian_teacher(Cosine()), 0.1
    t, m, e = (torch.tensor([v]) for v in (0.6875, 0.625, 0.5))
    x_t, heard = torch.full((1, 1), 0.4), []

    def student(x, time, cond=None):
        heard.append(x.item())
        return Prediction.from_x0(torch.full_like(x, 0.1), x, level_of(Cosine(), time, x))

    target = loss_of(teacher, 2, addim=eta).with_student(student).target(x_t, (t, m, e), None)
    (at, st), (am, sm), (ae, se) = (
        (level.alpha.item(), level.sigma.item()) for level in (Cosine().at(v) for v in (t, m, e))
    )
    x1 = teacher(x_t, t).x0.item()
    eps1 = (0.4 - at * x1) / st
    variance = eta / (2 + at**2 / st**2)
    noise = (sm**2 + (am - at * sm / st) ** 2 * variance) ** 0.5
    assert heard == [pytest.approx(am * x1 + noise * eps1, rel=1e-12)]
    # one DDIM step with the target lands where the adjusted step and the student's jump land
    landed = ae * 0.1 + se * (am * x1 + noise * eps1 - am * 0.1) / sm
    assert (ae * target.x0 + se * target.eps).item() == pytest.approx(landed, rel=1e-12)
    assert (at * target.x0 + st * target.eps).item() == pytest.approx(0.4, rel=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULE.values(), ids=SCHEDULE.keys())
def test_adjusting_changes_nothing_that_ends_in_data(schedule):
    """A step that arrives at 0 keeps no noise; targets are finite at every place."""
    teacher = gaussian_teacher(schedule)
    plain, adjusted = loss_of(teacher, 4), loss_of(teacher, 4, addim=0.5)
    places, x_t = plain.all_places(), torch.randn(16, 1, generator=seeded())
    student = JumpsToTheEnd(teacher, FINE, 4)
    target = adjusted.with_student(student).target(x_t, places, None)
    assert target.x0.isfinite().all() and target.eps.isfinite().all()
    last = places[1] == 0
    without = plain.with_student(student).target(x_t, places, None)
    torch.testing.assert_close(target.x0[last], without.x0[last])
    assert (target.x0 - without.x0)[~last].abs().max() > 1e-3


def test_a_student_starts_as_the_one_before_or_as_the_teacher():
    teacher = wobbly_teacher(Cosine(), V())
    for warm, gain in ((True, 2.5), (False, 1.7)):
        method = MultistepConsistency(start=8, first=4, stop=2, warm_start=warm)
        stages = method.stages(DenoiserOnly(teacher))
        with torch.no_grad():
            next(stages).student.net.gain.fill_(2.5)
        second = next(stages)
        assert second.student.net.gain.item() == gain
        assert second.objective.teacher.net.gain.item() == 1.7


def test_the_plan():
    method = MultistepConsistency(start=32, updates=(3, 4, 5, 6))
    plan = method.plan(DenoiserOnly(gaussian_teacher(Cosine())))
    assert [(s.name, s.steps, s.updates, s.forwards) for s in plan] == [
        ("0008-steps", 8, 3, 5),
        ("0004-steps", 4, 4, 5),
        ("0002-steps", 2, 5, 5),
        ("0001-steps", 1, 6, 5),
    ]
    assert all(s.teacher_times == uniform(32) for s in plan)
    assert plan[1].times == uniform(4)
    assert method.summary() == "8, 4, 2 and 1 steps along 32 of the teacher"
    assert MultistepConsistency(start=4, first=1).summary() == "1 step along 4 of the teacher"


@pytest.mark.parametrize(
    "options, words",
    [
        ({"start": 12, "first": 8}, "multiple of first"),
        ({"start": 4, "first": 8}, "multiple of first"),
        ({"first": 6, "stop": 4}, "power of two"),
        ({"start": 64, "ramp_from": 12}, "multiple of first"),
        ({"start": 64, "ramp_from": 128}, "multiple of first"),
        ({"addim": 0.1, "target_clip": 1.0}, "addim"),
        ({"addim": 0.1, "solver": "heun"}, "addim"),
        ({"updates": (1, 2)}, "updates"),
        ({"weighting": "snr"}, "vanishes"),
    ],
)
def test_what_cannot_be_is_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        MultistepConsistency(**options)


def test_an_eps_teacher_becomes_a_v_teacher_first():
    teacher = DenoiserOnly(Denoiser(wobbly_teacher(Cosine(), Eps()).net, Cosine(), Eps()))
    plan = MultistepConsistency(start=8, first=2, updates=(5,)).plan(teacher)
    assert [stage.name for stage in plan] == ["v-teacher", "0002-steps", "0001-steps"]


# -- without data --------------------------------------------------------------------------------------


class Visited(ConsistencyLoss):
    """Keeps where it was asked for targets."""

    def target(self, x_t, places, cond):
        self.teacher.visits.append((x_t, places))
        return super().target(x_t, places, cond)


@pytest.mark.parametrize("solver", [ddim, heun])
@pytest.mark.parametrize("schedule", [Cosine(), Karras(), BetaTable()], ids=named)
def test_walks_are_the_teachers_and_cost_what_they_say(schedule, solver):
    teacher, student = (Counted(mixture_teacher(schedule)) for _ in range(2))
    teacher.visits = []
    times = uniform(8, start=0.97, end=0.02)
    objective = Visited(teacher, times, 2, solver=solver.__name__)
    walked = Walked(objective, NoData(shape=(2,)))
    for update in range(9):
        walked(
            student, Batch(torch.zeros(1, 2)), Draw(seeded(update), 1, slice(0, 1), (5, 2, update))
        )
    assert [v[1][0].item() for v in teacher.visits[:8]] == list(times[:8])
    x_t = [v[0] for v in teacher.visits]
    walk = teacher.denoiser
    noise = (
        x_t[0] if schedule.variance_preserving else x_t[0] / schedule.at(torch.tensor(0.97)).sigma
    )
    for k in range(1, 8):
        torch.testing.assert_close(
            x_t[k], sample(walk, noise, times[: k + 1], solver), rtol=1e-9, atol=1e-9
        )
    forwards = teacher.calls + student.calls + 2 * 9  # with the backward passes
    assert forwards == walked.cost(9, 1)
