"""One student of kept walks that is told where its step ends: a flow map from walks of any solver."""

import pytest
import torch

from halfstep.batch import Batch
from halfstep.diffusion.analytic import mixture_teacher
from halfstep.diffusion.denoiser import level_of
from halfstep.diffusion.prediction import Prediction
from halfstep.diffusion.samplers import noise_of, sample, STEPS
from halfstep.diffusion.schedules import Cosine, Karras, RectifiedFlow, VPLinear
from halfstep.diffusion.time_grids import uniform
from halfstep.methods import CachedWalks, DenoiserOnly
from halfstep.methods.diffusion.cached_walks import Landing
from halfstep.methods.diffusion.kept_walks import WalkOrder
from halfstep.methods.diffusion.matching import arriving_at
from halfstep.methods.diffusion.walk_spans import even_spans
from halfstep.rng import Draw
from tests.support.denoisers import named, seeded
from tests.support.walks import source_of

pytestmark = pytest.mark.usefixtures("float64")
FINE = uniform(16)


class Told:
    """The exact student: walks the teacher's solver to the end that it is told, in one prediction."""

    def __init__(self, teacher, solver):
        self.teacher, self.step = teacher, STEPS[solver]

    def __call__(self, x, t, cond):
        rows = [self._one(x[k : k + 1], t[k : k + 1], cond.t_end[k : k + 1]) for k in range(len(x))]
        return Prediction(*(torch.cat([getattr(p, of) for p in rows]) for of in ("x0", "eps")))

    def _one(self, x, t, e):
        schedule = self.teacher.schedule
        grid = FINE[FINE.index(t.item()) : FINE.index(e.item()) + 1]
        y = sample(self.teacher, noise_of(schedule, x, grid[0]), grid, self.step)
        start, stop = level_of(schedule, t, x), arriving_at(schedule, e, x)
        rows = [[start.alpha.item(), start.sigma.item()], [stop.alpha.item(), stop.sigma.item()]]
        both = torch.linalg.solve(torch.tensor(rows), torch.stack([x[0], y[0]]))
        return Prediction(both[:1], both[1:])


@pytest.mark.parametrize("solver", ["ddim", "heun"])
@pytest.mark.parametrize("schedule", [Cosine(), VPLinear(), RectifiedFlow(), Karras()], ids=named)
def test_the_exact_student_has_no_loss_for_any_span_of_kept_points(schedule, solver):
    teacher = mixture_teacher(schedule)
    source = source_of(teacher, torch.randn(3, 2, generator=seeded(1)), FINE, solver)
    times, spans = FINE[::2], even_spans(8, 1)
    objective = Landing(source, times, order=WalkOrder(3, updates=10), spans=spans)
    pairs = 3 * len(spans)
    draw = Draw(torch.Generator().manual_seed(0), pairs, slice(0, pairs), (0, 0, 0))
    loss = objective(Told(teacher, solver), Batch(torch.zeros(pairs, 2)), draw)
    assert loss.shape == (pairs,) and float(loss.max()) < 1e-20
    heard = set[tuple[float, float]]()

    def told(x, t, cond):
        heard.update(zip(t.tolist(), cond.t_end.tolist(), strict=True))
        return teacher(x, t, None)

    objective(told, Batch(torch.zeros(pairs, 2)), draw)
    assert heard == {(times[start], times[end]) for start, end in spans}


def test_spans_of_every_length_are_as_many_and_even():
    spans = even_spans(8, 2)
    lengths = [end - start for start, end in spans]
    assert {n: lengths.count(n) for n in set(lengths)} == {1: 8, 2: 8, 4: 8}
    assert spans[16:] == ((0, 4),) * 4 + ((4, 8),) * 4
    assert all(start % (end - start) == 0 and end <= 8 for start, end in spans)
    assert even_spans(3, 3) == ((0, 1), (1, 2), (2, 3))


def test_the_plan_has_one_stage_with_the_updates_of_all():
    teacher = DenoiserOnly(mixture_teacher(Cosine()))
    method = CachedWalks(start=16, first=8, updates=(5,), noises=10, one_student=True)
    [stage] = method.plan(teacher)
    assert (stage.name, stage.sampler, stage.updates) == ("flow-map", "flow-map", 5 + 5 + 10 + 10)
    assert [len(times) - 1 for times in stage.grids] == [8, 4, 2, 1]
    assert stage.fine_times == FINE[::2] and stage.teacher_times == FINE
    plain = CachedWalks(start=16, first=8, updates=(5,), noises=10).plan(teacher)
    assert stage.once == plain[0].once and stage.forwards == 3
    for budget in (7, 8, 30):
        [again] = method.with_updates(teacher, [budget]).plan(teacher)
        assert again.updates == budget
