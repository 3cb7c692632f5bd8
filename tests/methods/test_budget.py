"""A budget in forwards is shared out to stages: known shares, never above it, within 1 % of it."""

import pytest

from halfstep.diffusion.denoiser import Denoiser
from halfstep.diffusion.prediction import Eps, V
from halfstep.diffusion.schedules import Cosine
from halfstep.errors import ConfigError
from halfstep.methods import CachedWalks, METHODS, Progressive, Reparameterise, Shrink
from halfstep.methods.budget import largest, least_budget, StageWork, updates_within
from halfstep.methods.stages import StagePlan
from halfstep.models import build
from halfstep.pipeline import Pipeline


def pipeline(reads=None):
    net = build("mlp", {"dim": 2, "width": 4, "depth": 1})
    return Pipeline(Denoiser(net, Cosine(), reads or V()), (2,))


def plan_of(method, teacher):
    return [stage.updates for stage in method.plan(teacher)]


def test_the_cost_of_a_plan_gives_its_own_updates():
    """928,000 forwards are what digits-progressive spends."""
    updates = (550, 650, 750, 600, 350)
    teacher, method = pipeline(), Progressive(start=32, stop=1, updates=updates)
    assert method.cost(teacher, 64) == 928_000
    assert method.with_budget(teacher, 928_000, 64) == method
    half = method.with_budget(teacher, 464_000, 64)
    assert plan_of(half, teacher) == [275, 325, 375, 300, 175]


def test_what_is_left_goes_to_the_largest_remainders():
    stages = [StageWork(10, 7), StageWork(20, 7), StageWork(30, 7)]
    # 1,400 / 420 = 10 / 3: 33.3, 66.7 and 100 updates; the forward of one update is left over.
    assert updates_within(stages, 1400) == [33, 67, 100]
    assert updates_within(stages, 1406) == [33, 67, 100]
    assert updates_within(stages, 1407) == [34, 67, 100]


@pytest.mark.parametrize("once", [0, 12_345])
@pytest.mark.parametrize("prices", [(5, 5, 5), (3, 7, 20), (11,)])
def test_every_budget_from_the_least_on_is_met_within_1_percent(prices, once):
    stages = [StageWork(40 + 13 * k, price) for k, price in enumerate(prices)]
    least = least_budget(stages, once)
    for budget in range(least, least + 400, 7):
        updates = updates_within(stages, budget, once)
        cost = once + sum(n * stage.price for n, stage in zip(updates, stages, strict=True))
        assert 0.99 * budget <= cost <= budget and min(updates) >= 1
    with pytest.raises(ConfigError, match=f"{least:,}"):
        updates_within(stages, least - 1, once)


def test_walks_are_paid_before_updates():
    stages = [StageWork(1, 3)]
    assert updates_within(stages, 4000, 1000) == [1000]
    assert StagePlan("stage", 10, forwards=3, once=7).cost(4) == 127


def test_the_smallest_share_decides_the_least_budget():
    """One update of a thousand and one: 5,005 forwards are the fewest that leave it one."""
    stages = [StageWork(1, 5), StageWork(1000, 5)]
    assert least_budget(stages) == 5005 and updates_within(stages, 5005) == [1, 1000]


def test_a_stage_without_updates_gets_none():
    assert updates_within([StageWork(0, 5), StageWork(4, 5)], 5000) == [0, 1000]
    assert updates_within([StageWork(0, 5)], 10) == [0]


@pytest.mark.parametrize("start, stop", [(4, 2), (2, 1), (8, 4)])
def test_the_only_student_has_the_budget(start, stop):
    """A single number of updates is doubled for 2 steps and for 1."""
    teacher, method = pipeline(), Progressive(start=start, stop=stop)
    given = method.with_budget(teacher, 100_000, 8)
    assert 99_000 <= given.cost(teacher, 8) <= 100_000


def test_a_v_teacher_is_within_the_budget():
    teacher, method = (
        pipeline(Eps()),
        Progressive(start=8, stop=2, updates=(30, 40), reparameterise_updates=60),
    )
    given = method.with_budget(teacher, 200_000, 16)
    names = [stage.name for stage in given.plan(teacher)]
    assert names == ["v-teacher", "0004-steps", "0002-steps"]
    assert 198_000 <= given.cost(teacher, 16) <= 200_000
    first, four, two = plan_of(given, teacher)
    assert abs(first - 2 * four) <= 2 and abs(two - four * 4 / 3) <= 2


@pytest.mark.parametrize("method", [Shrink(depth=2), Reparameterise()])
def test_other_methods_take_no_budget(method):
    with pytest.raises(ConfigError, match="budget"):
        method.with_updates(pipeline(), [1])


def test_a_price_may_be_a_mean():
    """4.75 forwards a sample at an odd batch: nothing is rounded before the end."""
    stages = [StageWork(3, 4.75 * 3), StageWork(1, 5.0)]
    updates = updates_within(stages, 10_000)
    cost = updates[0] * 14.25 + updates[1] * 5
    assert 9_900 <= cost <= 10_000 and abs(updates[0] - 3 * updates[1]) <= 2


@pytest.mark.parametrize("bound", [1, 2, 17, 1000])
def test_the_largest_that_fits(bound):
    assert largest(lambda n: n <= bound, 1000) == bound
    assert largest(lambda n: False, 1000) == 1


def test_walks_follow_the_budget():
    """12 noises for each update of the first student, of either budget; the budget is met with the walks."""
    teacher, method = pipeline(), CachedWalks(start=32, first=8, stop=1, solver="ddim")
    for budget in (900_000, 1_800_000):
        given = method.with_budget(teacher, budget, 32)
        assert 0.99 * budget <= given.cost(teacher, 32) <= budget
        [first, *_] = given.plan(teacher)
        assert first.once == 32 * given.noises
        assert given.noises == pytest.approx(12 * first.updates, rel=0.1)  # updates of two digits


@pytest.mark.parametrize(
    "name", ["progressive", "stochastic", "multistep-consistency", "cached-walks"]
)
def test_every_method_of_few_steps_meets_a_budget(name):
    teacher = pipeline()
    given = METHODS[name](stop=1).with_budget(teacher, 3_000_000, 16)
    assert 2_970_000 <= given.cost(teacher, 16) <= 3_000_000
