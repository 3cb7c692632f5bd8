"""Cached walks: exact students have no loss, an update asks no teacher, options change what they say."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from halfstep.batch import Batch
from halfstep.diffusion.analytic import mixture_teacher
from halfstep.diffusion.denoiser import level_of
from halfstep.diffusion.prediction import Eps, Prediction, V
from halfstep.diffusion.samplers import noise_of, sample, STEPS
from halfstep.diffusion.schedules import Cosine, Karras, RectifiedFlow, VPLinear
from halfstep.diffusion.time_grids import uniform
from halfstep.errors import ConfigError
from halfstep.methods import CachedWalks, DenoiserOnly
from halfstep.methods.diffusion.cached_walks import Landing
from halfstep.methods.diffusion.kept_walks import WalkOrder
from halfstep.methods.diffusion.matching import arriving_at
from halfstep.rng import Draw
from tests.support.denoisers import Counted, named, seeded, wobbly_teacher
from tests.support.walks import source_of

pytestmark = pytest.mark.usefixtures("float64")
FINE = uniform(16)


class Walking:
    """The exact student: walks the teacher to the end of its segment, and says how one step gets there."""

    def __init__(self, teacher, times, solver):
        self.teacher, self.times, self.step = teacher, times, STEPS[solver]

    def __call__(self, x, t, cond=None):
        schedule = self.teacher.schedule
        preds = [self._one(schedule, x[k : k + 1], t[k : k + 1]) for k in range(len(x))]
        return Prediction(*(torch.cat([getattr(p, of) for p in preds]) for of in ("x0", "eps")))

    def _one(self, schedule, x, t):
        end = self.times[self.times.index(t.item()) + 1]
        grid = FINE[FINE.index(t.item()) : FINE.index(end) + 1]
        y = sample(self.teacher, noise_of(schedule, x, grid[0]), grid, self.step)
        start, stop = level_of(schedule, t, x), arriving_at(schedule, torch.full_like(t, end), x)
        rows = [[start.alpha.item(), start.sigma.item()], [stop.alpha.item(), stop.sigma.item()]]
        both = torch.linalg.solve(torch.tensor(rows), torch.stack([x[0], y[0]]))
        return Prediction(both[:1], both[1:])


def draw(update=0, batch=6, rows=None, seed=0, stage=0):
    generator = torch.Generator().manual_seed(0)
    return Draw(generator, batch, rows or slice(0, batch), (seed, stage, update))


def landing(source, times, order=None, **more):
    count = len(source.walks)
    return Landing(source, times, order=order or WalkOrder(count, updates=10), **more)


def zeros(n):
    return Batch(torch.zeros(n, 2))


@pytest.mark.parametrize("solver", ["ddim", "heun"])
@pytest.mark.parametrize("schedule", [Cosine(), VPLinear(), RectifiedFlow(), Karras()], ids=named)
def test_the_exact_student_has_no_loss_at_any_number_of_steps(schedule, solver):
    teacher = mixture_teacher(schedule)
    source = source_of(teacher, torch.randn(3, 2, generator=seeded(1)), FINE, solver)
    for steps in (16, 8, 4, 2, 1):
        times = FINE[:: 16 // steps]
        objective, student = landing(source, times), Walking(teacher, times, solver)
        pairs = 3 * steps
        loss = objective(student, zeros(pairs), draw(batch=pairs))  # every pair of walk and segment
        assert loss.shape == (pairs,)
        assert float(loss.max()) < 1e-20, steps
        wrong = objective(lambda x, t, cond: teacher(x, t), zeros(pairs), draw(batch=pairs))
        assert steps == 16 or float(wrong.max()) > 1e-6


@pytest.mark.parametrize("schedule", [Cosine(), VPLinear(), RectifiedFlow(), Karras()], ids=named)
def test_the_exact_student_samples_the_walk_in_any_number_of_steps(schedule):
    teacher, noise = mixture_teacher(schedule), torch.randn(4, 2, generator=seeded(2))
    end = source_of(teacher, noise, FINE, "heun").walks.at(torch.arange(4), torch.full((4,), 16))
    for steps in (8, 4, 2, 1):
        times = FINE[:: 16 // steps]

        class Student(Walking):
            schedule = teacher.schedule

        reached = sample(Student(teacher, times, "heun"), noise, times)
        torch.testing.assert_close(reached, end, rtol=0, atol=1e-12)


def test_an_update_asks_no_teacher():
    teacher = Counted(mixture_teacher(Cosine()))
    source = source_of(teacher, torch.randn(4, 2, generator=seeded(1)), FINE)
    before, objective = teacher.calls, landing(source, FINE[::4])
    for update in range(5):
        objective(lambda x, t, cond: Prediction(x, x), zeros(6), draw(update))
    assert teacher.calls == before
    assert objective.forwards == 3


def test_an_epoch_has_every_walk_and_segment_once():
    order = WalkOrder(5, updates=100)
    rows = [order.pairs(draw(update, batch=10), 4) for update in range(2)]
    pairs = {(int(i), int(k)) for walks, places in rows for i, k in zip(walks, places, strict=True)}
    assert pairs == {(i, k) for i in range(5) for k in range(4)}
    other = order.pairs(draw(0, batch=10, seed=1), 4)
    assert not all(map(torch.equal, rows[0], other))
    later = order.pairs(draw(0, batch=10, stage=1), 4)
    assert not all(map(torch.equal, rows[0], later))


def test_slices_of_a_batch_are_the_batch():
    order = WalkOrder(7, updates=100)
    whole = order.pairs(draw(3, batch=8), 2)
    parts = [order.pairs(draw(3, batch=8, rows=slice(k, k + 3)), 2) for k in (0, 3, 6)]
    for k in (0, 1):
        assert torch.equal(torch.cat([part[k] for part in parts]), whole[k])


def test_new_walks_come_a_ninth_after_each_tenth():
    order = WalkOrder(100, new=18, updates=50)
    assert [order.walks_at(u) for u in (0, 4, 5, 9, 10, 44, 45, 49)] == [
        100, 100, 102, 102, 104, 116, 118, 118
    ]  # fmt: skip
    assert [WalkOrder(100, updates=50).walks_at(u) for u in (0, 49)] == [100, 100]
    # Where walks are added the order begins anew, and reads the new ones too.
    read = torch.cat([order.pairs(draw(u, batch=24), 1)[0] for u in range(45, 50)])
    assert sorted(read[:118].tolist()) == list(range(118))
    assert WalkOrder(100, new=18, updates=0).walks_at(0) == 100


def test_the_order_begins_anew_with_the_first_update_of_a_tenth():
    """Of 55 updates the second tenth begins with update 6."""
    order = WalkOrder(11, new=9, updates=55)
    assert [order.walks_at(u) for u in (5, 6)] == [11, 12]
    epoch = torch.cat([order.pairs(draw(u, batch=6), 1)[0] for u in (6, 7)])
    assert sorted(epoch.tolist()) == list(range(12))


def test_without_enough_walks_and_without_a_run_that_makes_them():
    source = source_of(mixture_teacher(Cosine()), torch.randn(4, 2), FINE)
    objective = landing(source, FINE[::4], WalkOrder(5, updates=10))
    with pytest.raises(ConfigError, match="5 walks are needed, and there are 4"):
        objective(None, zeros(6), draw())
    source.make = lambda count: (
        source_of(mixture_teacher(Cosine()), torch.randn(count, 2), FINE).walks
    )
    objective(lambda x, t, cond: Prediction(x, x), zeros(6), draw())
    assert len(source.walks) == 5


def test_one_walk_one_sample_and_a_batch_as_wide_as_the_image():
    teacher = wobbly_teacher(Cosine(), Eps())
    for shape, batch in (((1, 8, 8), 8), ((2,), 1)):
        source = source_of(teacher, torch.randn(1, *shape, generator=seeded(1)), FINE[1:])
        objective = landing(source, FINE[1:][::5])
        seen = []

        def student(x, t, cond, seen=seen):
            seen.append((x, t))
            return Prediction(0 * x, 0 * x)

        loss = objective(student, Batch(torch.zeros(batch, *shape)), draw(batch=batch))
        x, t = seen[0]
        assert loss.shape == (batch,)
        for row, time in zip(x, t, strict=True):
            kept = source.walks.at(torch.tensor([0]), source.walks.places([float(time)]))[0]
            assert torch.equal(row, kept)


def test_outside_of_training_noise_stands_for_walks():
    """Checks and timings need no walk."""
    source = source_of(mixture_teacher(Cosine()), torch.randn(1, 2), FINE)
    source.walks = None
    rehearsal = Draw.all(torch.Generator().manual_seed(0), 5)
    loss = landing_without_walks(source)(lambda x, t, cond: Prediction(x, x), zeros(5), rehearsal)
    assert bool(loss.isfinite().all())


def landing_without_walks(source):
    return Landing(source, FINE[::4], order=WalkOrder(1, updates=1))


# -- the plan --------------------------------------------------------------------------------------


def teacher(schedule=None, **more):
    return DenoiserOnly(mixture_teacher(schedule or Cosine()), **more)


METHOD = CachedWalks(start=16, first=8, updates=(10,), noises=100)


def test_the_ends_of_the_first_students_segments_are_kept():
    assert METHOD.points == (0, 2, 4, 6, 8, 10, 12, 14, 16)
    assert CachedWalks(start=6, first=2, updates=(1,)).points == (0, 3, 6)
    every = CachedWalks(
        start=8, first=8, updates=(1,), noises=4
    )  # the student takes the teacher's steps
    every.check(teacher())
    assert every.points == tuple(range(9))


def test_the_first_stage_pays_for_the_walks():
    """Heun calls twice a step but the last: 31 calls of 100 walks, and 3 forwards of 6 samples an update."""
    plan = METHOD.plan(teacher())
    assert [(s.name, s.updates, s.forwards, s.once) for s in plan] == [
        ("0008-steps", 10, 3, 3100), ("0004-steps", 10, 3, 0), ("0002-steps", 20, 3, 0),
        ("0001-steps", 20, 3, 0),
    ]  # fmt: skip
    costs = [s.objective.cost(s.updates, 6) for s in METHOD.stages(teacher())]
    assert costs == [3100 + 180, 180, 360, 360]
    ddim = replace(METHOD, solver="ddim", new_noises=9)
    assert [s.once for s in ddim.plan(teacher())] == [109 * 16, 9 * 16, 9 * 16, 9 * 16]
    assert [s.objective.cost(0, 6) for s in ddim.stages(teacher())] == [109 * 16, *[9 * 16] * 3]
    assert [s.objective.order.begin for s in ddim.stages(teacher())] == [100, 109, 118, 127]


def test_guidance_costs_two_calls_and_is_said_of_the_student():
    guided = replace(METHOD, guidance_scale=2.0)
    plan = guided.plan(teacher(unconditional=3))
    assert plan[0].once == 2 * 3100
    assert all(stage.guidance_range == (2.0, 2.0) for stage in plan)
    first = next(guided.stages(teacher(unconditional=3)))
    assert first.objective.cost(10, 6) == 2 * 3100 + 180
    assert METHOD.plan(teacher(unconditional=3))[0].guidance_range is None


def test_the_number_of_noises_follows_from_the_updates():
    open_ = replace(METHOD, noises=None)
    counts = [replace(open_, updates=(n,)).first_noises for n in (10, 500, 50_000)]
    assert counts == [1_000, 6_000, 50_000]
    one = replace(open_, first=1, updates=(500,))
    assert one.plan(teacher())[0].updates == 1_000  # twice, as of every student of 2 steps or 1
    assert one.first_noises == 12_000
    assert open_.sized(teacher(), 99).noises == 1_000
    assert METHOD.sized(teacher(), 99).noises == 100
    big = CachedWalks().sized(teacher(), 16_000)
    assert (big.updates, big.noises) == ((1_000,), 12_000)


def test_updates_that_are_given_later_leave_the_walks_as_they_are():
    open_ = CachedWalks(start=16, updates=(500,))
    other = open_.with_updates(teacher(), (7, 7, 7, 7))
    assert (other.updates, other.noises) == ((7, 7, 7, 7), 6_000)
    one = replace(open_, first=1).with_updates(teacher(), (8,))
    assert (one.plan(teacher())[0].updates, one.noises) == (8, 12_000)
    eps = DenoiserOnly(wobbly_teacher(Cosine(), Eps()))
    after = open_.with_updates(eps, (9, 7, 7, 7, 7))
    assert [stage.updates for stage in after.plan(eps)] == [9, 7, 7, 7, 7]


@pytest.mark.parametrize("budget", [460_800, 928_000])
def test_a_budget_pays_for_walks_and_updates(budget):
    for method in (METHOD, replace(METHOD, noises=3_000), CachedWalks(start=16)):
        method = method.with_budget(teacher(), budget, 64)
        costs = [s.objective.cost(s.updates, 64) for s in method.stages(teacher())]
        assert 0.99 * budget <= sum(costs) <= budget


def test_each_student_starts_as_the_one_before_or_as_the_teacher():
    pipeline = DenoiserOnly(wobbly_teacher(Cosine(), V()))
    for warm, gains in ((True, [1.7, 2.7, 3.7]), (False, [1.7, 1.7, 1.7])):
        method = CachedWalks(start=8, first=4, updates=(1,), noises=10, warm_start=warm)
        starts = []
        for stage in method.stages(pipeline):
            starts.append(stage.student.net.gain.item())
            with torch.no_grad():
                stage.student.net.gain += 1
        assert starts == pytest.approx(gains)


def test_clipped_walks_make_students_that_clip_nothing():
    plan = replace(METHOD, target_clip=1.0).plan(teacher(clip=1.0))
    assert not any(stage.clips for stage in plan)
    assert all(stage.clips for stage in METHOD.plan(teacher(clip=1.0)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"solver": "ancestral"}, "'ancestral' draws noise"),
        ({"solver": "euler-maruyama"}, "'euler-maruyama' draws noise"),
        ({"solver": "diffusers:DDPMScheduler"}, "draws noise"),
        ({"solver": "scheduler"}, "that of a published model"),
        ({"solver": "huen"}, "perhaps you meant 'heun'"),
        ({"solver": "dpmpp-3s", "start": 16}, "write start=24"),
        ({"start": 12}, "multiple"),
        ({"first": 6}, "power of two"),
        ({"weighting": "snr"}, "weight"),
        ({"noises": 0}, "noises"),
        ({"new_noises": -1}, "new_noises"),
    ],
    ids=str,
)
def test_options_that_cannot_be(options, words):
    with pytest.raises(ConfigError, match=words):
        CachedWalks(**options)


@pytest.mark.parametrize(
    ("method", "given", "words"),
    [
        (replace(METHOD, guidance_scale=2.0), {}, "no null class"),
        (
            replace(METHOD, guidance_scale=2.0),
            {"unconditional": 3, "guidance_range": (1.0, 4.0)},
            "already",
        ),
        (METHOD, {"times": (FINE,)}, "made for steps of ddim"),
        (replace(METHOD, solver="ddim"), {"times": (FINE[::2],)}, "on its own grid"),
        (replace(METHOD, target_clip=0.5), {"clip": 1.0}, "target_clip"),
        (
            replace(METHOD, target_clip=1.0),
            {"clip": 1.0, "clipping": "x0"},
            "clips x0 alone",
        ),
        (replace(METHOD, solver="dpmpp-3s", start=24, grid="karras"), {}, "grid of its own"),
        (
            replace(METHOD, solver="dpmpp-3s", start=24, times=uniform(24)),
            {},
            "grid of its own: leave times out",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_teachers_that_cannot_be(method, given, words):
    with pytest.raises(ConfigError, match=words):
        method.check(teacher(**given))
    METHOD.check(teacher())


def test_a_single_step_solver_walks_to_data():
    """Its own grid ends above t = 0; its students' at 0."""
    method = CachedWalks(start=24, first=8, updates=(1,), noises=3, solver="dpmpp-3s")
    method.check(teacher())
    plan, [source] = method.plan(teacher()), [next(method.stages(teacher())).objective.source]
    assert source.times[-1] > 0
    assert plan[0].times[-1] == 0
    assert plan[0].times[:-1] == source.times[:-1:3]
    assert source.forwards == 24


def test_an_eps_teacher_becomes_a_v_teacher_first():
    method = CachedWalks(start=16, updates=(10,), noises=5)
    plan = method.plan(DenoiserOnly(wobbly_teacher(Cosine(), Eps())))
    assert [stage.name for stage in plan][:2] == ["v-teacher", "0008-steps"]


def test_networks_are_the_teachers_alone():
    method = replace(METHOD, guidance_scale=2.0)
    stage = next(method.stages(teacher(unconditional=3)))
    [network] = stage.objective.networks
    assert isinstance(network, nn.Module)
    assert network is stage.objective.source.teacher.unguided
