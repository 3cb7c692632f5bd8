"""An eps teacher becomes a v teacher in the first stage: plans, stages, options and refusals."""

import gc
import weakref
from dataclasses import fields, replace

import pytest
import torch

from halfstep.diffusion.denoiser import Denoiser
from halfstep.diffusion.guidance import Guided
from halfstep.diffusion.prediction import Clip, Eps, V, X0
from halfstep.diffusion.schedules import BetaTable, Cosine, Karras, RectifiedFlow, VPLinear
from halfstep.diffusion.time_grids import uniform
from halfstep.errors import ConfigError
from halfstep.methods import (
    Chain,
    DenoiserOnly,
    Encoder,
    GuidedDistillation,
    Progressive,
    Reparameterise,
    Shrink,
    Stochastic,
)
from halfstep.methods.diffusion.chain import ChainOptions
from halfstep.methods.diffusion.guided import GuidedOptions
from halfstep.methods.diffusion.v_teacher_first import is_blind
from halfstep.models import build
from tests.support.denoisers import named, wobbly_teacher

HALVE = Progressive(start=4, stop=1, updates=(7,))
GUIDE = GuidedDistillation(guidance_range=(1.0, 3.0), updates=5, halving=HALVE)
SHRINK = Shrink(student={"width": "4"}, updates=6)
LOW = (0.5, 0.375, 0.25, 0.125, 0.0)
"""A grid that starts where an eps teacher determines the data."""
METHODS = {
    "progressive": (HALVE, 7, ["0002-steps", "0001-steps"]),
    "short": (Progressive(start=2, updates=(9,)), 9, ["0001-steps"]),  # not twice, as its halving
    "stochastic": (Stochastic(start=4, stop=2, updates=(3,)), 3, ["0002-steps"]),
    "guided": (GUIDE, 5, ["guided", "0002-steps", "0001-steps"]),
    "guided alone": (replace(GUIDE, halving=None), 5, ["guided"]),
    "plan": (Chain(shrink=SHRINK, then=HALVE), 6, ["shrunk", "0002-steps", "0001-steps"]),
    "guided plan": (Chain(shrink=SHRINK, then=replace(GUIDE, halving=None)), 6, ["shrunk", "guided"]),
}  # fmt: skip
every_method = pytest.mark.parametrize(
    "method, updates, others", METHODS.values(), ids=METHODS.keys()
)


def teacher(reads=None, schedule=None, **options):
    """A small labelled network, whose null class is 3."""
    net = build("mlp", {"dim": 2, "width": 8, "depth": 1, "num_classes": 4})
    return DenoiserOnly(Denoiser(net, schedule or Cosine(), reads or Eps()), 3, **options)


@every_method
def test_the_plan(method, updates, others):
    eps = teacher()
    method.check(eps)
    first, *rest = method.plan(eps)
    assert (first.name, first.updates, first.times) == ("v-teacher", updates, ())
    assert [stage.name for stage in rest] == others and rest == method.plan(teacher(V()))
    assert method.plan_line(eps) == f"eps to v in {updates} updates, {method.summary()}"
    chosen = replace(method, reparameterise_updates=2)
    chosen.check(eps)
    assert [stage.updates for stage in chosen.plan(eps)] == [2, *(s.updates for s in rest)]


@every_method
def test_a_teacher_that_is_readable_gets_no_such_stage(method, updates, others):
    for reads in (V(), X0()):
        method.check(teacher(reads))
        assert [stage.name for stage in method.plan(teacher(reads))] == others
        assert method.plan_line(teacher(reads)) == method.summary()
        assert method.readable(same := teacher(reads)) is same
    with pytest.raises(ConfigError, match="leave reparameterise_updates out"):
        replace(method, reparameterise_updates=2).check(teacher(V()))


@pytest.mark.parametrize("times", [LOW, (1.0, *LOW[1:])])
def test_the_first_time_of_the_grid_decides(times):
    halving = replace(HALVE, times=times)
    for method in (halving, replace(GUIDE, halving=halving), Chain(shrink=SHRINK, then=halving)):
        assert (method.plan(teacher())[0].name == "v-teacher") is (times != LOW)
        method.check(teacher())


@pytest.mark.parametrize(
    "schedule",
    [Cosine(), VPLinear(), RectifiedFlow(), Karras(), BetaTable(), BetaTable(zero_snr=True)],
    ids=repr,
)
def test_eps_is_blind_at_pure_noise_of_every_schedule(schedule):
    eps = wobbly_teacher(schedule, Eps())
    assert is_blind(eps, 1.0) and not is_blind(eps, 0.5)
    assert not is_blind(wobbly_teacher(schedule, V()), 1.0)
    level = schedule.at(torch.tensor(t := 0.97, dtype=torch.float64))
    assert is_blind(eps, t) is bool(level.alpha < 0.1 * level.sigma)


def test_the_first_stage_is_that_of_reparameterise_and_its_student_teaches_the_others():
    eps = teacher()
    stages = HALVE.stages(eps)
    stage = next(stages)
    [alone] = Reparameterise(updates=7).stages(eps)
    assert stage.objective == alone.objective and stage.objective.drop == 0.1
    assert stage.objective.teacher is eps.denoiser and stage.objective.null == 3
    assert (stage.name, stage.updates) == (alone.name, alone.updates)
    assert stage.student.parameterisation == V() and stage.student.training
    taught, gone = stage.student, weakref.ref(eps.denoiser)
    del eps, stage, alone
    second = next(stages)
    gc.collect()
    assert gone() is None  # the memory of the first teacher is free
    assert second.objective.teacher is taught and second.name == "0002-steps"
    assert not taught.training and second.student.parameterisation == V()
    third = next(stages)
    assert third.objective.teacher is second.student and next(stages, None) is None


@pytest.mark.parametrize("method", [GUIDE, Chain(shrink=SHRINK, then=GUIDE)], ids=named)
def test_guided_students_learn_from_the_v_teacher_with_its_null(method):
    stages = list(method.stages(teacher()))
    assert stages[0].objective.drop == 0.1 and stages[0].objective.null == 3
    assert stages[1].objective.teacher is stages[0].student
    [guided] = [stage for stage in stages if stage.name == "guided"]
    assert guided.objective.null == 3 and guided.guidance_range == (1.0, 3.0)


def test_the_clip_reaches_the_halvings():
    clipped = replace(HALVE, target_clip=0.7)
    clipped.check(teacher(clip=0.7))
    with pytest.raises(ConfigError, match="clips nothing"):
        clipped.check(teacher())
    for clipping in ("x0", "x0-and-eps"):
        _, stage, _ = clipped.stages(teacher(clip=0.7, clipping=clipping))
        assert stage.objective.clip == Clip(0.7, clipping)


def test_an_encoder_starts_at_data_where_eps_says_all():
    encoder = Encoder(start=4, stop=2, updates=(3,))
    encoder.check(teacher())
    assert [stage.name for stage in encoder.plan(teacher())] == ["0002-steps"]
    assert not any(field.name.startswith("reparameterise") for field in fields(Encoder))


def test_refusals():
    with pytest.raises(ConfigError, match="v teacher of 0 updates"):
        replace(HALVE, updates=(0,)).check(teacher())
    with pytest.raises(ConfigError, match="v teacher of 0 updates"):
        replace(HALVE, reparameterise_updates=0).check(teacher())
    replace(HALVE, updates=(0,)).check(teacher(V()))
    with pytest.raises(ConfigError, match="a student of 4 steps"):
        HALVE.check(teacher(times=(uniform(4),)))
    with pytest.raises(ConfigError, match="a table of 1000 levels has no 1024 steps"):
        Progressive(start=1024).check(teacher(schedule=BetaTable()))


@pytest.mark.parametrize(
    "method",
    [
        replace(GUIDE, halving=replace(HALVE, reparameterise_updates=2)),
        Chain(shrink=SHRINK, then=replace(HALVE, reparameterise_updates=2)),
    ],
)
def test_the_options_are_those_of_the_whole_method(method):
    """The part that halves has a v teacher already, and its own option would do nothing."""
    with pytest.raises(ConfigError, match="leave reparameterise_updates out"):
        method.check(teacher())


def test_a_guided_teacher_is_not_guided_twice():
    guided = DenoiserOnly(Guided(teacher(V()).denoiser, 3.0, 3), 3)
    with pytest.raises(ConfigError, match=r"guided twice.*teacher\.unguided"):
        GUIDE.check(guided)
    GUIDE.check(replace(guided, denoiser=guided.denoiser.unguided))
    eps = DenoiserOnly(Guided(teacher().denoiser, 3.0, 3), 3)
    first, second, _ = HALVE.stages(eps)
    assert first.objective.teacher is eps.denoiser and type(first.student) is Denoiser
    assert second.objective.teacher is first.student  # which learnt the guided teacher


def test_flat_options_reach_the_methods():
    options = {"reparameterise_updates": 4}
    for flat in (GuidedOptions(**options), ChainOptions(student={"width": "4"}, **options)):
        method = flat.build()
        assert {name: getattr(method, name) for name in options} == options
