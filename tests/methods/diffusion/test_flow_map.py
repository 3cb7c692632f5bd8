"""Flow maps: exact students for every span, the specification's numbers, what a row costs, walks."""

from dataclasses import replace

import pytest
import torch

from halfstep.batch import Batch, Cond
from halfstep.data import NoData
from halfstep.diffusion.analytic import gaussian_teacher, mixture_teacher
from halfstep.diffusion.denoiser import Denoiser, level_of
from halfstep.diffusion.guidance import Guided
from halfstep.diffusion.prediction import Clip, Eps, Prediction, V, X0
from halfstep.diffusion.samplers import sample, TowardNext
from halfstep.diffusion.schedules import BetaTable, Cosine, Karras, RectifiedFlow, VPLinear
from halfstep.diffusion.time_grids import in_spans, uniform
from halfstep.errors import ConfigError
from halfstep.methods import DenoiserOnly, FlowMap
from halfstep.methods.diffusion.flow_map_loss import FlowMapLoss
from halfstep.methods.diffusion.two_step_target import one_step_target
from halfstep.methods.diffusion.walks import Walked
from halfstep.rng import Draw
from tests.support.denoisers import Counted, Drops, named, READS, SCHEDULES, seeded, wobbly_teacher
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


class ExactMap:
    """The exact student: the teacher's own steps from t to the end that it is told, as one prediction."""

    def __init__(self, teacher, times, clip=None):
        self.teacher, self.times, self.clip = teacher, times, clip
        self.schedule = teacher.schedule

    def __call__(self, x, t, cond):
        rows = [self._one(x[k : k + 1], t[k].item(), cond.t_end[k].item()) for k in range(len(x))]
        return Prediction(*(torch.cat([getattr(r, of) for r in rows]) for of in ("x0", "eps")))

    def _one(self, x, t, e):
        way = self.times[self.times.index(t) : self.times.index(e) + 1]
        (a, s), level = self._level(t), self.schedule
        end = sample(self.teacher, x / (1 if level.variance_preserving else s), way, clip=self.clip)
        if e == 0:
            return Prediction(end, (x - a * end) / s)
        ae, se = self._level(e)
        x0 = (s * end - se * x) / (s * ae - se * a)
        return Prediction(x0, (ae * x - a * end) / (s * ae - se * a))

    def _level(self, t):
        level = self.schedule.at(torch.tensor(t, dtype=torch.float64))
        return level.alpha.item(), level.sigma.item()


def loss_of(teacher, times=FINE, longest=None, **options):
    longest = (len(times) - 1).bit_length() - 1 if longest is None else longest
    return FlowMapLoss(teacher, times, longest, **options)


@every_teacher
def test_the_exact_student_has_no_loss_for_any_span(teacher):
    """From every start, of every length, to t = 0 too."""
    exact, objective = ExactMap(teacher, FINE), loss_of(teacher)
    places = objective.all_places()
    assert len(places[0]) == 16 + 8 + 4 + 2 + 1
    x0, eps = torch.randn(2, 31, 2, generator=seeded())
    x_t = level_of(teacher.schedule, places[0], x0).mix(x0, eps)
    target = objective.with_student(exact).target(x_t, places, None)
    guess = objective.guess(exact, x_t, places, None)
    scale = guess.x0.abs().max().clamp(min=1)
    torch.testing.assert_close(target.x0, guess.x0, rtol=0, atol=1e-12 * scale)
    torch.testing.assert_close(target.eps, guess.eps, rtol=1e-12, atol=1e-12)
    batch = Batch(torch.randn(5, 2, generator=seeded()) * 0.5 + 0.1)
    assert objective(exact, batch, draw_of(1, 5)).max() < 1e-20


@every_teacher
@pytest.mark.parametrize("steps", [*range(1, 10), 15, 16])
def test_the_exact_student_samples_the_teachers_fine_walk_in_any_spans(teacher, steps):
    """The semigroup identity: equal spans, mixed spans, and the fine grid itself."""
    noise = torch.randn(7, 2, generator=seeded())
    times = in_spans(FINE, steps)
    actual = sample(TowardNext(ExactMap(teacher, FINE), times), noise, times)
    torch.testing.assert_close(actual, sample(teacher, noise, FINE), rtol=0, atol=1e-12)


def test_the_specifications_number():
    """By hand in few-step-checks.json: the first half says 0.2, the second -0.1."""
    teacher, says = gaussian_teacher(VPLinear()), {0.75: 0.2, 0.5: -0.1}

    def student(x, t, cond):
        x0 = torch.full_like(x, says[cond.t_end.item()])
        return Prediction.from_x0(x0, x, level_of(VPLinear(), t, x))

    places = tuple(torch.tensor([t]) for t in (1.0, 0.75, 0.5))
    target = loss_of(teacher).with_student(student).target(torch.full((1, 1), 0.7), places, None)
    assert target.x0.item() == pytest.approx(-0.04533481557389121, rel=1e-9)
    assert target.eps.item() == pytest.approx(0.7003130435967225, rel=1e-9)
    level = VPLinear().at(torch.tensor(0.5))
    lands = level.alpha * target.x0 + level.sigma * target.eps
    assert lands.item() == pytest.approx(0.6593109810071945, rel=1e-9)


EXACT = {
    "cosine": (0.4027988659163502, 0.9919156605688295, 0.753920384958555),
    "straight": (0.4014202607277111, 0.7007101303638555, 0.7556830933916336),
    "vp-linear": (0.3301972904774241, 1.0504383319351447, 0.7144706461476534),
    "karras": (0.3378810928792056, 2.8424770073202255, 0.7170484576655274),
}


@pytest.mark.parametrize("name", EXACT)
def test_the_numbers_of_the_exact_student(name):
    """Of 16 uniform fine steps from unit noise: x0 and x in the middle, and the end."""
    teacher = gaussian_teacher(SCHEDULE[name])
    exact, (x0, half, end) = ExactMap(teacher, FINE), EXACT[name]
    sigma = 1 if teacher.schedule.variance_preserving else exact._level(1.0)[1]
    x, one = torch.full((1, 1), float(sigma)), torch.ones(1)
    guess = exact(x, one, Cond(t_end=one / 2))
    a, s = exact._level(0.5)
    assert guess.x0.item() == pytest.approx(x0, rel=1e-9)
    assert (a * guess.x0 + s * guess.eps).item() == pytest.approx(half, rel=1e-9)
    assert exact(x, one, Cond(t_end=0 * one)).x0.item() == pytest.approx(end, rel=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=named)
@pytest.mark.parametrize("reads", READS, ids=named)
@pytest.mark.parametrize("rows", [1, 5])
def test_every_schedule_and_output(schedule, reads, rows):
    """Rows of one batch with other ends, on a nonlinear network; 5 is also the samples' width."""
    teacher, times = wobbly_teacher(schedule, reads), tuple(0.9 * t for t in uniform(8))
    objective, exact = loss_of(teacher, times), ExactMap(teacher, times)
    batch = Batch(torch.randn(rows, 2, 5, generator=seeded()))
    draw = Draw(
        seeded(3), rows, slice(0, rows), (0, 0, 3)
    )  # its only row, if there is one, is a span
    loss = objective(exact, batch, draw)
    assert loss.shape == (rows,) and loss.max() < 1e-16


# -- which rows, and what they cost --------------------------------------------------------------------


def places_of(objective, rows, update=0, part=None):
    return objective.places(Draw(seeded(update), rows, part or slice(0, rows), (0, 0, update)))


def test_half_is_fine_and_every_span_begins_at_its_own_multiples():
    objective, seen = loss_of(gaussian_teacher(Cosine())), {}
    t, m, e = places_of(objective, 40_000)
    fine = m == e
    assert fine.tolist() == [k % 2 == 0 for k in range(40_000)]
    for a, b, c in zip(t.tolist(), m.tolist(), e.tolist(), strict=True):
        i, middle, j = (FINE.index(v) for v in (a, b, c))
        length = j - i
        assert length.bit_count() == 1 and i % length == 0
        assert middle == (j if length == 1 else i + length // 2)
        seen.setdefault(length, set()).add(i)
        seen.setdefault("count", []).append(length)
    assert {k: len(v) for k, v in seen.items() if k != "count"} == {1: 16, 2: 8, 4: 4, 8: 2, 16: 1}
    for length in (2, 4, 8, 16):  # uniform: a half in four lengths
        assert seen["count"].count(length) / 40_000 == pytest.approx(1 / 8, abs=0.01)
    stopped = places_of(loss_of(gaussian_teacher(Cosine()), longest=2), 4000)
    assert (stopped[0] - stopped[2]).max().item() == 0.25


def test_fine_rows_are_every_second_of_all_batches():
    objective = loss_of(gaussian_teacher(Cosine()))
    for rows in (1, 3, 6, 64):
        fine = [
            bool(is_fine)
            for update in range(8)
            for is_fine in (
                places_of(objective, rows, update)[1] == places_of(objective, rows, update)[2]
            )
        ]
        assert fine == [k % 2 == 0 for k in range(8 * rows)]


def test_parts_of_a_batch_are_the_batch():
    objective = loss_of(gaussian_teacher(Cosine()))
    whole = places_of(objective, 10, 3)
    parts = [places_of(objective, 10, 3, slice(k, min(k + 3, 10))) for k in range(0, 10, 3)]
    for k in range(3):
        assert torch.equal(torch.cat([part[k] for part in parts]), whole[k])


class Rows:
    """Counts the rows that a denoiser is asked for."""

    def __init__(self, denoiser, calls=1):
        self.denoiser, self.rows, self.calls = denoiser, 0, calls
        self.schedule = denoiser.schedule

    def __call__(self, x, t, cond=None):
        self.rows += len(x) * self.calls
        return self.denoiser(x, t, None)

    @property
    def guided(self):
        return self.calls == 2


@pytest.mark.parametrize("batch, updates", [(64, 3), (4, 1), (5, 4), (1, 9)])
@pytest.mark.parametrize("calls", [1, 2])
def test_an_update_costs_what_it_says(batch, updates, calls):
    """Rows of both kinds are computed apart: the calls are counted."""
    teacher = Rows(wobbly_teacher(Cosine(), V()), calls)
    student, objective = Rows(wobbly_teacher(Cosine(), V())), loss_of(teacher)
    data = Batch(torch.randn(batch, 2, 3, generator=seeded()))
    for update in range(updates):
        objective(student, data, Draw(seeded(update), batch, slice(0, batch), (0, 0, update)))
    assert teacher.rows + student.rows + 2 * batch * updates == objective.cost(updates, batch)
    assert objective.forwards == (4.5 if calls == 1 else 5.0)
    assert objective.cost(updates, batch) == pytest.approx(
        objective.forwards * updates * batch, abs=1
    )


def test_rows_are_answered_in_their_own_order_with_their_own_conditions():
    teacher = wobbly_teacher(Cosine(), V())
    objective = loss_of(teacher).with_student(lambda x, t, cond: teacher(x, t, None))
    places = places_of(objective, 9)
    x_t = torch.randn(9, 2, 3, generator=seeded())
    whole = objective.target(x_t, places, None)
    for k in range(9):
        one = objective.target(x_t[k : k + 1], tuple(p[k : k + 1] for p in places), None)
        torch.testing.assert_close(whole.x0[k : k + 1], one.x0, rtol=0, atol=1e-14)
        torch.testing.assert_close(whole.eps[k : k + 1], one.eps, rtol=0, atol=1e-13)
    heard = []

    def labelled(x, t, cond):
        heard.append(cond.label.tolist())
        return teacher(x, t, None)

    labels, fine = torch.arange(9), places[1] == places[2]
    asked = replace(loss_of(teacher), teacher=Rows(teacher)).with_student(labelled)
    asked.target(x_t, places, Cond(labels))
    assert heard == [labels[~fine].tolist()] * 2


def test_the_halves_are_predicted_without_dropout_as_students_are_sampled():
    student = Denoiser(Drops(), Cosine(), V()).train()
    objective = loss_of(gaussian_teacher(Cosine()))
    objective(student, Batch(torch.randn(5, 2, generator=seeded())), draw_of(0, 5)).sum().backward()
    assert student.net.heard == [(False, False), (False, False), (True, True)]
    assert student.training and student.net.training and student.net.gain.grad.isfinite()


def test_targets_have_no_gradients():
    teacher, student = wobbly_teacher(Cosine(), V()), wobbly_teacher(Cosine(), V())
    objective = loss_of(teacher)

    def told(x, t, cond):
        return student(x, t, None)

    target = objective.with_student(told).target(
        torch.randn(31, 2, 3), objective.all_places(), None
    )
    assert not target.x0.requires_grad and not target.eps.requires_grad
    objective(told, Batch(torch.randn(4, 2, 3)), draw_of(0, 4)).mean().backward()
    assert student.net.gain.grad.abs() > 0 and teacher.net.gain.grad is None


# -- clipping ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["x0-and-eps", "x0"])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=named)
def test_the_exact_student_of_a_clipping_sampler_has_no_loss(schedule, kind):
    """Also where the sampler leaves eps: then the student is sampled unclipped."""
    teacher, bound = wobbly_teacher(schedule, X0()), 0.3
    objective = loss_of(teacher, clip=Clip(bound, kind))
    exact = ExactMap(teacher, FINE, Clip(bound, kind))
    places = objective.all_places()
    x0, eps = torch.randn(2, 31, 2, 5, generator=seeded())
    x_t = level_of(schedule, places[0], x0).mix(x0, eps)
    target = objective.with_student(exact).target(x_t, places, None)
    guess = objective.guess(exact, x_t, places, None)
    lands = [level_of(schedule, places[2], x_t).mix(p.x0, p.eps) for p in (target, guess)]
    torch.testing.assert_close(*lands, rtol=1e-9, atol=1e-9)


def test_a_fine_step_by_heun_is_heuns_and_takes_two_calls():
    teacher = Rows(gaussian_teacher(Karras()))
    objective = loss_of(teacher, solver="heun")
    x_t = torch.full((1, 1), 2.0)
    t, e = torch.tensor([0.5625]), torch.tensor([0.5])
    target = objective.target(x_t, (t, e, e), None)
    expected = one_step_target(teacher.denoiser, x_t, t, e, solver="heun")
    assert torch.equal(target.x0, expected.x0) and teacher.rows == 2
    assert (target.x0 - teacher(x_t, t).x0).abs() > 1e-4
    assert objective.forwards == 5.0 and objective.cost(2, 4) == 3 * 8 + 2 * 2 + 6 * 2
    assert FlowMap(solver="heun").plan(DenoiserOnly(gaussian_teacher(Karras())))[0].forwards == 5.0


def test_the_students_halves_are_clipped_as_its_sampler_clips():
    teacher, bound = gaussian_teacher(Cosine()), 0.3
    places = tuple(torch.tensor([t]) for t in (0.75, 0.625, 0.5))

    def student(x, t, cond):
        return Prediction.from_x0(torch.full_like(x, says), x, level_of(Cosine(), t, x))

    says, x_t = bound, torch.full((1, 1), 0.4)
    clipped = loss_of(teacher, clip=Clip(bound)).with_student(student)
    expected = clipped.target(x_t, places, None)
    says = 9.0
    actual = clipped.target(x_t, places, None)
    assert actual.x0.item() == pytest.approx(expected.x0.item(), abs=1e-12)
    leaving = loss_of(teacher, clip=Clip(bound, "x0")).with_student(student)
    assert leaving.target(x_t, places, None).x0.item() == pytest.approx(9.0)


# -- options -------------------------------------------------------------------------------------------


def test_the_plan():
    method = FlowMap(start=32, updates=(7,))
    [stage] = method.plan(DenoiserOnly(gaussian_teacher(Cosine())))
    assert (stage.name, stage.sampler, stage.updates, stage.forwards) == (
        "flow-map",
        "flow-map",
        7,
        4.5,
    )
    assert stage.grids == (uniform(8), uniform(4), uniform(2), uniform(1))
    assert stage.teacher_times == uniform(32) and stage.times == () and stage.steps == 1
    assert method.summary() == "8, 4, 2 and 1 steps of one flow map along 32 of the teacher"
    assert (
        FlowMap(start=16, first=4, stop=2).objective(gaussian_teacher(Cosine()), FINE).longest == 3
    )
    guided = DenoiserOnly(Guided(gaussian_teacher(Cosine()), 2.0, 0))
    assert method.plan(guided)[0].forwards == 5


def test_default_updates_are_those_of_the_halvings_to_the_same_steps():
    teacher = DenoiserOnly(gaussian_teacher(Cosine()))
    assert FlowMap().sized(teacher, 16_000).updates == (6000,)  # 1000 at 8 and 4, 2000 at 2 and 1
    assert FlowMap(first=2, stop=2).sized(teacher, 16_000).updates == (2000,)
    assert FlowMap(updates=(5,)).sized(teacher, 16_000).updates == (5,)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"start": 12, "first": 8}, "multiple of first"),
        ({"start": 24, "first": 8}, "power of two"),
        ({"first": 6, "stop": 4}, "power of two"),
        ({"start": 4, "first": 4, "stop": 4}, "no step to bisect"),
        ({"updates": (1, 2)}, "one student"),
        ({"updates": (1, 2, 3, 4)}, "one student"),
        ({"weighting": "snr"}, "vanishes"),
        ({"t_end_embed_dim": 3}, "even"),
        ({"start": 16, "times": uniform(8)}, "start=8"),
    ],
)
def test_what_cannot_be_is_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        FlowMap(**options)


def test_three_fine_steps_and_a_stop_of_three():
    """An odd number of fine steps in the shortest walk: spans are 2^k of them."""
    method = FlowMap(start=12, first=6, stop=3)
    teacher = gaussian_teacher(Cosine())
    [stage] = method.plan(DenoiserOnly(teacher))
    assert [len(times) - 1 for times in stage.grids] == [6, 3]
    objective = method.objective(teacher, stage.teacher_times)
    assert objective.longest == 2 and len(objective.all_places()[0]) == 12 + 6 + 3


def test_an_eps_teacher_becomes_a_v_teacher_first():
    teacher = DenoiserOnly(Denoiser(wobbly_teacher(Cosine(), Eps()).net, Cosine(), Eps()))
    plan = FlowMap(start=8, first=2, updates=(5,)).plan(teacher)
    assert [stage.name for stage in plan] == ["v-teacher", "flow-map"]


# -- without data --------------------------------------------------------------------------------------


class Visited(FlowMapLoss):
    """Keeps where it was asked for targets."""

    def target(self, x_t, places, cond):
        self.teacher.visits.append((x_t, places))
        return super().target(x_t, places, cond)


@pytest.mark.parametrize("schedule", [Cosine(), Karras(), BetaTable()], ids=named)
def test_walks_are_the_teachers_and_cost_what_they_say(schedule):
    teacher = Counted(mixture_teacher(schedule))
    student, teacher.visits = Rows(mixture_teacher(schedule)), []
    times = uniform(8, start=0.97, end=0.02)
    walked = Walked(Visited(teacher, times, 3), NoData(shape=(2,)))
    updates = 16 + 3
    for update in range(updates):
        walked(
            student, Batch(torch.zeros(1, 2)), Draw(seeded(update), 1, slice(0, 1), (5, 2, update))
        )
    visits = teacher.visits[-updates:][:16]
    starts = [v[1][0].item() for v in visits]
    assert starts == sorted(starts, reverse=True) and set(starts) == set(times[:-1])
    assert sum(bool(v[1][1] == v[1][2]) for v in visits) == 8
    x_t, noise = {t: v[0] for t, v in zip(starts, visits, strict=True)}, visits[0][0]
    if not schedule.variance_preserving:
        noise = noise / schedule.at(torch.tensor(0.97)).sigma
    for k in range(1, 8):
        expected = sample(teacher.denoiser, noise, times[: k + 1])
        torch.testing.assert_close(x_t[times[k]], expected, rtol=1e-9, atol=1e-9)
    forwards = teacher.calls + student.rows + 2 * updates
    assert forwards == pytest.approx(walked.cost(updates, 1), abs=2)


def test_a_walk_learns_spans_as_often_as_batches_do():
    """Each fine step once; of every length as many of the others, evenly over their starts."""
    objective = loss_of(gaussian_teacher(Cosine()), uniform(32))
    t, m, e = objective.walk_places(torch.arange(objective.walk_length), torch.zeros(64))
    lengths = ((t - e) * 32).round().long()
    assert len(t) == 64 and [(lengths == 1).sum().item(), (m == e).sum().item()] == [32, 32]
    assert [(lengths == 2**k).sum().item() for k in range(1, 6)] == [7, 7, 6, 6, 6]
    quarters = [((lengths == 8) & (t == 1 - k / 4)).sum().item() for k in range(4)]
    assert quarters == [2, 1, 2, 1]
