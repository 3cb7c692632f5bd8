"""The updates that a method leaves open, as shares of its teacher's: 130 and 500 of 2,000."""

import pytest

from halfstep.diffusion.denoiser import Denoiser
from halfstep.diffusion.prediction import Eps, V
from halfstep.diffusion.schedules import Cosine
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
from halfstep.models import build

FOUR = Progressive(start=4)
SHRINK = Shrink(student={"width": "4"})
METHODS = {
    "progressive": (Progressive(start=8), [130, 260, 260]),
    "stochastic": (Stochastic(start=8), [130, 260]),
    "encoder": (Encoder(start=8), [130, 260, 260]),
    "guided": (GuidedDistillation(halving=FOUR), [500, 260, 260]),
    "guided alone": (GuidedDistillation(halving=None), [500]),
    "reparameterise": (Reparameterise(), [500]),
    "shrink": (SHRINK, [500]),
    "plan": (Chain(shrink=SHRINK, then=FOUR), [500, 260, 260]),
    "guided plan": (
        Chain(shrink=SHRINK, then=GuidedDistillation(halving=FOUR)), [500, 500, 260, 260],
    ),
}  # fmt: skip
every_method = pytest.mark.parametrize("method, updates", METHODS.values(), ids=METHODS.keys())


def teacher(reads=None):
    """A small labelled network, whose null class is 3."""
    net = build("mlp", {"dim": 2, "width": 8, "depth": 1, "num_classes": 4})
    return DenoiserOnly(Denoiser(net, Cosine(), reads or V()), 3)


def planned(method, pipeline):
    return [stage.updates for stage in method.plan(pipeline)]


@every_method
def test_each_stage_has_its_share(method, updates):
    sized = method.sized(teacher(), 2_000)
    sized.check(teacher())
    assert planned(sized, teacher()) == updates
    assert sized.sized(teacher(), 7) == sized


@every_method
def test_until_then_a_plan_has_the_papers(method, updates):
    """800,000 updates, a sixteenth and a quarter of them."""
    papers = {130: 50_000, 260: 100_000, 500: 200_000}
    assert planned(method, teacher()) == [papers[count] for count in updates]
    assert planned(method.sized(teacher(), 800_000), teacher()) == planned(method, teacher())


@pytest.mark.parametrize("name", ["progressive", "stochastic", "guided", "plan", "guided plan"])
def test_an_eps_teachers_first_stage_learns_at_every_time(name):
    method, updates = METHODS[name]
    sized = method.sized(teacher(Eps()), 2_000)
    sized.check(teacher(Eps()))
    assert planned(sized, teacher(Eps())) == [500, *updates]
    assert sized.reparameterise_updates == 500
    assert method.sized(teacher(), 2_000).reparameterise_updates is None
    assert planned(method, teacher(Eps()))[0] == 200_000


def test_updates_that_are_given_stay():
    given = Progressive(start=4, updates=(7,))
    assert given.sized(teacher(), 2_000) == given
    # As many as `updates`, as without data.
    assert planned(given.sized(teacher(Eps()), 2_000), teacher(Eps())) == [7, 14, 14]
    first = Progressive(start=4, reparameterise_updates=9).sized(teacher(Eps()), 2_000)
    assert planned(first, teacher(Eps())) == [9, 260, 260]
    for method in (Reparameterise(updates=7), Shrink(depth=2, updates=7)):
        assert method.sized(teacher(), 2_000) == method
    half = GuidedOptions(start=4, halving_updates=(7,)).build().sized(teacher(), 2_000)
    assert planned(half, teacher()) == [500, 14, 14]
    other = GuidedOptions(start=4, updates=7).build().sized(teacher(), 2_000)
    assert planned(other, teacher()) == [7, 260, 260]
    chain = ChainOptions(
        student={"width": "4"}, start=8, guidance_range=(1.0, 3.0), guided_updates=0
    )
    assert planned(chain.build().sized(teacher(), 2_000), teacher()) == [500, 0, 130]


def test_a_start_is_64_everywhere():
    for method in (Progressive(), Stochastic(), Encoder(), GuidedDistillation().halving):
        assert method is not None and method.start == 64
    with pytest.raises(ConfigError, match="updates has 0 numbers for 6 students"):
        Progressive(updates=())
