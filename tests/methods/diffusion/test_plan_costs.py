"""The cost of a planned stage is that of its objective, for every method."""

from dataclasses import replace

import pytest

from halfstep.diffusion.guidance import Guided
from halfstep.diffusion.prediction import Eps
from halfstep.methods import (
    CachedWalks,
    Chain,
    DenoiserOnly,
    Denoising,
    Encoder,
    FlowMap,
    METHODS,
    MultistepConsistency,
    ParallelDecoding,
    Progressive,
    Reparameterise,
    Shrink,
    Stochastic,
)
from tests.support.guided import SMALL, teacher_of

UVIT = {
    "img_size": 4,
    "patch_size": 2,
    "in_chans": 1,
    "embed_dim": 8,
    "depth": 4,
    "num_heads": 2,
    "num_classes": 4,
}
HALVING = Progressive(start=8, stop=2, updates=(2,))
OF = {
    "denoise": Denoising(updates=2),
    "progressive": HALVING,
    "multistep-consistency": MultistepConsistency(start=8, first=4, stop=2, updates=(2,)),
    "cached-walks": CachedWalks(start=8, first=4, stop=2, updates=(2,), noises=3),
    "parallel-decoding": ParallelDecoding(start=8, first=4, stop=2, updates=(2,)),
    "consistency of heun": MultistepConsistency(start=8, first=4, solver="heun", updates=(2,)),
    "progressive by four": Progressive(start=8, first=2, updates=(2,)),
    "stochastic": Stochastic(start=8, stop=2, updates=(2,)),
    "encoder": Encoder(start=8, stop=2, updates=(2,)),
    "flow-map": FlowMap(start=8, first=2, updates=(2,)),
    "guided": SMALL,
    "shrink": Shrink(depth=2, choose="even", updates=2),
    "plan": Chain(shrink=Shrink(depth=2, choose="even", updates=2), then=SMALL),
    "reparameterise": Reparameterise(updates=2),
    "progressive of eps": HALVING,
}


def test_every_method_is_here():
    assert METHODS.keys() <= OF.keys()


@pytest.mark.parametrize("name", OF)
def test_a_plan_says_its_stages_costs(name):
    teacher = teacher_of("uvit", UVIT, shape=(1, 4, 4))
    if name in ("reparameterise", "progressive of eps"):
        denoiser = teacher.denoiser
        teacher = replace(teacher, denoiser=type(denoiser)(denoiser.net, denoiser.schedule, Eps()))
    method = OF[name]
    plan, stages = method.plan(teacher), list(method.stages(teacher))
    assert [p.name for p in plan] == [s.name for s in stages]
    assert [p.forwards for p in plan] == [s.objective.forwards for s in stages]
    costs = [21 * p.forwards + p.once for p in plan]
    if name == "flow-map":  # its rows cost 4 or 5 each, and 4.5 on average
        costs = [21 * 3 + 11 + 10 * 2]
    assert [s.objective.cost(7, 3) for s in stages] == costs


@pytest.mark.parametrize(
    "name, costs",
    [
        ("progressive", [7, 5]),
        ("progressive by four", [11, 5]),
        ("multistep-consistency", [6, 6]),
        ("consistency of heun", [8, 8, 8]),
    ],
)
def test_a_guided_teacher_is_called_twice(name, costs):
    """A student, which teaches the next halving, is not."""
    teacher = teacher_of("uvit", UVIT, shape=(1, 4, 4))
    teacher = DenoiserOnly(Guided(teacher.denoiser, 2.0, teacher.null))
    plan, stages = OF[name].plan(teacher), list(OF[name].stages(teacher))
    assert [p.forwards for p in plan] == costs == [s.objective.forwards for s in stages]
