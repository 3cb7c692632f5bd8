"""The loss of parallel decoding: exact heads, the specification's numbers, and what is drawn and counted."""

from dataclasses import replace

import pytest
import torch

from halfstep.batch import Batch, Cond
from halfstep.diffusion.analytic import gaussian_teacher, mixture_teacher
from halfstep.diffusion.block_weights import block_weights
from halfstep.diffusion.denoiser import Denoiser, level_of, NetTime
from halfstep.diffusion.guidance import Guided
from halfstep.diffusion.loss_weighting import constant, truncated_snr
from halfstep.diffusion.prediction import Clip, Prediction, V
from halfstep.diffusion.schedules import BetaTable, Cosine, Karras, RectifiedFlow, VPLinear
from halfstep.diffusion.time_grids import uniform
from halfstep.methods.diffusion.parallel_decoding_loss import _middles, ParallelDecodingLoss
from halfstep.rng import Draw
from tests.support.denoisers import (
    Counted,
    Listening,
    named,
    READS,
    SCHEDULES,
    seeded,
    wobbly_teacher,
)
from tests.support.heads import ExactHeads
from tests.support.students import draw_of

pytestmark = pytest.mark.usefixtures("float64")
FINE = uniform(16)
SMOOTH = [Cosine(), RectifiedFlow(), VPLinear(), Karras()]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=named)


class Fixed:
    """A student whose heads say given numbers everywhere; head k is row k."""

    def __init__(self, schedule, heads):
        self.schedule, self.heads = schedule, torch.tensor(heads)

    def __call__(self, x, t, cond=None):
        heads = cond.heads if cond.heads.ndim == 3 else cond.heads[:, None]
        weights, copies = heads.transpose(0, 1).flatten(0, 1), heads.shape[1]
        x_t = x.repeat(copies, 1)
        x0 = (weights @ self.heads)[:, None].expand_as(x_t)
        return Prediction.from_x0(x0, x_t, level_of(self.schedule, t.repeat(copies), x_t))


def at(loss, n, k):
    """The loss at this pair alone."""

    class One(ParallelDecodingLoss):
        def blocks(self, draw):
            return torch.tensor([1]), torch.tensor([n])

        def within(self, length, draw):
            return torch.tensor([k - n])

    return One(*(getattr(loss, f) for f in loss.__dataclass_fields__))


@pytest.mark.parametrize("solver", ["euler", "midpoint"])
@every_schedule
def test_exact_heads_have_no_loss_at_any_pair(schedule, solver):
    teacher = mixture_teacher(schedule)
    fine = uniform(8)
    loss = ParallelDecodingLoss(teacher, fine, (8,), constant, solver)
    exact = ExactHeads(teacher, fine, midpoint=solver == "midpoint")
    batch = Batch(torch.rand(1, 2, generator=seeded()) * 2 - 1)
    for n in range(8):
        for k in range(n, 8):
            value = at(loss, n, k)(exact, batch, draw_of(n, 1))
            assert value.item() < 1e-24, (n, k)
    other = ExactHeads(teacher, fine, midpoint=solver == "euler")
    assert at(loss, 0, 7)(other, batch, draw_of(0, 1)).item() > 1e-12


@pytest.mark.parametrize("points", ["data", "noise"])
@pytest.mark.parametrize("solver", ["euler", "midpoint"])
@every_schedule
def test_exact_heads_have_no_loss_in_the_blocks_that_are_served(schedule, solver, points):
    teacher = mixture_teacher(schedule)
    loss = ParallelDecodingLoss(teacher, FINE, (8, 4, 2, 1), constant, solver, points)
    exact = ExactHeads(teacher, FINE, midpoint=solver == "midpoint")
    for update in range(2):
        draw = replace(draw_of(update, 16), place=(0, 0, update))
        batch = Batch(torch.rand(16, 2, generator=seeded(update)) * 2 - 1)
        assert loss(exact, batch, draw).max() < 1e-24


@pytest.mark.parametrize(
    ("schedule", "n", "k", "x_n", "expected"),
    [
        (Cosine(), 4, 6, 0.5, 0.02516562713601763),
        (Cosine(), 12, 14, 0.5, 0.11516039792513275),
        (RectifiedFlow(), 0, 3, -1.2, 0.0009146997882961578),
    ],
    ids=["4-6", "12-14", "0-3"],
)
def test_losses_of_the_specification(schedule, n, k, x_n, expected):
    """Heads n ... k - 1 say linspace(0.3, 0.1), head k says 0.2; the loss has the weight at t_n."""
    heads = [0.0] * 16
    heads[n : k + 1] = [*torch.linspace(0.3, 0.1, k - n).tolist(), 0.2]
    teacher = gaussian_teacher(schedule)

    class AtPoint(ParallelDecodingLoss):
        def blocks(self, draw):
            return torch.tensor([1]), torch.tensor([n])

        def within(self, length, draw):
            return torch.tensor([k - n])

        def _level(self, n, x):
            return level_of(schedule, *(torch.tensor([FINE[i]]) for i in n.tolist()), x)

    loss = AtPoint(teacher, FINE, (16,), truncated_snr)
    level = level_of(schedule, torch.tensor([FINE[n]]), torch.zeros(1, 1))
    draw = draw_of(0, 1)
    noise = draw_of(0, 1).normal(torch.zeros(1, 1))
    if float(level.alpha) > 0:
        x0 = (x_n - level.sigma * noise) / level.alpha
        value = loss(Fixed(schedule, heads), Batch(x0), draw)
        assert value.item() == pytest.approx(expected, abs=1e-12)
        return
    draw = Scripted(torch.full((1, 1), x_n))
    assert loss(Fixed(schedule, heads), Batch(torch.zeros(1, 1)), draw).item() == pytest.approx(
        expected, abs=1e-12
    )


class Scripted:
    """A draw with given noise."""

    place, whole, rows = None, 1, slice(0, 1)

    def __init__(self, noise):
        self.noise = noise

    def normal(self, like):
        return self.noise


@pytest.mark.parametrize(
    ("solver", "expected"), [("euler", 0.3739783152627189), ("midpoint", 0.383762593371448)]
)
def test_targets_of_the_specification(solver, expected):
    """n = 4, k = 6 of 16, heads 4 and 5 say 0.3 and 0.1: Xbar_k is 0.448..., and the eps is of x_n."""
    schedule = RectifiedFlow()
    teacher = Counted(gaussian_teacher(schedule))
    loss = ParallelDecodingLoss(teacher, FINE, (16,), solver=solver)
    n, k, x_n = torch.tensor([4]), torch.tensor([6]), torch.tensor([[0.5]])
    weights = torch.tensor([0.4545454545454546, 0.5454545454545454])
    level = level_of(schedule, torch.tensor([FINE[4]]), x_n)
    before = Prediction.from_x0((weights @ torch.tensor([0.3, 0.1])).reshape(1, 1), x_n, level)
    seen = level_of(schedule, torch.tensor([FINE[6]]), x_n).mix(before.x0, before.eps)
    assert seen.item() == pytest.approx(0.4484848484848485, abs=1e-14)
    target = loss.target(x_n, n, k, before, None)
    assert target.x0.item() == pytest.approx(expected, abs=1e-12)
    torch.testing.assert_close(level.mix(target.x0, target.eps), x_n)
    if solver == "euler":
        assert target.eps.item() == pytest.approx(0.5420072282457603, abs=1e-12)
    assert teacher.calls == (1 if solver == "euler" else 2)


@every_schedule
def test_a_block_of_one_step_is_the_teacher(schedule):
    """k = n: the target is the teacher's own prediction at x_n, whatever the heads say."""
    teacher = wobbly_teacher(schedule, V())
    loss = ParallelDecodingLoss(teacher, FINE, (16,))
    x = torch.randn(16, 3, generator=seeded())
    n = torch.arange(16)
    nan = torch.full_like(x, torch.nan)
    target = loss.target(x, n, n, Prediction(nan, nan), None)
    expected = teacher(x, torch.tensor(FINE[:-1]))
    torch.testing.assert_close(target.x0, expected.x0)
    torch.testing.assert_close(target.eps, expected.eps, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("schedule", SMOOTH, ids=named)
def test_the_middle_is_halfway_in_tau(schedule):
    levels = [schedule.at(torch.tensor(t)) for t in FINE]
    taus = [float(v.sigma / (v.alpha + v.sigma)) for v in levels[:-1]] + [0.0]
    middle = _middles(schedule, FINE, torch.device("cpu"))
    for k, m in enumerate(middle):
        level = schedule.at(m)
        tau = float(level.sigma / (level.alpha + level.sigma))
        assert tau == pytest.approx((taus[k] + taus[k + 1]) / 2, rel=1e-9)
        assert FINE[k] > m > FINE[k + 1]


def test_the_middle_is_at_least_the_first_level_and_never_in_the_gap_of_a_table():
    fine = (*(1 - k / 1000 for k in range(999)), 0.001, 0.0)
    fine = tuple(sorted({round(t, 12) for t in fine}, reverse=True))
    middle = _middles(
        BetaTable("scaled_linear", 1000, 0.00085, 0.012, zero_snr=True), fine, torch.device("cpu")
    )
    assert (
        middle[0] == 1.0
    )  # between 0.999 and 1 a zero-SNR table has no level: midpoint is Euler there
    assert middle[-1] == fine[-2] == 0.001
    assert bool((middle[1:-1] < torch.tensor(fine[1:-2])).all())
    first = _middles(Cosine(), (1.0, 1e-6, 0.0), torch.device("cpu"))
    assert first[-1] == 0.0  # cosine's sigma(0) is more than half of sigma there


def test_midpoint_in_the_gap_is_euler():
    table = BetaTable("scaled_linear", 16, zero_snr=True)
    teacher = mixture_teacher(table)
    fine = tuple(k / 16 for k in range(16, -1, -1))
    x = torch.randn(1, 2, generator=seeded())
    n = torch.tensor([0])
    pred = Prediction(x, x)
    euler, midpoint = (
        ParallelDecodingLoss(teacher, fine, (16,), solver=solver).target(x, n, n, pred, None)
        for solver in ("euler", "midpoint")
    )
    torch.testing.assert_close(euler.x0, midpoint.x0)


def test_every_block_that_is_served_comes_as_often():
    loss = ParallelDecodingLoss(wobbly_teacher(Cosine(), V()), FINE, (8, 4, 2, 1))
    seen = {}
    for update in range(4):
        length, block = loss.blocks(replace(draw_of(0, 8), place=(5, 1, update)))
        for pair in zip(length.tolist(), block.tolist(), strict=True):
            seen[pair] = seen.get(pair, 0) + 1
    assert seen == {
        (16 // count, block): 8 // count for count in (8, 4, 2, 1) for block in range(count)
    }


def test_steps_within_a_block_are_uniform():
    loss = ParallelDecodingLoss(wobbly_teacher(Cosine(), V()), FINE, (1,))
    steps = loss.within(torch.full((8000,), 16), draw_of(0, 8000))
    counts = steps.bincount(minlength=16)
    assert len(counts) == 16 and bool(((counts / 500 - 1).abs() < 4 * (1 / 500) ** 0.5).all())


def test_the_student_is_called_once_and_only_head_k_learns():
    from halfstep.models import build
    from halfstep.models.with_heads import with_heads

    torch.manual_seed(0)
    net = with_heads(build("mlp", {"width": 8, "depth": 1}), 16)
    student = Denoiser(net, Cosine(), V())
    calls = []
    net.register_forward_hook(lambda net, args, out: calls.append(len(args[0])))
    teacher = Denoiser(Listening(), Cosine(), V(), time=NetTime(scale=1.0))
    loss = ParallelDecodingLoss(teacher, FINE, (1,))
    loss.within(torch.tensor([16]), draw_of(3, 1))
    draw = draw_of(3, 1)
    draw.normal(torch.zeros(1, 2))
    [k] = loss.within(torch.tensor([16]), draw).tolist()
    loss(student, Batch(torch.zeros(1, 2)), draw_of(3, 1)).sum().backward()
    assert calls == [1] and len(teacher.net.times) == 1
    assert net.model.leave.bias.grad.any(1).nonzero().flatten().tolist() == [k]
    assert net.model.enter.weight.grad.any() and teacher.net.gain.grad is None


def test_conditions_reach_both_networks_and_the_teacher_sees_no_heads():
    student, teacher = (Denoiser(Listening(), Cosine(), V()) for _ in range(2))
    cond = Cond(label=torch.tensor([3, 1]))

    class Doubling:
        """A student that answers for both combinations."""

        def __call__(self, x, t, cond=None):
            pred = student(x, t, replace(cond, heads=None))
            assert cond.heads.shape == (2, 2, 16) and cond.label.tolist() == [3, 1]
            return Prediction(pred.x0.repeat(2, 1), pred.eps.repeat(2, 1))

    ParallelDecodingLoss(teacher, FINE, (4,))(
        Doubling(), Batch(torch.ones(2, 3), cond), draw_of(0, 2)
    )
    [heard] = teacher.net.conditions
    assert heard is cond and heard.heads is None


@pytest.mark.parametrize("points", ["data", "noise"])
def test_micro_batches_have_the_losses_of_the_batch(points):
    teacher = mixture_teacher(Cosine())
    loss = ParallelDecodingLoss(teacher, FINE, (8, 4, 2, 1), points=points)
    student = ExactHeads(mixture_teacher(Cosine(), parameterisation=V()), FINE, midpoint=True)
    batch = Batch(torch.randn(7, 2, generator=seeded()))
    draw = replace(draw_of(4, 7), place=(0, 0, 5))
    whole = loss(student, batch, draw)
    assert whole.min() > 0
    for a, b in ((0, 3), (3, 7)):
        part = loss(student, batch[a:b], Draw(seeded(4), 7, slice(a, b), (0, 0, 5)))
        torch.testing.assert_close(part, whole[a:b], rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("solver", ["euler", "midpoint"])
@pytest.mark.parametrize("points", ["data", "noise"])
def test_the_calls_are_those_that_the_cost_says(points, solver):
    teacher = Counted(mixture_teacher(Cosine()))
    loss = ParallelDecodingLoss(teacher, FINE, (8, 4, 2, 1), solver=solver, points=points)
    student, batch = ExactHeads(mixture_teacher(Cosine()), FINE), 13
    for update in range(3):
        draw = replace(draw_of(update, batch), place=(0, 0, update))
        loss(student, Batch(torch.zeros(batch, 2)), draw)
    teacher_rows = teacher.calls * batch
    assert student.calls + teacher_rows + 2 * 3 * batch == loss.cost(3, batch)
    assert loss.forwards == {"data": 4, "noise": 5.375}[points] + (solver == "midpoint")
    assert loss.cost(1000, 64) / 64000 == pytest.approx(
        4 + (solver == "midpoint") + (1.375 if points == "noise" else 0), rel=1e-3
    )


def test_a_guided_teacher_costs_two_calls():
    guided = Guided(mixture_teacher(Cosine()), 2.0, 3)
    assert ParallelDecodingLoss(guided, FINE, (1,)).forwards == 5
    assert ParallelDecodingLoss(guided, FINE, (1,), solver="midpoint").forwards == 7


@every_schedule
def test_a_walk_is_the_sampler_in_blocks(schedule):
    """x_n of each sample lies where its own blocks lead: compared with steps written by hand."""
    teacher = mixture_teacher(schedule)
    loss = ParallelDecodingLoss(teacher, FINE, (8, 4, 2, 1), points="noise")
    student = ExactHeads(teacher, FINE)
    draw = replace(draw_of(1, 16), place=(0, 0, 1))
    length, block = loss.blocks(draw)
    noise = torch.randn(16, 2, generator=seeded(8))
    found = loss.walked(student, noise, length, block, None, draw)
    scale = 1.0 if schedule.variance_preserving else schedule.at(torch.tensor(1.0)).sigma
    for row in range(16):
        x = scale * noise[row : row + 1]
        for k in range(int(length[row] * block[row])):  # exact heads walk as the teacher does
            t, to = (torch.tensor([FINE[j]]) for j in (k, k + 1))
            pred = teacher(x, t)
            x = level_of(schedule, to, x).mix(pred.x0, pred.eps)
        torch.testing.assert_close(found[row], x[0], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kind", ["x0-and-eps", "x0"])
def test_targets_of_a_clipped_teacher_are_its_clipped_walk(kind):
    """Exact heads of a teacher that clips lead where its clipped fine steps lead, also where eps stays."""
    schedule, clip = Cosine(), Clip(0.2, kind)
    teacher = mixture_teacher(schedule)
    loss = ParallelDecodingLoss(teacher, FINE, (16,), clip=clip)
    x = torch.randn(4, 2, generator=seeded())
    for k in (0, 5, 15):
        n = torch.full((4,), k)
        pred = loss.target(x, n, n, Prediction(x, x), None)
        t = torch.full((4,), FINE[k])
        clipped = clip(teacher(x, t), x, level_of(schedule, t, x))
        if k == 15:
            torch.testing.assert_close(pred.x0, clipped.x0)
            continue
        end = level_of(schedule, torch.full((4,), FINE[k + 1]), x)
        torch.testing.assert_close(end.mix(pred.x0, pred.eps), end.mix(clipped.x0, clipped.eps))


@pytest.mark.parametrize("heads", [[4.0, -4.0] * 8, [4.0] * 16], ids=["within", "beyond"])
def test_a_walk_clips_the_x0_of_a_block_and_not_of_each_head(heads):
    """Heads beyond the bound whose combination is within it are left alone."""
    schedule = Cosine()
    loss = ParallelDecodingLoss(
        mixture_teacher(schedule), FINE, (2,), points="noise", clip=Clip(0.5)
    )
    draw, noise = replace(draw_of(0, 2), place=(0, 0, 0)), torch.zeros(2, 1)

    class Student(Fixed):
        training = False

        def modules(self):
            return []

        def eval(self):
            return self

    walked = loss.walked(Student(schedule, heads), noise, *loss.blocks(draw), None, draw)
    [weights] = block_weights(schedule, FINE, torch.tensor([0]), torch.tensor([8]))
    x0 = weights @ torch.tensor(heads)
    assert (abs(x0) < 0.5) == (heads[1] < 0)
    x0 = x0.clamp(-0.5, 0.5)
    start, end = (schedule.at(torch.tensor(t)) for t in (1.0, 0.5))
    expected = end.alpha * x0 + end.sigma * (0 - start.alpha * x0) / start.sigma
    assert walked.flatten().tolist() == pytest.approx([0.0, float(expected)], abs=1e-12)


@pytest.mark.parametrize("shape", [(4, 4, 4), (1, 3, 4, 4), (4,)])
def test_batches_as_large_as_the_image_is_wide(shape):
    """Nothing is broadcast over the wrong axis: losses of a batch are those of its samples alone."""
    schedule = VPLinear()
    teacher = wobbly_teacher(schedule, V())
    loss = ParallelDecodingLoss(teacher, FINE, (4,))
    x0, eps = (
        torch.randn(4, *shape, generator=seeded()),
        torch.randn(4, *shape, generator=seeded(1)),
    )
    n, k = torch.tensor([0, 4, 8, 12]), torch.tensor([3, 4, 9, 15])
    before = Prediction(x0, eps)
    whole = loss.target(x0, n, k, before, None)
    for row in range(4):
        one = slice(row, row + 1)
        alone = loss.target(x0[one], n[one], k[one], Prediction(x0[one], eps[one]), None)
        torch.testing.assert_close(whole.x0[one], alone.x0)
        torch.testing.assert_close(whole.eps[one], alone.eps)


@pytest.mark.parametrize("reads", READS, ids=named)
def test_no_loss_for_a_network_that_is_its_teacher_with_one_step_blocks(reads):
    """A fresh bank says what the teacher says: with N blocks of N steps it is exact."""
    from halfstep.models import build
    from halfstep.models.with_heads import with_heads

    torch.manual_seed(1)
    net = build("mlp", {"dim": 2, "width": 8, "out_dim": 2 * reads.outputs}).double()
    times = uniform(8, start=0.9)
    teacher = Denoiser(net, VPLinear(), reads).freeze()
    student = Denoiser(with_heads(net, 8), VPLinear(), reads)
    loss = ParallelDecodingLoss(teacher, times, (8,))
    batch = Batch(torch.randn(16, 2, generator=seeded()))
    assert loss(student, batch, draw_of(0, 16)).max() < 1e-18
