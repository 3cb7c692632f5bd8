"""Progressive distillation: stages, options and refusals."""

import re

import pytest
import torch

from halfstep.batch import Batch, Cond
from halfstep.diffusion.analytic import gaussian_flow, gaussian_teacher, Mixture, mixture_teacher
from halfstep.diffusion.denoiser import Denoiser
from halfstep.diffusion.guidance import Guided
from halfstep.diffusion.loss_weighting import truncated_snr
from halfstep.diffusion.prediction import V, X0
from halfstep.diffusion.samplers import start
from halfstep.diffusion.schedules import (
    BetaTable,
    Cosine,
    RectifiedFlow,
    VPLinear,
)
from halfstep.diffusion.time_grids import grid, trailing, uniform
from halfstep.errors import ConfigError
from halfstep.methods import (
    DenoiserOnly,
    Encoder,
    METHODS,
    Progressive,
    Reparameterise,
    Stochastic,
)
from tests.support.denoisers import named, READS, SCHEDULES, seeded, wobbly_teacher
from tests.support.students import (
    draw_of,
    halve_to_the_end,
    right,
)

pytestmark = pytest.mark.usefixtures("float64")
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=named)
every_reading = pytest.mark.parametrize("reads", READS, ids=named)


def test_each_stage_teaches_the_next():
    teacher, names = wobbly_teacher(Cosine(), V()), []
    for stage in Progressive(start=16, stop=1, updates=(10,)).stages(DenoiserOnly(teacher)):
        assert stage.objective.teacher is teacher and stage.student is not teacher
        assert not any(p.requires_grad for p in teacher.parameters()) and not teacher.training
        assert all(p.requires_grad for p in stage.student.parameters()) and stage.student.training
        assert torch.equal(stage.student.net.gain, teacher.net.gain)
        assert stage.times == stage.objective.times[::2]
        assert stage.objective.weighting is truncated_snr
        with torch.no_grad():
            stage.student.net.gain += 1
        teacher = stage.student
        names.append((stage.name, len(stage.times) - 1, stage.updates))
    assert names == [
        ("0008-steps", 8, 10),
        ("0004-steps", 4, 10),
        ("0002-steps", 2, 20),
        ("0001-steps", 1, 20),
    ]
    assert teacher.net.gain.item() == pytest.approx(1.7 + 4)


def test_updates_one_each():
    method = Progressive(start=12, stop=3, updates=(7, 9))
    stages = list(method.stages(DenoiserOnly(wobbly_teacher(Cosine(), V()))))
    assert [(s.name, s.updates) for s in stages] == [("0006-steps", 7), ("0003-steps", 9)]
    assert method.updates_for(1, 1) == 9
    assert [Progressive(updates=(5,)).updates_for(0, n) for n in (8, 4, 3, 2, 1)] == [
        5,
        5,
        5,
        10,
        10,
    ]


def test_the_papers_updates():
    """CIFAR-10: 8192 to 1 in 13 halvings of 50,000 and 100,000 updates, 750,000 in all."""
    method = Progressive(start=8192, stop=1)
    steps = [8192 // 2**k for k in range(1, 14)]
    assert sum(method.updates_for(k, n) for k, n in enumerate(steps)) == 750_000


@pytest.mark.parametrize("name", ["auto", "uniform", "trailing", "logsnr", "karras"])
def test_grids_by_name(name):
    schedule = VPLinear()
    [stage] = Progressive(start=6, stop=3, grid=name).stages(
        DenoiserOnly(wobbly_teacher(schedule, V()))
    )
    assert stage.objective.times == grid(name, 6, schedule)
    assert stage.times == grid(name, 6, schedule)[::2] and len(stage.times) == 4


@pytest.mark.parametrize("kind", [Progressive, Stochastic, Encoder])
def test_a_tables_students_stay_on_its_levels(kind):
    """A network that was trained on the 1000 entries of a table is asked at no time between them."""
    teacher = DenoiserOnly(wobbly_teacher(BetaTable(), V()))
    for stage in kind(start=64, stop=4).plan(teacher):
        for times in (stage.teacher_times, stage.times):
            assert times == trailing(len(times) - 1)
    [one] = kind(start=8, stop=4).plan(teacher)
    assert one.teacher_times == uniform(8)  # 8 divides 1000
    assert kind(start=8, stop=4).plan(DenoiserOnly(wobbly_teacher(Cosine(), V()))) == [one]


def test_a_grid_of_ones_own():
    times = (0.9, 0.5, 0.44, 0.2, 0.0)
    stages = list(
        Progressive(start=4, times=times).stages(DenoiserOnly(wobbly_teacher(RectifiedFlow(), V())))
    )
    assert [s.times for s in stages] == [(0.9, 0.44, 0.0), (0.9, 0.0)]


def test_a_guided_teacher_is_distilled_into_a_plain_student():
    guided = Guided(mixture_teacher(Cosine()), 3.0, null=3)
    [stage] = Progressive(start=2, stop=1).stages(DenoiserOnly(guided))
    assert stage.objective.teacher is guided and type(stage.student) is Denoiser
    batch = Batch(Mixture().draw(5, seeded()), Cond(label=torch.tensor([0, 1, 2, 1, 0])))
    assert bool(stage.objective(stage.student, batch, draw_of(0, 5)).isfinite().all())


def test_methods_by_name():
    assert METHODS["progressive"] is Progressive and METHODS["reparameterise"] is Reparameterise


@pytest.mark.parametrize(
    "start_, stop",
    [
        (12, 4),
        (4, 4),
        (2, 4),
        (1024, 3),
        (1000, 1),
        (7, 1),
        (1, 1),
        (0, 1),
        (-8, 1),
        (8, 0),
        (8, -2),
    ],
)
def test_refuses_what_cannot_be_halved(start_, stop):
    with pytest.raises(ConfigError, match="power of two") as refusal:
        Progressive(start=start_, stop=stop)
    message = str(refusal.value)
    better = re.search(r"for example start=(\d+) with stop=(\d+)", message)
    Progressive(start=int(better[1]), stop=int(better[2]))
    if reachable := re.search(rf"from {start_} one can stop at ([\d, ]+)", message):
        for other in reachable[1].split(", "):
            Progressive(start=start_, stop=int(other))


def test_says_what_can_be_reached():
    with pytest.raises(ConfigError, match=r"stop at 6, 3$"):
        Progressive(start=12, stop=4)
    with pytest.raises(ConfigError, match=r"stop at 500, 250, 125$"):
        Progressive(start=1000, stop=1)
    with pytest.raises(ConfigError) as refusal:
        Progressive(start=7, stop=1)
    assert "can stop at" not in str(refusal.value)


@pytest.mark.parametrize("updates", [(), (1, 2), (1, 2, 3, 4), (-1,), (5, -1, 5)])
def test_updates_that_do_not_fit(updates):
    with pytest.raises(ConfigError, match="updates"):
        Progressive(start=8, stop=1, updates=updates)
    assert Progressive(start=8, stop=1, updates=(0, 0, 3)).updates == (0, 0, 3)


def test_a_grid_of_ones_own_must_fit():
    with pytest.raises(ConfigError, match="write start=2") as refusal:
        Progressive(start=4, times=(1.0, 0.5, 0.0))
    better = int(str(refusal.value).rpartition("=")[2])
    assert Progressive(start=better, times=(1.0, 0.5, 0.0)).start == 2
    with pytest.raises(ConfigError, match="grid falls"):
        Progressive(start=2, times=(0.0, 0.5, 1.0))


@pytest.mark.parametrize("weighting", ["snr", "min-snr"])
def test_weights_that_vanish_are_refused(weighting):
    with pytest.raises(ConfigError, match=f"'{weighting}' vanishes") as refusal:
        Progressive(weighting=weighting)
    for better in re.search(r"weighting='(\S+)' or '(\S+)'", str(refusal.value)).groups():
        assert Progressive(weighting=better).weighting == better
    assert Progressive(weighting="constant").weighting == "constant"


def test_unknown_names_are_refused():
    with pytest.raises(ConfigError, match="meant 'truncated-snr'"):
        Progressive(weighting="truncated_snr")
    with pytest.raises(ConfigError, match="grid 'unifrom'"):
        Progressive(start=2, grid="unifrom").check(DenoiserOnly(wobbly_teacher(Cosine(), V())))


@pytest.mark.parametrize("reads", [X0(), V()], ids=named)
@every_schedule
def test_other_teachers_are_distilled_from_pure_noise(schedule, reads):
    Progressive(start=2).check(DenoiserOnly(wobbly_teacher(schedule, reads)))


def test_walks_agree_with_the_exact_flow():
    """Not only with each other: many steps approach the closed flow, and so does the one-step student."""
    teacher, noise = gaussian_teacher(Cosine()), torch.randn(9, 1, generator=seeded())
    [*_, one] = halve_to_the_end(teacher, uniform(1024), noise, right).values()
    exact = gaussian_flow(Cosine(), start(Cosine(), noise), 1.0, 0.0)
    torch.testing.assert_close(one, exact, rtol=0, atol=5e-3)


class Flat(Cosine):
    """No noise is added between 0 and 0.6."""

    def at(self, t):
        return super().at(t.clamp(min=0.6))


@pytest.mark.parametrize("first", [2, 1])
def test_steps_between_equal_levels_are_refused_wherever_they_lie(first):
    """Within those that a first student merges, too."""
    method = Progressive(start=4, first=first, times=(1.0, 0.8, 0.6, 0.4, 0.2))
    with pytest.raises(ConfigError, match="cannot be merged into one"):
        method.check(DenoiserOnly(wobbly_teacher(Flat(), V())))
    method.check(DenoiserOnly(wobbly_teacher(Cosine(), V())))
