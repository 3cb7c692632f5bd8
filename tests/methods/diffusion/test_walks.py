"""Walks from noise in place of data: the teacher's own trajectories, every condition and time in turn."""

import pytest
import torch

from halfstep.batch import Batch, Cond
from halfstep.data import NoData, rows
from halfstep.diffusion.analytic import gaussian_teacher, mixture_teacher
from halfstep.diffusion.denoiser import Denoiser, level_of
from halfstep.diffusion.guidance import Guided
from halfstep.diffusion.loss_weighting import snr_plus_one
from halfstep.diffusion.prediction import Clip, Eps, V
from halfstep.diffusion.samplers import sample
from halfstep.diffusion.samplers.stochastic import stochastic
from halfstep.diffusion.schedules import BetaTable, Cosine, Karras, RectifiedFlow, VPLinear
from halfstep.diffusion.time_grids import uniform
from halfstep.errors import ConfigError
from halfstep.methods import DenoiserOnly, Denoising, Progressive, Shrink
from halfstep.methods.diffusion.guided import AnyScale, MatchGuided, with_scale
from halfstep.methods.diffusion.matching import WALK
from halfstep.methods.diffusion.progressive import Halve
from halfstep.methods.diffusion.reparameterise import Match
from halfstep.methods.diffusion.stochastic import HalveJumps
from halfstep.methods.diffusion.walk_states import Course, Lanes
from halfstep.methods.diffusion.walks import Walked, without_data
from halfstep.methods.random_times import EDGE
from halfstep.methods.stages import Objective
from halfstep.rng import Draw, key, sample_noise
from tests.support.denoisers import Counted, Listening, named, seeded, wobbly_teacher
from tests.support.students import ExactRows

pytestmark = pytest.mark.usefixtures("float64")
SEED, STAGE = 5, 2
every_schedule = pytest.mark.parametrize(
    "schedule", [Cosine(), VPLinear(), RectifiedFlow(), Karras(), BetaTable()], ids=named
)


def draw_at(update, whole, part=None):
    part = part or slice(0, whole)
    return Draw(seeded(update), whole, part, (SEED, STAGE, update))


def zeros(count, dim=2):
    return Batch(torch.zeros(count, dim))


class Spy(Halve):
    """A halving that keeps the states and places of its targets."""

    def target(self, x_t, places, cond):
        self.teacher.visits.append((x_t, places, cond))
        return super().target(x_t, places, cond)


class Kept(Counted):
    """A denoiser with a list of what its objective visited."""

    def __init__(self, denoiser):
        super().__init__(denoiser)
        self.visits = []


def visited(objective, student, updates, whole, *, data=None, start=0, part=None):
    """(x_t, places, cond) of these updates."""
    part = part or slice(0, whole)
    walked = Walked(objective, data or NoData(shape=(2,)))
    visits = []
    for update in range(start, updates):
        walked(student, zeros(part.stop - part.start), draw_at(update, whole, part))
        visits.append(objective.teacher.visits[-1])
    return visits


def noise_of_walk(walk, dim=2):
    return sample_noise(key(SEED, STAGE, 0x57414C4B), [walk], (dim,)).double()


@every_schedule
@pytest.mark.parametrize("clip", [None, Clip(0.4), Clip(0.4, "x0")], ids=["plain", "both", "x0"])
def test_lanes_are_the_samplers_trajectories(schedule, clip):
    """A lane is at every other state of the teacher's DDIM, clipped or not."""
    teacher, times = Kept(mixture_teacher(schedule)), uniform(8, start=0.97, end=0.02)
    student, whole = mixture_teacher(schedule), 3
    visits = visited(Spy(teacher, times, clip=clip), student, 9, whole)
    for update, (x_t, places, _) in enumerate(visits):
        for lane in range(whole):
            steps = update + lane * 4 // whole
            walk, k = steps // 4 * whole + lane, steps % 4
            expected = noise_of_walk(walk)
            if k == 0 and not schedule.variance_preserving:
                expected = schedule.at(torch.tensor(times[0])).sigma * expected
            if k:
                expected = sample(teacher, expected, times[: 2 * k + 1], clip=clip)
            torch.testing.assert_close(x_t[lane], expected[0], rtol=1e-6, atol=1e-6)
            assert [float(t[lane]) for t in places] == list(times[2 * k : 2 * k + 3])


def test_the_exact_student_has_no_loss():
    teacher, times = mixture_teacher(Cosine()), uniform(8)
    walked = Walked(Halve(teacher, times), NoData(shape=(2,)))
    student = ExactRows(teacher, times)
    for update in range(5):
        loss = walked(student, zeros(4), draw_at(update, 4))
        assert loss.shape == (4,) and loss.abs().max() < 1e-20


@pytest.mark.parametrize(("steps", "whole"), [(2, 1), (2, 5), (8, 1), (8, 3), (8, 4), (8, 11)])
def test_two_teacher_forwards_a_target(steps, whole):
    """After the first update, whose states are walked to; of one step nothing is."""
    teacher = Counted(gaussian_teacher(Cosine()))
    walked = Walked(Halve(teacher, uniform(steps)), NoData(shape=(2,)))
    walked(gaussian_teacher(Cosine()), zeros(whole), draw_at(0, whole))
    assert teacher.calls == 2 * (steps // 2 - 1) + 2
    for update in range(1, 12):
        walked(gaussian_teacher(Cosine()), zeros(whole), draw_at(update, whole))
        assert teacher.calls == 2 * (steps // 2 - 1) + 2 * (update + 1)
    assert walked.cost(10, whole) == 10 * whole * 5 + 2 * whole * (steps // 2 - 1)


@pytest.mark.parametrize("whole", [1, 3, 4, 10])
def test_all_times_are_visited_equally(whole):
    """In M updates every lane is once at every time; a batch is spread over them."""
    teacher = Kept(gaussian_teacher(Cosine()))
    visits = visited(Spy(teacher, uniform(8)), gaussian_teacher(Cosine()), 8, whole)
    times = torch.stack([places[0] for _, places, _ in visits])
    for lane in times.T:
        assert sorted(lane.tolist()) == sorted(2 * list(uniform(4)[:-1]))
    counts = torch.tensor([[int((row == t).sum()) for t in uniform(4)[:-1]] for row in times])
    assert int(counts.max() - counts.min()) <= 1


@pytest.mark.parametrize("whole", [1, 2, 5, 9])
def test_one_step_students_see_noise_alone(whole):
    teacher = Kept(gaussian_teacher(Cosine()))
    visits = visited(Spy(teacher, uniform(2)), gaussian_teacher(Cosine()), 3, whole)
    for update, (x_t, _, _) in enumerate(visits):
        expected = torch.cat([noise_of_walk(update * whole + lane) for lane in range(whole)])
        assert torch.equal(x_t, expected)


@pytest.mark.parametrize("start", [1, 3, 4, 6])
def test_a_resumed_run_walks_on_to_the_bit(start):
    teacher = Kept(wobbly_teacher(Cosine(), V()))
    student = wobbly_teacher(Cosine(), V())
    whole = visited(Spy(teacher, uniform(8)), student, 8, 5)
    later = visited(Spy(teacher, uniform(8)), student, 8, 5, start=start)
    for a, b in zip(whole[start:], later, strict=True):
        assert torch.equal(a[0], b[0])


def test_a_memo_of_another_update_is_not_used():
    """The same update again, or another stage, is what it would be alone."""
    teacher = Kept(wobbly_teacher(Cosine(), V()))
    spy, student = Spy(teacher, uniform(8)), wobbly_teacher(Cosine(), V())
    walked = Walked(spy, NoData(shape=(2,)))
    for update in (0, 1, 1, 7, 2):
        walked(student, zeros(3), draw_at(update, 3))
    last = teacher.visits[-1][0]
    alone = [v[0] for v in visited(spy, student, 8, 3)]
    assert torch.equal(last, alone[2])
    other = Draw(seeded(2), 3, slice(0, 3), (SEED, STAGE + 1, 2))
    walked(student, zeros(3), other)
    assert not torch.equal(teacher.visits[-1][0], alone[2])
    walked(student, zeros(3), draw_at(2, 3))
    assert torch.equal(teacher.visits[-1][0], alone[2])


@pytest.mark.parametrize("parts", [(1, 4), (2, 5)])
def test_micro_batches_walk_the_lanes_of_the_whole(parts):
    teacher = Kept(wobbly_teacher(Cosine(), V()))
    spy, student, whole = Spy(teacher, uniform(8)), wobbly_teacher(Cosine(), V()), 7
    all_of_it = visited(spy, student, 6, whole)
    a, b = parts
    pieces = [
        visited(spy, student, 6, whole, part=part)
        for part in (slice(0, a), slice(a, b), slice(b, whole))
    ]
    for update, (x_t, _, _) in enumerate(all_of_it):
        joined = torch.cat([piece[update][0] for piece in pieces])
        torch.testing.assert_close(joined, x_t, rtol=1e-12, atol=1e-12)


def test_every_condition_in_turn():
    """Label k of walk w is that of the order of an epoch, whatever the batch."""
    teacher = Kept(mixture_teacher(Cosine()))
    data, spy = NoData(labels=(0, 2, 1), shape=(2,)), Spy(teacher, uniform(4))
    visits = visited(spy, mixture_teacher(Cosine()), 6, 3, data=data)
    for update, (_, _, cond) in enumerate(visits):
        steps = [update + lane * 2 // 3 for lane in range(3)]
        walks = [s // 2 * 3 + lane for lane, s in enumerate(steps)]
        order = [(0, 2, 1)[int(rows(SEED, STAGE, w, 1, 3))] for w in walks]
        assert cond.label.tolist() == order
    walks = torch.arange(9)
    course = Course(spy, data, SEED, STAGE, torch.zeros(1, 2))
    assert course.walks(walks).rows.bincount().tolist() == [3, 3, 3]


def test_the_scale_is_constant_within_a_walk():
    teacher = Kept(Denoiser(Listening(), Cosine(), V()))
    spy = Spy(teacher, uniform(8))
    walked = Walked(AnyScale(spy, (1.0, 3.0)), NoData(shape=(2,)))
    scales = []
    for update in range(8):
        walked(Denoiser(Listening(), Cosine(), V()), zeros(4), draw_at(update, 4))
        scales.append(teacher.visits[-1][2].guidance_scale)
    for lane in range(4):  # a walk of four steps begins at update -lane mod 4
        own = [float(s[lane]) for s in scales]
        first = 4 - lane
        assert len(set(own[first : first + 4])) == 1 and own[first] != own[first - 1]
    everything = torch.stack(scales)
    assert 1 <= everything.min() < 1.8 and 2.2 < everything.max() <= 3


def test_the_guided_teacher_walks_at_every_time():
    """The first guided stage: its states are DDIM's of the guided teacher, its times cover all."""
    teacher, student = mixture_teacher(Cosine()), mixture_teacher(Cosine())
    guided = MatchGuided(teacher, 3, (2.0, 2.0))
    data = NoData(labels=(1,), shape=(2,))
    course = Course(guided, data, SEED, STAGE, torch.zeros(WALK, 2))
    lanes = Lanes(course, slice(0, WALK), WALK)
    state = lanes.at(0)
    t, t_next = state.places
    assert torch.equal(t.sort(descending=True).indices, torch.arange(WALK))
    assert (t[:-1] > t_next[:-1]).all() and (t_next >= EDGE).all()
    for lane in (0, 1, 5, 63):
        jitter = float(state.walks.draws[lane, 0])
        times = tuple(1 - (k + jitter) / WALK for k in range(lane + 1))
        assert float(t[lane]) == pytest.approx(times[-1], abs=1e-12)
        expected = noise_of_walk(lane)
        if lane:
            condition = Cond(label=torch.tensor([1]))
            expected = sample(Guided(teacher, 2.0, 3), expected, times, cond=condition)
        torch.testing.assert_close(state.x_t[lane], expected[0], rtol=1e-6, atol=1e-6)
    loss = Walked(guided, data)(student, zeros(4), draw_at(0, 4))
    assert loss.shape == (4,) and (loss > 0).all()


def test_the_steps_of_a_guided_walk_are_clipped_as_the_teachers_sampler_clips():
    teacher = mixture_teacher(Cosine())
    states = []
    for clip in (None, Clip(0.2)):
        guided = MatchGuided(teacher, 3, (4.0, 4.0), clip=clip)
        course = Course(guided, NoData(labels=(1,), shape=(2,)), SEED, STAGE, torch.zeros(8, 2))
        states.append(Lanes(course, slice(0, 8), 8).at(0).x_t[-1])
    assert states[0].abs().max() > 0.35 and states[1].abs().max() < 0.35


@pytest.mark.parametrize("levels", [3, 10, 100])
def test_a_tables_times_are_visited_equally(levels):
    teacher = mixture_teacher(Cosine())
    guided = MatchGuided(teacher, 3, (2.0, 2.0), levels=levels)
    length = guided.walk_length
    assert length == min(WALK, levels)
    k = torch.arange(length).repeat_interleave(1000)
    jitter = (torch.arange(1000) + 0.5).div(1000).repeat(length)
    t, t_next = guided.walk_places(k, jitter)
    counts = (t * levels).round().long().bincount(minlength=levels + 1)
    assert counts[0] == 0 and counts.sum() == 1000 * length
    assert (counts[1:].max() - counts[1:].min()) <= 0.02 * counts[1:].max() + 1
    assert ((t * levels - (t * levels).round()).abs() < 1e-9).all() and (t_next > 0).all()


def test_an_eps_teacher_is_read_where_it_is_readable():
    """Below its last readable SNR the target's x0 is about the mean of the data, and mixes to x_t."""
    teacher = gaussian_teacher(Cosine(), parameterisation=Eps())
    match = Match(teacher, Cosine(), snr_plus_one)
    x_t, t = torch.randn(500, 2, generator=seeded()), torch.linspace(0.05, 1, 500)
    target = match.target(x_t, (t,), None)
    level = level_of(Cosine(), t, x_t)
    torch.testing.assert_close(level.mix(target.x0, target.eps), x_t)
    readable = Cosine().at(t).logsnr.exp() >= 0.01
    plain = gaussian_teacher(Cosine())(x_t, t)
    torch.testing.assert_close(target.x0[readable], plain.x0[readable])
    assert 0 < int((~readable).sum()) < 100
    assert (target.x0[~readable] - plain.x0[~readable]).abs().max() < 0.12
    assert torch.isfinite(target.x0).all() and torch.isfinite(target.eps).all()


def test_an_eps_teachers_walk_reaches_the_data():
    teacher = gaussian_teacher(Cosine(), parameterisation=Eps())
    match = Match(teacher, Cosine(), snr_plus_one)
    course = Course(match, NoData(shape=(2,)), SEED, STAGE, torch.zeros(640, 2))
    state = Lanes(course, slice(0, 640), 640).at(0)
    last = state.x_t[state.k == WALK - 1]
    assert float(last.mean()) == pytest.approx(0.3, abs=0.25)
    assert float(last.std()) == pytest.approx(0.5, abs=0.2)


def test_labels_are_dropped_by_the_walk():
    teacher = Kept(Denoiser(Listening(), Cosine(), V()))
    match = Match(teacher, Cosine(), snr_plus_one, drop=0.5, null=9)
    walked = Walked(match, NoData(labels=(1,), shape=(2,)))
    walked(Denoiser(Listening(), Cosine(), V()), zeros(64), draw_at(0, 64))
    first = teacher.denoiser.net.conditions[-1].label
    walked(Denoiser(Listening(), Cosine(), V()), zeros(64), draw_at(1, 64))
    second = teacher.denoiser.net.conditions[-1].label
    assert 16 < int((first == 9).sum()) < 48 and set(first.tolist()) == {1, 9}
    assert int((first != second).sum()) <= 1  # one walk has ended


def test_each_thing_drawn_for_a_walk_has_numbers_of_its_own():
    """The jitter of its times, its guidance scale and whether its label is dropped are independent."""
    match = Match(mixture_teacher(Cosine()), Cosine(), snr_plus_one, drop=0.5, null=9)
    data = NoData(labels=(1,), shape=(2,))
    course = Course(AnyScale(match, (1.0, 2.0)), data, SEED, STAGE, torch.zeros(50, 2))
    walks = course.walks(torch.arange(50))
    state = course.state(torch.zeros(50, 2), walks, torch.zeros(50, dtype=torch.long))
    jitter, scale, chance = walks.draws.unbind(1)
    torch.testing.assert_close(state.places[0], (1 - jitter / WALK).clamp(EDGE, 1 - EDGE))
    torch.testing.assert_close(state.cond.guidance_scale, 1 + scale)
    assert torch.equal(state.cond.label == 9, chance < 0.5)


def test_stochastic_walks_are_the_stochastic_samplers():
    """The lanes of two jumps a target: the states of the sampler whose student is the target itself."""
    schedule, times = Cosine(), uniform(8)
    teacher = mixture_teacher(schedule)
    halve = HalveJumps(teacher, times)
    course = Course(halve, NoData(shape=(2,)), SEED, STAGE, torch.zeros(4, 2))
    state = Lanes(course, slice(0, 4), 4).at(0)
    exact = ExactRows(teacher, times, offsets=(2, 4))
    for lane in range(1, 4):
        noise = key(SEED, STAGE, 0x57414C4B)

        def fresh(x, step, lane=lane, noise=noise):
            return sample_noise(noise, [lane], (2,), step=step).double()

        step = stochastic(times[::2], schedule, fresh)
        # The last step is DDIM's, so one more is walked than is compared.
        states = []

        def keep(x, history, to, model_fn, step=step, states=states):
            states.append(step(x, history, to, model_fn))
            return states[-1]

        sample(exact, noise_of_walk(lane), times[::2][:4], keep)
        torch.testing.assert_close(state.x_t[lane], states[lane - 1][0], rtol=1e-6, atol=1e-6)
        assert float(state.places[0][lane]) == times[2 * lane]


@pytest.mark.parametrize("whole", [1, 3, 8])
def test_the_student_walks_with_its_present_weights(whole):
    schedule, times = Cosine(), uniform(8)
    student, teacher = wobbly_teacher(schedule, V()), Kept(mixture_teacher(schedule))
    walked = Walked(Spy(teacher, times), NoData(walk="student", shape=(2,)))
    for update in (0, 1, 5):
        with torch.no_grad():
            student.net.gain += 0.1
        loss = walked(student, zeros(whole), draw_at(update, whole))
        assert loss.requires_grad and not teacher.visits[-1][0].requires_grad
        x_t, places, _ = teacher.visits[-1]
        for row in range(whole):
            walk, k = divmod(update * whole + row, 4)
            expected = noise_of_walk(walk)
            if k:
                expected = sample(student, expected, times[::2][: k + 1])
            torch.testing.assert_close(x_t[row], expected[0], rtol=1e-6, atol=1e-6)
            assert float(places[0][row]) == times[2 * k]
    assert student.training


@pytest.mark.parametrize("whole", [1, 2, 3, 4, 7, 8])
def test_the_cost_of_a_students_walks_is_counted(whole):
    teacher, student = mixture_teacher(Cosine()), wobbly_teacher(Cosine(), V())
    walked, samples = Walked(Halve(teacher, uniform(8)), NoData(walk="student", shape=(2,))), []
    student.register_forward_hook(lambda net, args, out: samples.append(len(args[0])))
    for updates in range(1, 11):
        walked(student, zeros(whole), draw_at(updates - 1, whole))
        # The one forward with gradients costs three, and the teacher's two.
        assert walked.cost(updates, whole) == sum(samples) + updates * whole * 4


def test_a_clipped_student_walks_clipped():
    schedule, times, clip = Cosine(), uniform(8), Clip(0.3)
    student, teacher = wobbly_teacher(schedule, V()), Kept(mixture_teacher(schedule))
    walked = Walked(Spy(teacher, times, clip=clip), NoData(walk="student", shape=(2,)))
    walked(student, zeros(4), draw_at(0, 4))
    expected = sample(student, noise_of_walk(0), times[::2][:4], clip=clip)
    torch.testing.assert_close(teacher.visits[-1][0][3], expected[0], rtol=1e-6, atol=1e-6)


def test_outside_of_training_states_are_noise():
    teacher = Counted(gaussian_teacher(Cosine()))
    walked = Walked(Halve(teacher, uniform(64)), NoData(shape=(2,)))
    loss = walked(gaussian_teacher(Cosine()), zeros(5), Draw.all(seeded(), 5))
    assert loss.shape == (5,) and teacher.calls == 2


def test_the_guided_stage_is_measured_at_other_walks_always_the_same():
    """By scale, as with data: an exact student has no error, and training's walks are not touched."""
    teacher, data = mixture_teacher(Cosine()), NoData(labels=(0, 1), shape=(2,))
    counted = Counted(teacher)
    walked = Walked(MatchGuided(counted, 3, (1.0, 3.0)), data)

    def exact(x, t, cond):
        if float(cond.guidance_scale[0]) == 1:
            return teacher(x, t, Cond(label=cond.label))
        return Guided(teacher, cond.guidance_scale, 3)(x, t, Cond(label=cond.label))

    draw = Draw.all(seeded(8), 4)
    first = walked.measure(exact, zeros(4), draw)["x0_error_by_scale"]
    assert list(first) == ["1", "1.5", "2", "2.5", "3"] and max(first.values()) < 1e-9
    calls = counted.calls
    wrong = walked.measure(teacher, zeros(4), Draw.all(seeded(8), 4))["x0_error_by_scale"]
    assert counted.calls == calls + 2 and wrong["1"] < 1e-9 < wrong["3"]
    assert not walked._lanes
    assert Walked(Halve(teacher, uniform(4)), data).measure(teacher, zeros(4), draw) == {}


def test_what_compares_with_data_is_refused():
    class Own(Objective):
        pass

    with pytest.raises(ConfigError, match="Own compares with data"):
        Walked(Own(), NoData())
    with pytest.raises(ConfigError, match="Denoise compares with data"):
        list(without_data(Denoising().stages(DenoiserOnly(gaussian_teacher(Cosine()))), NoData()))
    for method in (Shrink(depth=2), Denoising()):
        with pytest.raises(ConfigError, match="--data none has none"):
            method.check_without_data()
    Progressive().check_without_data()


def test_with_data_and_without_the_student_learns_one_thing():
    """At one state, one time and one condition the loss with data and that of a walk are the same."""
    teacher, student = mixture_teacher(Cosine()), wobbly_teacher(Cosine(), V())
    halve = Halve(teacher, uniform(2))
    x = torch.randn(6, 2, generator=seeded())
    cond = with_scale(Cond(label=torch.arange(6) % 3), torch.ones(6))
    places = halve.walk_places(torch.zeros(6, dtype=torch.long), torch.zeros(6))
    target = halve.target(x, places, cond)
    direct = halve.loss(student(x, places[0], cond), target)

    class Fixed(Draw):
        def normal(self, like):
            return x

    with_data = halve(student, Batch(torch.zeros(6, 2), cond), Fixed.all(seeded(), 6))
    torch.testing.assert_close(with_data, direct, rtol=1e-7, atol=1e-9)
