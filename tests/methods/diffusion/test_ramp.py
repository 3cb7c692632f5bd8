"""Fine steps that grow: their numbers, the ends of segments on every grid, and what cannot have them."""

from dataclasses import replace

import pytest
import torch

import halfstep
from halfstep.batch import Batch
from halfstep.data import NoData
from halfstep.diffusion.analytic import gaussian_teacher
from halfstep.diffusion.denoiser import Denoiser
from halfstep.diffusion.prediction import V
from halfstep.diffusion.schedules import BetaTable, Cosine, Karras, RectifiedFlow, VPLinear
from halfstep.diffusion.time_grids import grid, uniform
from halfstep.errors import ConfigError
from halfstep.methods import DenoiserOnly, MultistepConsistency
from halfstep.methods.diffusion.guided import AnyScale
from halfstep.methods.diffusion.multistep_consistency import ConsistencyLoss
from halfstep.methods.diffusion.ramp import Ramp
from tests.support.denoisers import Drops, seeded, wobbly_teacher
from tests.support.runs import teacher as small_teacher
from tests.support.students import draw_of

pytestmark = pytest.mark.usefixtures("float64")
TABLE = BetaTable("scaled_linear")
ZERO = BetaTable("scaled_linear", zero_snr=True)
DONE = [k / 40 for k in range(41)]


def ramped(schedule, name, start=64, first=4, ramp_from=8, **options):
    method = MultistepConsistency(
        start=start,
        first=first,
        stop=first,
        ramp_from=ramp_from,
        grid=name,
        updates=(9,),
        **options,
    )
    (stage,) = method.stages(DenoiserOnly(gaussian_teacher(schedule)))
    return stage


def test_fine_steps_grow_on_a_log_scale():
    teacher = gaussian_teacher(Cosine())
    objective = ConsistencyLoss(teacher, grid("uniform", 64, Cosine()), 4, ramp=Ramp(16))
    counts = [len(objective.at(done).times) - 1 for done in (0, 0.25, 0.5, 0.75, 1)]
    assert counts == [16, 24, 32, 44, 64]  # 4 segments of 4, 5.7, 8, 11.3 and 16 steps
    assert objective.at(1.0).times == objective.times
    for done in DONE:
        times = objective.at(done).times
        assert times == pytest.approx(uniform(len(times) - 1))
    assert replace(objective, ramp=None).at(0.3).times == objective.times


@pytest.mark.parametrize(
    "schedule, name",
    [
        *((s, n) for s in (Cosine(), VPLinear(), Karras(), TABLE) for n in ("logsnr", "karras")),
        *((s, "auto") for s in (Cosine(), RectifiedFlow(), Karras(), TABLE, ZERO)),
        *((s, "uniform") for s in (TABLE, ZERO)),
        (VPLinear(), "trailing"),
    ],
    ids=str,
)
@pytest.mark.parametrize("start", [64, 24, 1000])
def test_segments_end_where_the_students_steps_end(schedule, name, start):
    """On every grid, and for every number of fine steps; the schedule has a level at each of them."""
    stage = ramped(schedule, name, start=start)
    lengths = set()
    for done in DONE:
        objective = stage.objective.at(done)
        t, m, e = objective.all_places()
        assert set(e.tolist()) == set(stage.times[1:])
        assert set(stage.times[:-1]) <= set(t.tolist())
        assert ((t > m) & (m >= e)).all()
        assert schedule.at(torch.tensor(objective.times)).sigma.isfinite().all()
        lengths.add(objective.length)
    assert min(lengths) == 2 and max(lengths) == start // 4 and len(lengths) > 3
    assert stage.objective.at(1.0).times == stage.objective.times


@pytest.mark.parametrize("start", [24, 64, 1000])
def test_fine_steps_of_a_table_are_its_levels(start):
    """A network that was trained on the levels alone has seen no time between them."""
    for done in DONE:
        for t in ramped(TABLE, "auto", start=start).objective.at(done).times:
            assert t * 1000 == pytest.approx(round(t * 1000), abs=1e-9)


def test_fine_steps_lie_among_given_times():
    times = (1.0, 0.9, 0.8, 0.4, 0.3, 0.25, 0.2, 0.1, 0.0)
    stage = ramped(Cosine(), "auto", start=8, first=2, ramp_from=4, times=times)
    assert stage.objective.at(0.0).times == (1.0, 0.8, 0.3, 0.2, 0.0)
    three = stage.objective.at(0.58).times  # of 4 steps a segment: 0, 4/3 and 8/3
    assert three == pytest.approx(
        (1.0, 0.9 - 0.1 / 3, 0.8 - 0.8 / 3, 0.3, 0.25 - 0.05 / 3, 0.4 / 3, 0)
    )


def test_a_teacher_that_takes_the_scale_has_it_too():
    stage = ramped(Cosine(), "uniform")
    whole = AnyScale(stage.objective, (1.0, 3.0))
    assert whole.at(0.0).inner.times == uniform(8) != whole.at(1.0).inner.times == uniform(64)


@pytest.mark.parametrize("walk", ["teacher", "student"])
def test_without_data_it_is_refused(tmp_path, walk):
    """Walks visit all fine times, and a ramp would change nothing."""
    method = MultistepConsistency(start=8, first=2, ramp_from=2, updates=(1,))
    with pytest.raises(ConfigError, match="leave ramp_from out"):
        halfstep.distill(small_teacher(), NoData(walk=walk), tmp_path / "r", method=method)
    assert not (tmp_path / "r").exists()
    replace(method, ramp_from=None).check_without_data()


@pytest.mark.parametrize(
    "options, words", [({"ramp_from": 4}, "ramp_from"), ({"addim": 0.1}, "addim")]
)
def test_a_student_as_the_teacher_knows_its_own_steps_alone(options, words):
    """Of the fine steps, and no mean of the data."""
    method = MultistepConsistency(start=16, first=4, **options)
    denoiser = wobbly_teacher(Cosine(), V())
    method.check(DenoiserOnly(denoiser))
    with pytest.raises(ConfigError, match=f"leave {words} out"):
        method.check(DenoiserOnly(denoiser, times=(uniform(16),)))
    MultistepConsistency(start=16, first=4).check(DenoiserOnly(denoiser, times=(uniform(16),)))


def test_the_student_jumps_without_dropout_as_it_is_sampled():
    student = Denoiser(Drops(), Cosine(), V()).train()
    objective = ConsistencyLoss(gaussian_teacher(Cosine()), uniform(16), 4)
    objective(student, Batch(torch.randn(3, 2, generator=seeded())), draw_of(0, 3)).sum().backward()
    assert student.net.heard == [(False, False), (True, True)]
    assert student.training and student.net.gain.grad.isfinite()
